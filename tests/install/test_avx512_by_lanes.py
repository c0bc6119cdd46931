"""The AVX-512 kernels on a processor without AVX-512, which has AVX2.

avx512_by_lanes/immintrin.h has the intrinsics that they use, lane by lane. A copy of the package has a library where the
kernels compiled with that header stand in the place of AVX2's; tests/ops runs on it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import operator_backend
import pytest
from compiled_objects import compile_all

from build_support import compiler, extension, sources, torch_install
from cuda_ops import _library

pytestmark = pytest.mark.install
HEADER = Path(__file__).with_name("avx512_by_lanes")
SAMPLE = os.environ.get(operator_backend.SAMPLE, "2")
"""Parameter sets of each test; CUDA_OPS_TEST_SAMPLE=100000 runs all of them."""


def compile_by_lanes(folder: Path) -> Path:
    """The object of the AVX-512 kernels, under the name of AVX2's."""
    command = compiler.find_compiler()
    assert command is not None
    source = sources.kernel_sources(extension.PROJECT, sources.X86_64)["avx512"]
    common = sources.common_flags(extension.PROJECT, sources.X86_64)
    # GCC tells that vectors of 64 bytes are passed in another way than with AVX-512.
    here = ["-O1", f"-I{HEADER}", "-Davx512_kernels=avx2_kernels", "-Werror", "-Wno-psabi"]
    flags = [*common, *sources.INSTRUCTION_SET_FLAGS["avx2"], *here]
    return compiler.compile_objects(command, {source: flags}, folder)[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the copy."""
    status = _library.status()
    if "avx512" not in status.instruction_sets:
        pytest.skip("the library has no AVX-512 code")
    if status.active_instruction_set != "avx2":
        pytest.skip("this processor has AVX-512 itself, or no AVX2")
    folder = tmp_path_factory.mktemp("avx512_by_lanes")
    copy = folder / "cuda_ops"
    copy.mkdir()
    for file in (extension.PROJECT / "cuda_ops").glob("*.py"):
        shutil.copy(file, copy)
    command, torch = compiler.find_compiler(), torch_install.find_torch()
    objects = compile_all()
    assert command is not None and torch is not None
    avx2 = sources.kernel_sources(extension.PROJECT, sources.X86_64)["avx2"]
    objects[avx2] = compile_by_lanes(folder)
    compiler.link(command, [*objects.values()], copy / "_C.abi3.so", torch.lib)
    without = {"cuda": None, "cuda_architectures": [], "cuda_reason": "it is for a test", "cuda_remedy": "take another"}
    extension.write_build_info(folder, compiled=True, torch=torch.version, compiler="of a test", **without)
    return folder


def run(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Python with the copy in the place of the package."""
    path = os.pathsep.join([str(package), str(extension.PROJECT)])
    environment = os.environ | {"PYTHONPATH": path, operator_backend.SAMPLE: SAMPLE}
    return subprocess.run(
        [sys.executable, "-P", *command],
        check=False,
        cwd=extension.PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_the_operators_pass(package: Path) -> None:
    status = run(package, "-m", "cuda_ops")
    assert str(package) in status.stdout and "in use: avx2" in status.stdout, status.stdout + status.stderr
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-m", "instruction_path", "-k", "not reference"]
    result = run(package, "-m", "pytest", *options, "tests/ops")
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-6000:] + result.stderr[-2000:]
