"""The kernels run on processors that this machine is not: x86-64 without AVX, x86-64 with AVX2 but no AVX-512, 64-bit Arm.

A small program (kernels_main.cpp) linked with the library's own objects runs one head, forward and backward, under
qemu. Its numbers are compared with the PyTorch reference in float64.
"""

import functools
import signal
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from emulated import ARM64, X86_64, Emulated
from tolerance import assert_close

from cuda_ops import reference, reference_backward, reference_refined, reference_refined_backward

pytestmark = pytest.mark.install

TOKENS, SIZE, CLUSTERS, TOP, BITS, ITERATIONS, SCALE = 45, 19, 5, 7, 63, 6, 0.3
KEY_CLUSTERS, BAND, SAMPLE = 3, 2, 23
METHODS = ("improved_clustered", "refined_clustered")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RUNS = (
    (X86_64, "Nehalem", "portable"),
    (X86_64, "Haswell", "portable"),
    (X86_64, "Haswell", "avx2"),
    (ARM64, "cortex-a53", "portable"),
    (ARM64, "cortex-a53", "neon"),
)
"""Family, processor and the kernels that run on it."""


@dataclass
class Results:
    """What the kernels return, in the order in which the program writes it; only refined_clustered has key clusters."""

    out: torch.Tensor
    log_mass: torch.Tensor
    assignment: torch.Tensor
    key_assignment: torch.Tensor | None
    top_keys: torch.Tensor
    grad_q: torch.Tensor
    grad_k: torch.Tensor
    grad_v: torch.Tensor


@dataclass
class Head:
    """One head's input."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad: torch.Tensor
    mask: torch.Tensor
    planes: torch.Tensor

    @property
    def accumulation(self) -> torch.dtype:
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32


def one_head(dtype: torch.dtype) -> Head:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 1, 1, TOKENS, SIZE, generator=generator).to(dtype)
    mask = torch.rand(1, TOKENS, generator=generator) > 0.2
    return Head(*rows, mask, torch.randn(BITS, SIZE, generator=generator))


def expected(head: Head, method: str) -> Results:
    """The reference's results in float64."""
    q, k, v, grad = (x.double() for x in (head.q, head.k, head.v, head.grad))
    if method == "refined_clustered":
        budgets = (CLUSTERS, TOP, KEY_CLUSTERS, BAND, ITERATIONS, SAMPLE)
        refined = reference_refined.refined_clustered(q, k, v, head.mask, *budgets, SCALE, exact_below=0)
        counts = (CLUSTERS, KEY_CLUSTERS, BAND, SCALE, 0)
        return Results(
            *refined,
            *reference_refined_backward.refined_clustered_backward(grad, q, k, v, head.mask, *refined, *counts),
        )
    out, log_mass, assignment, top_keys = reference.improved_clustered(
        q, k, v, head.mask, head.planes, CLUSTERS, TOP, ITERATIONS, SCALE, exact_below=0
    )
    decisions = (out, log_mass, assignment, top_keys)
    gradients = reference_backward.improved_clustered_backward(
        grad, q, k, v, head.mask, *decisions, CLUSTERS, SCALE, exact_below=0
    )
    return Results(out, log_mass, assignment, None, top_keys, *gradients)


@pytest.fixture(scope="module")
def program_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Emulated], Path]:
    """The program of a family, made when it is first asked for."""

    @functools.cache
    def build(machine: Emulated) -> Path:
        machine.emulation()  # before the long part
        target = tmp_path_factory.mktemp("kernels") / "kernels"
        return machine.build("kernels_main.cpp", (), [*machine.kernels().values()], target)

    return build


def run(
    machine: Emulated, program: Path, processor: str, kernels: str, head: Head, method: str
) -> subprocess.CompletedProcess[bytes]:
    position = head.mask[0].nonzero()[:, 0].int()
    sizes = (TOKENS, SIZE, CLUSTERS, TOP, BITS, KEY_CLUSTERS, len(position), ITERATIONS, BAND, SAMPLE)
    planes = head.planes.to(head.accumulation)
    arrays = (torch.tensor(sizes), position, head.q, head.k, head.v, head.grad, planes)
    message = b"".join(array.contiguous().view(torch.uint8).numpy().tobytes() for array in arrays)
    dtype = str(head.q.dtype).removeprefix("torch.")
    command = machine.command(program, processor)
    return subprocess.run(
        [*command, method, kernels, dtype], input=message + struct.pack("d", SCALE), capture_output=True, check=False
    )


def results(output: bytes, head: Head) -> Results:
    """The program's output as tensors."""
    shapes = {
        "out": (head.q.shape, head.q.dtype),
        "log_mass": (head.q.shape[:3], head.accumulation),
        "assignment": (head.q.shape[:3], torch.int32),
        "key_assignment": (head.q.shape[:3], torch.int32),
        "top_keys": ((1, 1, CLUSTERS, TOP), torch.int32),
    }
    shapes |= dict.fromkeys(("grad_q", "grad_k", "grad_v"), (head.q.shape, head.q.dtype))
    tensors, offset = {}, 0
    for name, (shape, dtype) in shapes.items():
        count = torch.Size(shape).numel()
        tensors[name] = torch.frombuffer(bytearray(output), dtype=dtype, count=count, offset=offset).reshape(shape)
        offset += count * dtype.itemsize
    assert offset == len(output)
    return Results(**tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("machine", "processor", "kernels"), RUNS, ids=lambda part: getattr(part, "emulator", part))
def test_right_numbers(
    program_of: Callable[[Emulated], Path],
    machine: Emulated,
    processor: str,
    kernels: str,
    dtype: torch.dtype,
    method: str,
) -> None:
    head = one_head(dtype)
    ran = run(machine, program_of(machine), processor, kernels, head, method)
    assert ran.returncode == 0, ran.stderr.decode()
    got, want = results(ran.stdout, head), expected(head, method)
    for name in ("assignment", "key_assignment", "top_keys"):
        decision = getattr(want, name)
        assert decision is None or torch.equal(getattr(got, name), decision), name
    for name in ("out", "log_mass", "grad_q", "grad_k", "grad_v"):
        assert_close(name, getattr(got, name), getattr(want, name))


@pytest.mark.parametrize(
    ("machine", "processor", "kernels"),
    [(X86_64, "Nehalem", "avx2"), (X86_64, "Haswell", "avx512")],
    ids=lambda part: getattr(part, "emulator", part),
)
def test_the_emulated_processor_lacks_the_instructions(
    program_of: Callable[[Emulated], Path], machine: Emulated, processor: str, kernels: str
) -> None:
    """So the test above would notice an instruction that does not belong there."""
    ran = run(machine, program_of(machine), processor, kernels, one_head(torch.float32), METHODS[0])
    assert ran.returncode in (-signal.SIGILL, 128 + signal.SIGILL), ran
