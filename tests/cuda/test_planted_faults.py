"""The host stands for the device well enough to notice what goes wrong there: kernels with planted faults fail.

By another result in one of the orders of threads, or by the host's own checks, which name the fault; what only a sanitizer sees is in test_sanitizers.py.
"""

from pathlib import Path
from typing import NamedTuple

import host_program
import pytest

BARRIER = "device::barrier();"
WAIT = "device::wait_for_copies();"
AT_ONCE = "threads of a block are at different barriers"


BATCH = {"PLANTED_BATCH": "1"}
"""Half the time."""


class Plain(NamedTuple):
    """The kernels as they are."""

    program: Path
    results: str  # what it prints, in any order of threads, for BATCH


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    every = host_program.objects("plain")
    program = host_program.link("plain", list(every.values()), tmp_path_factory.mktemp("plain") / "program")
    return Plain(program, host_program.run(program, 0, **BATCH).stdout)


def test_every_order_gives_the_same_bits(plain: Plain) -> None:
    runs = [host_program.run(plain.program, order) for order in host_program.EVERY_ORDER]
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * len(runs)
    assert len({run.stdout for run in runs}) == 1
    stages = {line.split()[0] for line in runs[0].stdout.splitlines()}
    assert {"positions", "order", "hash_vectors", "group_mean", "tail", "full_attention", "grad_k"} <= stages


def assert_found(program: Path, folder: Path, results: str, message: str, **environment: str) -> None:
    """The program gives other results in one order of threads, or ends with an error that has the message."""
    expected = folder / "expected"
    expected.write_text(results, encoding="utf-8")
    for order in reversed(host_program.EVERY_ORDER):  # one warp ahead of the others shows most
        run = host_program.run(program, order, expected, **BATCH, **environment)
        if run.returncode or run.stdout != results:
            break
    else:
        pytest.fail("the results are the same in every order")
    assert message in run.stderr


def place(file: str, call: str, which: int) -> str:
    """Where a file of kernels has a call for the which-th time, as host_cuda.h leaves one out."""
    lines = (host_program.CUDA / "kernels" / file).read_text(encoding="utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if call in line]
    assert len(numbers) > which, f"{file} has no {call!r} number {which}"
    return f"{file}:{numbers[which]}"


@pytest.mark.parametrize(
    ("file", "call", "which", "message"),
    [
        # before shared memory is read, and before it is written again
        *[("valid_tokens.cu", BARRIER, which, "") for which in (0, 1)],
        *[("hash_vectors.cu", BARRIER, which, "") for which in (0, 1)],
        ("group_mean.cu", BARRIER, 0, ""),
        *[("groups.cu", BARRIER, which, "") for which in (0, 1, 3, 4, 5, 6)],
        *[("cluster_codes.cu", BARRIER, which, "") for which in (0, 1)],
        *[("top_keys.cu", BARRIER, which, "") for which in (0, 1, 2)],
        *[("cluster_rows.cu", BARRIER, which, "") for which in (3, 6, 8, 9, 12)],
        ("scan.h", "device::warp_barrier();", 0, ""),
        ("scan.h", BARRIER, 0, ""),
        # copies that are read while they are on their way: a block's queries, and its keys
        ("attend_matrix.h", WAIT, 0, ""),
        ("attend_matrix.h", WAIT, 1, "a thread left before its copies had come"),
        # teams of warps that share rows: what they exchange, add to in turns, and read before it is replaced
        *[("attend_matrix.h", BARRIER, which, "") for which in (2, 4, 7, 8, 9)],
        # tiles of the tensor cores
        *[("token_tiles.h", BARRIER, which, "") for which in (2, 3, 4, 5, 6)],
        ("token_tiles.h", WAIT, 0, "a thread left before its copies had come"),
        # tables of weights, which lie where the tiles do
        ("refined_backward_tiles.h", BARRIER, 6, ""),
        ("refined_tail_backward.cu", BARRIER, 4, ""),
    ],
)
def test_a_barrier_or_a_wait_that_is_missing_is_found(
    plain: Plain, tmp_path: Path, file: str, call: str, which: int, message: str
) -> None:
    assert_found(plain.program, tmp_path, plain.results, message, HOST_CUDA_LEFT_OUT=place(file, call, which))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
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
    plain: Plain, tmp_path: Path, file: str, changes: list[tuple[str, str, str, int]], message: str
) -> None:
    assert_found(host_program.with_fault("plain", tmp_path, file, changes), tmp_path, plain.results, message)
