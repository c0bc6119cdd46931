"""Installing with pip, uv and build: the operators are compiled, no second torch is fetched, nothing is silently slow."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from environments import Environment, run, succeeded

from build_support import compiler, cuda

pytestmark = [
    pytest.mark.install,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler on this machine"),
]


def why_no_toolkit() -> str | None:
    try:
        cuda.find_toolkit()
    except cuda.NoToolkit as error:
        return f"no operators for GPUs can be compiled: {error}"
    return None


def quick_nvcc() -> dict[str, str]:
    """What makes nvcc leave out most optimizations, where it can: these kernels are never run."""
    flag = "--Ofast-compile"
    offered = subprocess.run([cuda.find_toolkit().nvcc, "--help"], capture_output=True, text=True, check=True).stdout
    return {"NVCC_APPEND_FLAGS": f"{flag}=max"} if flag in offered else {}


NO_TOOLKIT = why_no_toolkit()
PACKAGES = ("bert_cluster", "cuda_ops", "glue_eval", "squad_eval")
USE = """
import json, warnings, torch, cuda_ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        q, k, v = torch.randn(3, 1, 2, 40, 16)
        out = cuda_ops.improved_clustered(q, k, v, None, torch.randn(8, 16), 4, 6)[0]
assert out.shape == (1, 2, 40, 16) and out.isfinite().all()
print(json.dumps([cuda_ops.backend_for("cpu", torch.float32), [type(w.message).__name__ for w in caught]]))
"""


def assert_compiled(environment: Environment) -> None:
    """The operators of this environment are compiled, loaded, in its own folder, and give a result."""
    report = succeeded(environment.run("-m", "cuda_ops"))
    assert f"built against: torch {torch.__version__}, with " in report
    assert f"library:       {environment.folder}" in report
    backend, warned = use(environment)
    assert backend.startswith("cpu-") and warned == []


def use(environment: Environment, **variables: str) -> tuple[str, list[str]]:
    """Backend and warnings of two calls of an operator."""
    return json.loads(succeeded(environment.run("-c", USE, **variables)).splitlines()[-1])


def dispatches(environment: Environment, operator: str, key: str) -> bool:
    """Whether the library of this environment has registered a kernel of its own."""
    asked = f"import torch, cuda_ops; print(torch._C._dispatch_has_kernel_for_dispatch_key('{operator}', '{key}'))"
    return succeeded(environment.run("-c", asked)).splitlines()[-1] == "True"


def names(*arguments: str) -> set[str]:
    """What other objects see of the functions in these, by nm."""
    listed = subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout
    return {match[1] for match in re.finditer(r"^[0-9a-f]+ [TWV] (.*)$", listed, re.MULTILINE)}


def requirements(environment: Environment, project: Path, **variables: str) -> list[str]:
    """What the backend asks for before it builds a wheel for this environment."""
    hook = "import json; from build_support import backend; print(json.dumps(backend.get_requires_for_build_wheel()))"
    asked = run([str(environment.python), "-c", hook], project, variables)
    return json.loads(succeeded(asked).partition("[")[2].partition("]")[0].join("[]"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A C++ compiler that leaves out all optimizations: a fifth of the time, where what is built need not be fast.

    With the flags of a build the library is compiled in the environment of the tests.
    """
    script = tmp_path_factory.mktemp("compiler") / "unoptimized"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(compiler.find_compiler() or [])} "$@" -O0\n', encoding="utf-8")
    script.chmod(0o755)
    return {"CXX": str(script)}


def pip_install(environment: Environment, project: Path, index: Path, *flags: str, **variables: str) -> str:
    arguments = ["install", "--verbose", *flags, str(project)]
    return succeeded(environment.pip(*arguments, PIP_FIND_LINKS=str(index), **variables))


def test_backend_asks_for_torch_exactly_where_there_is_none(
    environment: Environment, project: Path, wheelhouse: Path
) -> None:
    succeeded(environment.pip("install", "setuptools", PIP_FIND_LINKS=str(wheelhouse)))
    assert requirements(environment, project) == ["torch>=2.11"]
    assert requirements(environment, project, CUDA_OPS_BUILD_TORCH="torch==2.12.1") == ["torch==2.12.1"]
    assert requirements(environment, project, CUDA_OPS_BUILD="0") == []
    assert requirements(environment, project, CXX="/nonexistent/g++") == []
    succeeded(environment.pip("install", "torch", PIP_FIND_LINKS=str(wheelhouse)))
    assert requirements(environment, project) == []


def test_backend_asks_for_a_newer_torch_where_there_is_an_old_one(
    environment: Environment, project: Path, wheelhouse: Path
) -> None:
    succeeded(environment.pip("install", "setuptools", PIP_FIND_LINKS=str(wheelhouse)))
    (old,) = environment.folder.glob("lib/python*/site-packages")
    for name in ("include", "lib"):
        (old / "torch" / name).mkdir(parents=True)
    (old / "torch" / "__init__.py").touch()
    for version, expected in (("2.10.1+cu126", ["torch>=2.11"]), ("2.11.0", [])):
        (old / "torch" / "version.py").write_text(f"__version__ = '{version}'\n")
        assert requirements(environment, project) == expected


def test_pip_in_an_empty_environment(
    environment: Environment, project: Path, wheelhouse: Path, quick: dict[str, str]
) -> None:
    output = pip_install(environment, project, wheelhouse, **quick)
    assert "the build asks for torch>=2.11" in output
    assert_compiled(environment)
    for command in ("squad-eval", "glue-eval", "bert-cluster"):
        assert (environment.folder / "bin" / command).is_file()


def test_pip_with_torch_fetches_no_other(
    environment: Environment, project: Path, wheelhouse: Path, setuptools_only: Path, quick: dict[str, str]
) -> None:
    succeeded(environment.pip("install", "torch", PIP_FIND_LINKS=str(wheelhouse)))
    output = pip_install(environment, project, setuptools_only, "--no-deps", **quick)
    assert "asks for torch" not in output
    assert_compiled(environment)
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__}, which they were built against, has no CUDA"
        assert f"no CUDA operators are built: {reason}. To change that, install a torch for CUDA, or set " in output
        report = environment.run("-m", "cuda_ops").stdout
        assert (
            f"GPU:           none; tensors on a GPU run on the PyTorch reference, which is slow: {reason}\n" in report
        )
        assert (
            "GPU remedy:    install a torch for CUDA, or set CUDA_OPS_WITH_CUDA=1 where there is nvcc, then " in report
        )
        assert not dispatches(environment, "cuda_ops::group_mean", "CUDA")


@pytest.mark.skipif(NO_TOOLKIT is not None, reason=str(NO_TOOLKIT))
def test_pip_with_operators_for_gpus(
    environment: Environment, project: Path, wheelhouse: Path, setuptools_only: Path, quick: dict[str, str]
) -> None:
    """They load beside a torch without CUDA too, and define nothing that another library could take for its own."""
    succeeded(environment.pip("install", "torch", PIP_FIND_LINKS=str(wheelhouse)))
    variables = {"CUDA_OPS_WITH_CUDA": "1", "CUDA_OPS_ARCHS": "8.0"} | quick | quick_nvcc()
    output = pip_install(environment, project, setuptools_only, "--no-deps", **variables)
    assert "CUDA operators are built by " in output
    assert_compiled(environment)
    assert f"GPU:           8.0; by nvcc {cuda.find_toolkit().version}\n" in environment.run("-m", "cuda_ops").stdout
    assert dispatches(environment, "cuda_ops::group_mean", "CUDA")
    asked = "import cuda_ops, torch; print([cuda_ops.backend_for('cuda', t) for t in (torch.half, torch.double)])"
    assert succeeded(environment.run("-c", asked)).splitlines()[-1] == "['cuda', 'reference']"
    (library,) = environment.folder.glob("lib/python*/site-packages/cuda_ops/_C.abi3.so")
    defined = names("--dynamic", "--defined-only", str(library))
    exported = {name for name in defined if "cuda" in name and not name.startswith("_ZNSt")}  # not std:: of our types
    assert exported == {"cuda_ops_active_instruction_set", "cuda_ops_instruction_sets"}
    kernels = [str(path) for path in (project / "build" / "objects").glob("*.cu.o")]
    needed = subprocess.run(["nm", "--undefined-only", *kernels], capture_output=True, text=True, check=True).stdout
    assert kernels and not re.search(r" U exit$", needed, re.MULTILINE), (
        "a function of the device called by host code: nvcc lets it end the process"
    )
    of_cpu, of_gpu = (
        {name for name in names("--defined-only", "--demangle", *map(str, found)) if name.startswith("cuda_ops::")}
        for found in ((project / "build" / "objects").glob(f"*{side}-*.o") for side in ("cpu", "cuda"))
    )
    assert of_cpu and of_gpu
    assert not {name for name in of_cpu & of_gpu if not name.startswith("cuda_ops::check_")}, (
        "of two the linker keeps one"
    )


def test_operators_for_gpus_that_were_asked_for_and_cannot_be_had(
    environment: Environment, project: Path, wheelhouse: Path
) -> None:
    variables = {"CUDA_OPS_WITH_CUDA": "1", "CUDA_HOME": "/nonexistent"}
    output = failed_build(environment, project, wheelhouse, **variables)
    assert "CUDA_OPS_WITH_CUDA=1 asks for CUDA operators, but CUDA_HOME=/nonexistent has no bin/nvcc." in output


def test_pip_where_no_torch_can_be_had(environment: Environment, project: Path, setuptools_only: Path) -> None:
    result = environment.pip("install", "--verbose", str(project), PIP_FIND_LINKS=str(setuptools_only))
    assert result.returncode != 0
    assert "No matching distribution found for torch>=2.11" in result.stdout + result.stderr
    assert not environment.has("cuda_ops")


def test_build_without_torch_stops_with_the_commands(
    environment: Environment, project: Path, setuptools_only: Path
) -> None:
    succeeded(environment.pip("install", "setuptools", PIP_FIND_LINKS=str(setuptools_only)))
    result = environment.pip("install", "--no-build-isolation", "--no-deps", str(project))
    assert result.returncode != 0 and not environment.has("cuda_ops")
    assert "the build sees none that is new enough (torch >= 2.11)" in result.stdout + result.stderr
    assert "python -m pip install --no-build-isolation ." in result.stdout + result.stderr


def test_uv_in_an_empty_environment(
    environment: Environment, project: Path, wheelhouse: Path, tmp_path: Path, quick: dict[str, str]
) -> None:
    pytest.importorskip("uv")
    index = ["--offline", "--no-index", "--find-links", str(wheelhouse), "--cache-dir", str(tmp_path / "cache")]
    target = ["--python", str(environment.python)]
    command = [sys.executable, "-m", "uv", "pip", "install", *target, *index, str(project)]
    succeeded(run(command, tmp_path, quick))
    assert_compiled(environment)


def test_uv_where_no_torch_can_be_had(
    environment: Environment, project: Path, setuptools_only: Path, tmp_path: Path
) -> None:
    pytest.importorskip("uv")
    index = ["--offline", "--no-index", "--find-links", str(setuptools_only), "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "uv", "build", "--wheel", *index, "--python", str(environment.python)]
    result = run([*command, "--out-dir", str(tmp_path / "dist"), str(project)], tmp_path, {})
    assert result.returncode != 0 and not list(tmp_path.glob("dist/*.whl"))
    assert "torch" in result.stderr


def test_source_distribution_and_wheel(
    environment: Environment, project: Path, wheelhouse: Path, tmp_path: Path, quick: dict[str, str]
) -> None:
    """`python -m build`: the wheel is built from the source distribution, holds the four packages, and runs."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(project)]
    succeeded(run(command, tmp_path, {"PIP_FIND_LINKS": str(wheelhouse)} | quick))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {"setup.py", "LICENSE", "build_support/backend.py", "cuda_ops/csrc/cpu/kernels/avx512.cpp"} <= names

    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    files = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    ours = {file for file in files if not file.parts[0].endswith(".dist-info")}
    expected = {path.relative_to(project) for name in PACKAGES for path in (project / name).rglob("*.py")}
    assert {file for file in ours if file.suffix == ".py"} == expected
    assert {file.parts[0] for file in ours} == set(PACKAGES)
    assert {Path("cuda_ops/_C.abi3.so"), Path("cuda_ops/_build_info.json")} <= ours
    assert not [file for file in ours if file.suffix in (".cpp", ".cu", ".h", ".o")]

    succeeded(environment.pip("install", str(wheel), PIP_FIND_LINKS=str(wheelhouse)))
    assert_compiled(environment)
    assert use(environment, CUDA_OPS_INSTRUCTION_SET="portable") == ["cpu-portable", []]


@pytest.mark.parametrize(
    ("variables", "reason", "remedy"),
    [
        ({"CUDA_OPS_BUILD": "0"}, "it was installed with CUDA_OPS_BUILD=0", "unset CUDA_OPS_BUILD, then install again"),
        ({"CXX": "/nonexistent/g++"}, "CXX=/nonexistent/g++ names no program", "install a C++ compiler"),
        ({"CXX": "", "PATH": "/nonexistent"}, "there was no C++ compiler", "install a C++ compiler"),
    ],
    ids=["CUDA_OPS_BUILD=0", "CXX", "PATH"],
)
def test_install_without_compiled_operators(
    environment: Environment,
    project: Path,
    wheelhouse: Path,
    variables: dict[str, str],
    reason: str,
    remedy: str,
) -> None:
    pip_install(environment, project, wheelhouse, **variables)
    report = environment.run("-m", "cuda_ops")
    assert report.returncode == 1
    assert f"reason:        {reason}" in report.stdout and f"remedy:        {remedy}" in report.stdout
    assert use(environment) == ["reference", ["ReferenceBackendWarning"]]


def failed_build(environment: Environment, project: Path, index: Path, **variables: str) -> str:
    result: subprocess.CompletedProcess[str] = environment.pip(
        "install", "--no-deps", str(project), PIP_FIND_LINKS=str(index), **variables
    )
    assert result.returncode != 0 and not environment.has("cuda_ops")
    return result.stdout + result.stderr


def test_a_compile_error_shows_how_to_go_on(environment: Environment, project: Path, wheelhouse: Path) -> None:
    output = failed_build(environment, project, wheelhouse, CXX=shutil.which("false") or "false")
    assert "cuda_ops could not be compiled: this command failed with exit status 1:" in output
    assert "CUDA_OPS_BUILD=0 python -m pip install ." in output


def test_compiled_operators_that_were_asked_for_and_cannot_be_had(
    environment: Environment, project: Path, wheelhouse: Path
) -> None:
    variables = {"CUDA_OPS_BUILD": "1", "CXX": "/nonexistent/g++"}
    output = failed_build(environment, project, wheelhouse, **variables)
    assert "CUDA_OPS_BUILD=1 asks for compiled operators, but CXX=/nonexistent/g++ names no program" in output


def test_an_unknown_wish_is_an_error(environment: Environment, project: Path, wheelhouse: Path) -> None:
    output = failed_build(environment, project, wheelhouse, CUDA_OPS_BUILD="maybe")
    assert "CUDA_OPS_BUILD must be 0 or 1, got 'maybe'" in output
