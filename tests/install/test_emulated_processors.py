"""The kernels run on processors that this machine is not: one without AVX, and one with AVX2 but no AVX-512.

A small program (kernels_main.cpp) linked with the library's own objects runs one head, forward and backward, under
qemu. Its numbers are compared with the PyTorch reference in float64.
"""

import shutil
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from compiled_objects import compile_all, kernel_objects
from tolerance import assert_close

from build_support import compiler, extension, sources
from cuda_ops import reference, reference_backward

EMULATOR = shutil.which("qemu-x86_64")

pytestmark = [
    pytest.mark.install,
    pytest.mark.skipif(not sources.is_x86_64(), reason="x86-64 processors are emulated on x86-64"),
    pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not on this machine (Debian, Ubuntu: qemu-user)"),
]

TOKENS, SIZE, CLUSTERS, TOP, BITS, ITERATIONS, SCALE = 45, 19, 5, 7, 63, 6, 0.3
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Results:
    """What the kernels return, in the order in which the program writes it."""

    out: torch.Tensor
    log_mass: torch.Tensor
    assignment: torch.Tensor
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


def one_head(dtype: torch.dtype) -> Head:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 1, 1, TOKENS, SIZE, generator=generator).to(dtype)
    mask = torch.rand(1, TOKENS, generator=generator) > 0.2
    return Head(*rows, mask, torch.randn(BITS, SIZE, generator=generator))


def expected(head: Head) -> Results:
    """The reference's results in float64."""
    q, k, v, grad = (x.double() for x in (head.q, head.k, head.v, head.grad))
    forward = reference.improved_clustered(
        q, k, v, head.mask, head.planes, CLUSTERS, TOP, ITERATIONS, SCALE, exact_below=0
    )
    return Results(
        *forward,
        *reference_backward.improved_clustered_backward(
            grad, q, k, v, head.mask, *forward, CLUSTERS, SCALE, exact_below=0
        ),
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("kernels") / "kernels"
    command = compiler.find_compiler()
    made = kernel_objects(compile_all())
    assert command is not None
    flags = [*sources.COMMON_FLAGS, "-DCUDA_OPS_X86", f"-I{extension.PROJECT / sources.SOURCE_FOLDER}"]
    source = Path(__file__).with_name("kernels_main.cpp")
    subprocess.run([*command, *flags, str(source), *map(str, made.values()), "-o", str(target)], check=True)
    return target


def run(program: Path, processor: str, kernels: str, head: Head) -> subprocess.CompletedProcess[bytes]:
    position = head.mask[0].nonzero()[:, 0].int()
    numbers = torch.tensor([TOKENS, SIZE, CLUSTERS, TOP, BITS, len(position), ITERATIONS])
    planes = head.planes.to(accumulation(head))
    arrays = (numbers, position, head.q, head.k, head.v, head.grad, planes)
    message = b"".join(array.contiguous().view(torch.uint8).numpy().tobytes() for array in arrays)
    dtype = str(head.q.dtype).removeprefix("torch.")
    command = [str(EMULATOR), "-cpu", processor, str(program), kernels, dtype]
    return subprocess.run(command, input=message + struct.pack("d", SCALE), capture_output=True, check=False)


def accumulation(head: Head) -> torch.dtype:
    return torch.float64 if head.q.dtype == torch.float64 else torch.float32


def results(output: bytes, head: Head) -> Results:
    """The program's output as tensors."""
    shapes = {
        "out": (head.q.shape, head.q.dtype),
        "log_mass": (head.q.shape[:3], accumulation(head)),
        "assignment": (head.q.shape[:3], torch.int32),
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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(
    ("processor", "kernels"), [("Nehalem", "portable"), ("Haswell", "portable"), ("Haswell", "avx2")]
)
def test_right_numbers(program: Path, processor: str, kernels: str, dtype: torch.dtype) -> None:
    head = one_head(dtype)
    ran = run(program, processor, kernels, head)
    assert ran.returncode == 0, ran.stderr.decode()
    got, want = results(ran.stdout, head), expected(head)
    assert torch.equal(got.assignment, want.assignment)
    assert torch.equal(got.top_keys, want.top_keys)
    for name in ("out", "log_mass", "grad_q", "grad_k", "grad_v"):
        assert_close(name, getattr(got, name), getattr(want, name))


@pytest.mark.parametrize(("processor", "kernels"), [("Nehalem", "avx2"), ("Haswell", "avx512")])
def test_the_emulated_processor_lacks_the_instructions(program: Path, processor: str, kernels: str) -> None:
    """So the test above would notice an instruction that does not belong there."""
    ran = run(program, processor, kernels, one_head(torch.float32))
    assert ran.returncode in (-signal.SIGILL, 128 + signal.SIGILL), ran
