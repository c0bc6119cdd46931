"""Every line of every kernel on the host under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and faults that nothing else sees.

ThreadSanitizer knows barriers of the block and of the warp, and takes blocks that follow each other for threads that nothing orders. Ballots, shuffles and products
of matrices order nothing in memory, as CUDA has it.
"""

import os
import platform
import subprocess
from pathlib import Path

import host_program
import kernel_coverage
import pytest

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_thread_leaks=0",
}
ORDERS = {"address": 2, "thread": 4}
"""Of threads: AddressSanitizer sees a bad address in any of them, ThreadSanitizer a missing barrier as well."""
BATCHES = {"address": 2, "thread": 1}
"""Under ThreadSanitizer the program takes 40 times as long."""


def run(program: Path, order: int, batch: int = 2) -> subprocess.CompletedProcess[str]:
    environment = os.environ | OPTIONS | {"PLANTED_BATCH": str(batch)}
    result = host_program.run(program, order, **environment)
    if "unexpected memory mapping" in result.stderr:  # an old ThreadSanitizer where addresses are very random
        command = ["setarch", platform.machine(), "-R", str(program), str(order)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return result


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program without a sanitizer, which prints the same in any order of threads: see test_planted_faults.py."""
    parts = list(host_program.objects("plain").values())
    return host_program.link("plain", parts, tmp_path_factory.mktemp("plain") / "program")


@pytest.mark.parametrize("kind", ORDERS)
def test_nothing_is_reported_and_every_line_runs(plain: Path, tmp_path: Path, kind: str) -> None:
    program = host_program.link(kind, list(host_program.objects(kind).values()), tmp_path / "program")
    kernel_coverage.forget()
    result = run(program, ORDERS[kind], BATCHES[kind])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == run(plain, 0, BATCHES[kind]).stdout
    if kind == "address":
        assert not kernel_coverage.missing_lines()


def test_a_line_without_executions_is_found() -> None:
    def report(file: str, **lines: int) -> dict[str, object]:
        counts = [{"line_number": int(name[1:]), "count": count} for name, count in lines.items()]
        return {"current_working_directory": "/kernels", "files": [{"file": file, "lines": counts}]}

    reports = [
        report("a.cu", _3=0, _4=0, _5=1),
        report("a.cu", _3=2, _4=0),
        report("/kernels/b.h", _1=0),
        report("../c.h", _1=0),
    ]
    assert kernel_coverage.never_executed(reports, Path("/kernels")) == [("a.cu", 4), ("b.h", 1)]


@pytest.mark.parametrize(
    ("kind", "file", "changes", "message"),
    [
        # one number behind a shared array is read
        (
            "address",
            "groups.cu",
            [("groups.cu", "other < THREADS; ++other", "other <= THREADS; ++other", 0)],
            "use-after-poison",
        ),
        # one behind a tensor
        (
            "address",
            "valid_tokens.cu",
            [
                ("valid_tokens.cu", "token < N && mask", "token <= N && mask", 0),
                ("valid_tokens.cu", "if (here)", "if (here && token < N)", 0),
            ],
            "heap-buffer-overflow",
        ),
        # a shift that a GPU does in another way
        ("address", "valid_tokens.cu", [("valid_tokens.cu", "1u << t % WARP", "1u << t", 0)], "shift exponent"),
        ("thread", "group_mean.cu", [("group_mean.cu", "device::barrier();", "", 0)], "data race"),
        # the barrier of a warp is not enough
        (
            "thread",
            "hash_vectors.cu",
            [("hash_vectors.cu", "device::barrier();", "device::warp_barrier();", 0)],
            "data race",
        ),
        # not an atomic operation
        (
            "thread",
            "groups.cu",
            [
                (
                    "groups.cu",
                    "device::add(&near[cluster[r]], 1);",
                    "near[cluster[r]] += 1;",
                    0,
                )
            ],
            "data race",
        ),
        # several blocks write the same numbers to the same place
        ("thread", "groups.cu", [("groups.cu", "if (c < C && part == 0) first", "if (c < C) first", 0)], "data race"),
    ],
)
def test_a_planted_fault_is_reported(
    tmp_path: Path, kind: str, file: str, changes: list[tuple[str, str, str, int]], message: str
) -> None:
    program = host_program.with_fault(kind, tmp_path, file, changes)
    result = run(program, 0)
    assert result.returncode != 0
    assert message in result.stderr
    assert f"{changes[0][0]}:" in result.stderr


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (
            "groups.cu",
            [
                ("groups.cu", "other < THREADS; ++other", "other <= THREADS; ++other", 0),
                ("groups.cu", "device::add(&near[cluster[r]], 1);", "near[cluster[r]] += 1;", 0),
                ("groups.cu", "if (c < C && part == 0) first", "if (c < C) first", 0),
            ],
        ),
        ("valid_tokens.cu", [("valid_tokens.cu", "1u << t % WARP", "1u << t", 0)]),
    ],
)
def test_only_a_sanitizer_sees_it(
    plain: Path, tmp_path: Path, file: str, changes: list[tuple[str, str, str, int]]
) -> None:
    """What makes the two sanitizers worth their time: in no order of threads do these change a result."""
    program, expected = host_program.with_fault("plain", tmp_path, file, changes), run(plain, 0, batch=1).stdout
    for order in host_program.EVERY_ORDER:
        result = run(program, order, batch=1)
        assert (result.returncode, result.stdout) == (0, expected)
