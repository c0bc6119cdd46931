"""The operator tests (tests/ops) on the CUDA operators: on the host always, on the GPU where there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import operator_backend
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in (ROOT / "tests" / "ops").glob("test_*.py"))
REFINED = [name for name in FILES if name.startswith("test_refined")]
CONTRACT = ["test_contract.py", "test_operator_errors.py", "test_oracle.py"]
SAMPLE = 2
"""Parameter sets of each test on the host; `make test-cuda-host` runs all of them."""


def run_suite(backend: str, files: list[str], most: int | None) -> None:
    environment = os.environ | {operator_backend.VARIABLE: backend}
    if most is not None:
        environment[operator_backend.SAMPLE] = str(most)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--durations=10"]
    command += ["--capture=sys"]  # what the host's device says before it aborts must not get lost
    result = subprocess.run(
        [*command, *(f"tests/ops/{name}" for name in files)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    print(result.stdout[-1500:])  # for whoever asks how long it took: pytest -rA
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.usefixtures("host", "compiled")
class TestOnTheHost:
    """A sample of each test. In two classes, so that two workers share them."""

    def test_refined(self) -> None:
        run_suite("host-cuda", REFINED, SAMPLE)

    def test_contract(self) -> None:
        run_suite("host-cuda", CONTRACT, SAMPLE)


@pytest.mark.usefixtures("host", "compiled")
class TestOnTheHostToo:
    def test_stages_clustered_and_gradients(self) -> None:
        run_suite("host-cuda", [name for name in FILES if name not in (*REFINED, *CONTRACT)], SAMPLE)


@pytest.mark.parametrize("name", operator_backend.all_names())
def test_every_operator_has_a_kernel(name: str, host: None) -> None:
    """One without would silently be tested on its CPU kernel above."""
    assert operator_backend.has_kernel("cuda_ops_host", name, "CPU")


def test_the_operators_are_replaced(host: None) -> None:
    """By those of the other namespace, with copies of the same strides; and afterwards they are what they were."""
    x = torch.randn(2, 3, 13, 14)[..., 1::2].transpose(0, 1)
    assignment = torch.zeros(3, 2, 13, dtype=torch.int32)
    expected = torch.ops.cuda_ops.group_mean(x, assignment, 1, 1.0)
    given: list[tuple[object, ...]] = []

    def record(*arguments: object) -> torch.Tensor:
        given.append(arguments)
        return torch.ops.cuda_ops_host.group_mean(*arguments)

    run = operator_backend.run_elsewhere(record, "cpu")
    torch.testing.assert_close(run(x, assignment, 1, 1.0), expected)
    (copy, *_) = given[0]
    assert isinstance(copy, torch.Tensor) and torch.equal(copy, x) and copy.stride() == x.stride()
    assert copy.storage_offset() == x.storage_offset() and copy.data_ptr() != x.data_ptr()

    overrides = operator_backend.substitute("cuda_ops_host", "CPU", "cpu", ["group_mean"])
    replaced = torch.ops.cuda_ops.group_mean(x, assignment, 1, 1.0)
    overrides._destroy()
    assert torch.equal(replaced, torch.ops.cuda_ops_host.group_mean(x, assignment, 1, 1.0))
    assert torch.equal(torch.ops.cuda_ops.group_mean(x, assignment, 1, 1.0), expected)


def test_what_is_left_out() -> None:
    """The reference, float64 and what is about the CPU are, and a sample takes every test."""
    listed = {}
    for most in ("0", "1"):
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "--co", "-q", "--no-header", "-p", "no:cacheprovider", "tests/ops"],
            check=True,
            cwd=ROOT,
            env=os.environ | {operator_backend.VARIABLE: "host-cuda", operator_backend.SAMPLE: most},
            capture_output=True,
            text=True,
        )
        listed[most] = [line for line in result.stdout.splitlines() if "::" in line]
    assert not [name for name in listed["0"] if re.search("torch.float64|test_gradcheck|number_of_threads", name)]
    assert not [name for name in listed["0"] if "[reference" in name]
    functions = {name.partition("[")[0] for name in listed["0"]}
    assert len(functions) > 100 and sorted(functions) == sorted(name.partition("[")[0] for name in listed["1"])


@pytest.mark.usefixtures("compiled")
def test_what_the_sanitizers_run() -> None:
    """The program of `make sanitize`, on the CPU."""
    program = [sys.executable, "tests/cuda/sanitize.py", "--device", "cpu"]
    result = subprocess.run(program, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "every operator ran" in result.stdout, result.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_the_gpu() -> None:
    run_suite("cuda", FILES, None)
