"""The vectors' exponential, in each instruction set that this processor has or an emulator here: within 2 units in the last place over its whole range."""

import signal
import subprocess

import numpy
import pytest
from emulated import ARM64, X86_64

from build_support import sources

pytestmark = pytest.mark.install
TYPES = {"float32": numpy.float32, "float64": numpy.float64}
HIGHEST = {"float32": 71, "float64": 671}  # above them it saturates
LANES = 16  # the widest vector has so many float32


@pytest.fixture(
    scope="module",
    params=[(X86_64, "portable"), (X86_64, "avx2"), (X86_64, "avx512"), (ARM64, "neon")],
    ids=lambda param: param[1],
)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs it."""
    machine, name = request.param
    target = tmp_path_factory.mktemp(name) / "exponential"
    flags = [*sources.INSTRUCTION_SET_FLAGS[name], f"-DCUDA_OPS_{name.upper()}"]
    command = machine.command(machine.build("exponential_main.cpp", flags, [], target))
    run = subprocess.run([*command, "float32"], input=bytes(64), capture_output=True, check=False)
    if run.returncode == -signal.SIGILL:
        pytest.skip(f"this processor has no {name}")
    return command


def exponential(program: list[str], x: numpy.ndarray) -> numpy.ndarray:
    padded = numpy.zeros(-(-len(x) // LANES) * LANES, x.dtype)
    padded[: len(x)] = x
    done = subprocess.run([*program, x.dtype.name], input=padded.tobytes(), capture_output=True, check=True)
    return numpy.frombuffer(done.stdout, x.dtype)[: len(x)]


def largest_error(program: list[str], x: numpy.ndarray) -> float:
    """In units in the last place of the result, against a wider type; subnormal results have the smallest unit."""
    wide = numpy.float64 if x.dtype == numpy.float32 else numpy.longdouble
    right = numpy.exp(x.astype(wide))
    unit = numpy.spacing(right.astype(x.dtype)).astype(wide)
    return float((abs(exponential(program, x).astype(wide) - right) / unit).max())


def test_every_float_in_steps(program: list[str]) -> None:
    """All float32 from the least that is not rounded to 0 up to 71, every 997th of them; a softmax uses those below 0."""
    bits = numpy.arange(0, numpy.float32(104).view(numpy.int32), 997, dtype=numpy.int32)
    below = -bits.view(numpy.float32)
    above = bits[bits <= numpy.float32(HIGHEST["float32"]).view(numpy.int32)].view(numpy.float32)
    assert max(largest_error(program, below), largest_error(program, above)) <= 2


def test_doubles(program: list[str]) -> None:
    generator = numpy.random.RandomState(1)
    x = numpy.concatenate(
        [
            generator.uniform(-745, HIGHEST["float64"], 200_003),
            generator.uniform(-1, 1, 100_003),
            -(10.0 ** generator.uniform(-300, 0, 10_007)),
        ]
    )
    assert largest_error(program, x) <= 2


@pytest.mark.parametrize("name", TYPES)
def test_ends_of_the_range(program: list[str], name: str) -> None:
    kind = TYPES[name]
    tiny = numpy.finfo(kind).smallest_subnormal
    x = numpy.array([-numpy.inf, -1e4, 0.0, -0.0, tiny, -tiny, numpy.nan, 1e4, numpy.inf], kind)
    least, none, zero, minus_zero, *around_one, nan, large, infinite = exponential(program, x)
    assert (least, none) == (0, 0) and (zero, minus_zero) == (1, 1) and around_one == [1, 1]
    assert numpy.isnan(nan)
    assert large == infinite and abs(numpy.log(large) - HIGHEST[name]) < 1e-4


@pytest.mark.parametrize("name", TYPES)
def test_results_between_zero_and_the_least_normal_number(program: list[str], name: str) -> None:
    kind = TYPES[name]
    information = numpy.finfo(kind)
    x = numpy.linspace(float(numpy.log(information.tiny)) - 30, float(numpy.log(information.tiny)), 10_007).astype(kind)
    assert largest_error(program, x[numpy.exp(x.astype(numpy.longdouble)) > 0]) <= 2
