"""The host stands for the device well enough to notice what goes wrong there: kernels with planted faults fail.

By another result in one of the orders of threads, or by the host's own checks, which name the fault; what only a sanitizer sees is in test_sanitizers.py.
"""

from pathlib import Path

import host_program
import pytest

BARRIER = "device::barrier();"
WAIT = "device::wait_for_copies();"
MATRICES = '#include "attend_matrix.h"'  # of the faulty one
TILES = '#include "token_tiles.h"'
AT_ONCE = "threads of a block are at different barriers"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the kernels as they are write."""
    every = host_program.objects("plain")
    program = host_program.link("plain", list(every.values()), tmp_path_factory.mktemp("plain") / "program")
    runs = [host_program.run(program, order) for order in host_program.EVERY_ORDER]
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * len(runs)
    assert len({run.stdout for run in runs}) == 1
    return runs[0].stdout


def test_every_order_gives_the_same_bits(results: str) -> None:
    stages = {line.split()[0] for line in results.splitlines()}
    assert {"positions", "order", "hash_vectors", "group_mean", "tail", "full_attention", "grad_k"} <= stages


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        # barriers that are missing: before shared memory is read, and before it is written again
        ("valid_tokens.cu", [("valid_tokens.cu", BARRIER, "", 0)], ""),
        ("valid_tokens.cu", [("valid_tokens.cu", BARRIER, "", 1)], ""),
        ("hash_vectors.cu", [("hash_vectors.cu", BARRIER, "", 0)], ""),
        ("hash_vectors.cu", [("hash_vectors.cu", BARRIER, "", 1)], ""),
        ("group_mean.cu", [("group_mean.cu", BARRIER, "", 0)], ""),
        *[("groups.cu", [("groups.cu", BARRIER, "", which)], "") for which in (0, 1, 3, 4, 5, 6)],
        *[(file, [("scan.h", "device::warp_barrier();", "", 0)], "") for file in ("groups.cu", "cluster_rows.cu")],
        *[("cluster_codes.cu", [("cluster_codes.cu", BARRIER, "", which)], "") for which in (0, 1)],
        *[("top_keys.cu", [("top_keys.cu", BARRIER, "", which)], "") for which in (0, 1, 2)],
        *[("cluster_rows.cu", [("cluster_rows.cu", BARRIER, "", which)], "") for which in (3, 6, 8, 9, 12)],
        ("groups.cu", [("scan.h", BARRIER, "", 0)], ""),
        # copies that are read while they are on their way: a block's queries, and its keys
        *[
            ("full_attention.cu", [("attend.h", MATRICES, MATRICES, 0), ("attend_matrix.h", WAIT, "", which)], message)
            for which, message in ((0, ""), (1, "a thread left before its copies had come"))
        ],
        # teams of warps that share rows: what they exchange, add to in turns, and read before it is replaced
        *[
            (f"{kernels}_attention.cu", [("attend.h", MATRICES, MATRICES, 0), ("attend_matrix.h", old, new, 0)], "")
            for kernels, old, new in (
                ("full", "1 || TEAM > 1)", "1)"),
                ("full", f"{BARRIER}\n    const Quad* const others", "const Quad* const others"),
                ("refined", f"{BARRIER}\n      if (!leads())", "if (!leads())"),
                ("refined", f"if (TEAM > 1) {BARRIER}  // both", "// both"),
                ("refined", f"if (TEAM > 1) {BARRIER}\n    else", ""),
            )
        ],
        # tiles of the tensor cores
        *[("full_attention_backward.cu", [("token_tiles.h", BARRIER, "", which)], "") for which in (4, 5, 6)],
        *[
            (
                "refined_queries_backward.cu",
                [("refined_backward_tiles.h", TILES, TILES, 0), ("token_tiles.h", BARRIER, "", which)],
                "",
            )
            for which in (2, 3)
        ],
        # tables of weights, which lie where the tiles do
        ("refined_clusters_backward.cu", [("refined_backward_tiles.h", BARRIER, "", 6)], ""),
        ("refined_tail_backward.cu", [("refined_tail_backward.cu", BARRIER, "", 4)], ""),
        # an order that decides: places given out as threads come
        (
            "groups.cu",
            [
                ("scan.h", "return start + before;", "return listed ? device::add(&next[cluster], 1) : 0;", 0),
                ("scan.h", "if (listed && before == 0) next[cluster] = start + device::ones(same);", "", 0),
            ],
            "",
        ),
        # threads that are not there
        (
            "group_mean.cu",
            [("group_mean.cu", BARRIER, "if (t >= 200) return; device::barrier();", 0)],
            "a thread left before a ",
        ),
        (
            "group_mean.cu",
            [("group_mean.cu", BARRIER, "if (t < 128) device::barrier(); else\n device::barrier();", 0)],
            AT_ONCE,
        ),
        (
            "valid_tokens.cu",
            [
                (
                    "valid_tokens.cu",
                    "const uint32_t votes = device::ballot(here);",
                    "uint32_t votes = 0; if (t % 2) votes = device::ballot(here);",
                    0,
                )
            ],
            "threads wait for each other for ever",
        ),
        (
            "groups.cu",
            [
                (
                    "scan.h",
                    "const int32_t other = device::shuffle(",
                    "if (lane < step) continue; const int32_t other = device::shuffle(",
                    0,
                )
            ],
            "threads wait for each other for ever",
        ),
        # memory
        (
            "group_mean.cu",
            [("group_mean.cu", "+ lane / 4] = both;", "+ lane / 4 + 1] = both;", 0)],
            "a thread wrote behind a shared array",
        ),
        (
            "groups.cu",
            [
                (
                    "groups.cu",
                    "CUDA_OPS_SHARED(int32_t, cluster_of, THREADS);",
                    "CUDA_OPS_SHARED(int32_t, cluster_of, THREADS / 8);",
                    0,
                )
            ],
            "a thread wrote behind a shared array",
        ),
        (
            "hash_vectors.cu",
            [("hash_vectors.cu", "COLUMNS * PLANE_STRIDE);", "COLUMNS * PLANE_STRIDE * 4);", 0)],
            "more than 48 KB of shared memory",
        ),
        (
            "valid_tokens.cu",
            [("valid_tokens.cu", "B, THREADS, stream", "B, 2 * THREADS, stream", 0)],
            "a block has 1 to 32 whole warps",
        ),
        (
            "valid_tokens.cu",
            [("valid_tokens.cu", "B, THREADS, stream", "B, THREADS - 1, stream", 0)],
            "a block has 1 to 32 whole warps",
        ),
    ],
)
def test_a_planted_fault_is_found(
    results: str, tmp_path: Path, file: str, changes: list[tuple[str, str, str, int]], message: str
) -> None:
    program = host_program.with_fault("plain", tmp_path, file, changes)
    expected = tmp_path / "expected"
    expected.write_text(results, encoding="utf-8")
    for order in reversed(host_program.EVERY_ORDER):  # one warp ahead of the others shows most
        run = host_program.run(program, order, expected)
        if run.returncode or run.stdout != results:
            break
    else:
        pytest.fail("the results are the same in every order")
    assert message in run.stderr
