"""Which CUDA operators the build decides to make, with an nvcc that is a script; and what is said where there are none."""

import os
import shlex
from pathlib import Path

import pytest
from setuptools.errors import SetupError

from build_support import compiler, cuda, extension, sources, torch_install

VERSION_FILE = (
    "__version__ = '{version}'\ndebug = False\ncuda{annotation} = {cuda}\ngit_version = 'cf30153'\nhip = None\n"
)
CPU_TORCH = torch_install.TorchInstall(Path("/torch"), "2.13.0+cpu")
CUDA_TORCH = torch_install.TorchInstall(Path("/torch"), "2.11.0+cu130", "13.0")


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without nvcc and GPUs, with none of this machine's settings."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_OPS_ARCHS", "CUDA_OPS_WITH_CUDA", "CUDA_OPS_BUILD", "CXX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(cuda, "USUAL_ROOT", tmp_path / "usual")


def script(target: Path, text: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"#!/bin/sh\n{text}\n")
    target.chmod(0o755)
    return target


def make_nvcc(target: Path, version: str = "13.0", known: str = "75 80 86 90 100 120", top: Path | None = None) -> Path:
    names = " ".join(f"compute_{number}" for number in known.split())
    answers = [
        f'--version) echo "Cuda compilation tools, release {version}, V{version}.88";;',
        f'--list-gpu-arch) printf "%s\\n" {names};;',
        f'--dryrun) echo "#\\$ _TARGET_DIR_=targets/x86_64-linux" >&2; echo "#\\$ TOP={top or target.parent.parent}" >&2;;',
    ]
    return script(target, 'case "$1" in\n' + "\n".join(answers) + "\nesac")


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """An nvcc on the path."""
    return make_nvcc(tmp_path / "path" / "nvcc")


def make_gpus(tmp_path: Path, *capabilities: str) -> None:
    lines = " ".join(capabilities)
    script(tmp_path / "path" / "nvidia-smi", f'test "$1" = --query-gpu=compute_cap && printf "%s\\n" {lines}')


@pytest.mark.parametrize(
    ("version", "annotation", "line", "expected"),
    [
        ("2.13.0+cpu", ": Optional[str]", "None", None),
        ("2.11.0+cu130", ": Optional[str]", "'13.0'", "13.0"),
        ("2.11.0", "", "'12.8'", "12.8"),
        ("2.11.0+cu126", "", "None", "126"),
        ("2.11.0+rocm7.1", ": Optional[str]", "None", None),
    ],
)
def test_a_torch_for_cuda_is_told_without_importing_it(
    tmp_path: Path, version: str, annotation: str, line: str, expected: str | None
) -> None:
    for name in ("include", "lib"):
        (tmp_path / name).mkdir()
    text = VERSION_FILE.format(version=version, annotation=annotation, cuda=line)
    (tmp_path / "version.py").write_text(text)
    found = torch_install.read_torch(tmp_path)
    assert found is not None and (found.version, found.cuda) == (version, expected)


def test_auto_builds_where_there_are_nvcc_and_a_torch_for_cuda(nvcc: Path) -> None:
    decision = cuda.decide(CUDA_TORCH)
    assert decision.toolkit is not None and decision.toolkit.nvcc == nvcc and decision.toolkit.version == "13.0"
    assert decision.architectures == ("8.0", "8.6", "9.0", "10.0", "12.0+PTX")
    assert decision.reason is None and decision.remedy is None


def test_auto_builds_nothing_for_a_torch_without_cuda(nvcc: Path) -> None:
    decision = cuda.decide(CPU_TORCH)
    assert decision.toolkit is None and decision.architectures == ()
    assert decision.reason == "torch 2.13.0+cpu, which they were built against, has no CUDA"
    assert decision.remedy == "install a torch for CUDA, or set CUDA_OPS_WITH_CUDA=1 where there is nvcc"


def test_asked_for_they_are_built_against_any_torch(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_OPS_WITH_CUDA", "1")
    assert cuda.decide(CPU_TORCH).architectures == ("8.0", "8.6", "9.0", "10.0", "12.0+PTX")


def test_forbidden_they_are_not_built(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_OPS_WITH_CUDA", "0")
    decision = cuda.decide(CUDA_TORCH)
    assert decision.toolkit is None and decision.reason == "it was installed with CUDA_OPS_WITH_CUDA=0"
    assert decision.remedy == "unset CUDA_OPS_WITH_CUDA"


def test_an_unknown_wish_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_OPS_WITH_CUDA", "maybe")
    with pytest.raises(SetupError, match="^CUDA_OPS_WITH_CUDA must be 0, 1 or auto, got 'maybe'. Unset it"):
        extension.decide()


def test_wishes_that_contradict_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_OPS_WITH_CUDA", "1")
    with pytest.raises(SetupError, match=r"CUDA_OPS_WITH_CUDA=1 asks for compiled operators, but there was no C\+\+"):
        extension.decide()
    monkeypatch.setenv("CUDA_OPS_BUILD", "0")
    with pytest.raises(SetupError, match="CUDA_OPS_WITH_CUDA=1 asks for CUDA operators and CUDA_OPS_BUILD=0 for none"):
        extension.decide()


def reason_of(monkeypatch: pytest.MonkeyPatch) -> str:
    """Why there is no CUDA code, which "auto" records and "1" makes an error."""
    decision = cuda.decide(CUDA_TORCH)
    assert decision.toolkit is None and decision.reason
    assert decision.remedy == "install the CUDA toolkit 12.0 or newer (CUDA_HOME names its folder)"
    monkeypatch.setenv("CUDA_OPS_WITH_CUDA", "1")
    with pytest.raises(SetupError) as error:
        cuda.decide(CUDA_TORCH)
    assert str(error.value) == (
        f"CUDA_OPS_WITH_CUDA=1 asks for CUDA operators, but {decision.reason}. Please install the CUDA toolkit 12.0 or "
        "newer (CUDA_HOME names its folder), or unset CUDA_OPS_WITH_CUDA."
    )
    return decision.reason


def test_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_of(monkeypatch) == (
        f"there was no nvcc on the PATH or in {tmp_path / 'usual'}, and neither CUDA_HOME nor CUDA_PATH was set"
    )


def test_a_named_toolkit_that_is_none(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert reason_of(monkeypatch) == "CUDA_HOME=/nonexistent has no bin/nvcc"


def test_an_nvcc_that_is_too_old(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nvcc(nvcc, version="11.8")
    assert reason_of(monkeypatch) == f"{nvcc} is of CUDA 11.8, and C++20 needs 12.0 or newer"


def test_an_nvcc_that_fails(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(nvcc, 'echo "nvcc fatal : no licence" >&2; exit 1')
    assert reason_of(monkeypatch) == f"{nvcc} --version fails: nvcc fatal : no licence"


def test_an_nvcc_that_knows_no_usual_architecture(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nvcc(nvcc, known="75 130")
    assert reason_of(monkeypatch) == (
        f"{nvcc} of CUDA 13.0 compiles for none of 8.0, 8.6, 8.9, 9.0, 10.0, 12.0 (it knows 7.5, 13.0)"
    )


def test_an_nvcc_that_knows_no_gpu_of_this_machine(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_gpus(tmp_path, "7.0")
    assert reason_of(monkeypatch).startswith(f"{nvcc} of CUDA 13.0 compiles for none of 7.0 (it knows 7.5, 8.0, ")


def test_where_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_HOME, CUDA_PATH, the path, the usual folder: the first that is there."""
    expected = [make_nvcc(tmp_path / "usual" / "bin" / "nvcc"), make_nvcc(tmp_path / "path" / "nvcc")]
    for name in ("CUDA_PATH", "CUDA_HOME"):
        expected.append(make_nvcc(tmp_path / name / "bin" / "nvcc"))
        monkeypatch.setenv(name, str(tmp_path / name))
    found = []
    for forget in ("CUDA_HOME", "CUDA_PATH", "PATH", None):
        found.append(cuda.find_toolkit().nvcc)
        if forget:
            monkeypatch.setenv(forget, "")
    assert found == expected[::-1]


@pytest.mark.parametrize("folder", ["targets/x86_64-linux/lib", "lib64", "lib"])
def test_the_runtime_is_found_where_nvcc_says_its_root_is(tmp_path: Path, nvcc: Path, folder: str) -> None:
    root = tmp_path / "toolkit"
    make_nvcc(nvcc, top=root / "bin" / "..")
    assert cuda.find_toolkit().lib is None
    (root / "bin").mkdir(parents=True)
    (root / folder).mkdir(parents=True)
    (root / folder / "libcudart_static.a").touch()
    toolkit = cuda.find_toolkit()
    assert toolkit.lib == root / folder
    assert cuda.link_flags(toolkit)[:2] == [f"-L{root / folder}", "-lcudart_static"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("8.0", ("8.0",)),
        ("9.0,8.0", ("8.0", "9.0")),
        ("8.0;9.0+PTX", ("8.0", "9.0+PTX")),
        (" 12.0 , 9.0; 9.0+PTX 9.0, ", ("9.0+PTX", "12.0")),
    ],
)
def test_named_architectures(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, expected: tuple[str, ...]
) -> None:
    make_gpus(tmp_path, "8.6")
    monkeypatch.setenv("CUDA_OPS_ARCHS", named)
    assert cuda.decide(CUDA_TORCH).architectures == expected


@pytest.mark.parametrize(
    ("named", "text"),
    [
        (
            "sm_80,9.0,8",
            "must be a list such as 8.0,9.0 or 8.0;9.0+PTX, got 'sm_80', '8' in 'sm_80,9.0,8'; nvcc 13.0 knows 7.5, 8.0,",
        ),
        ("9.0+ptx", "got '9.0+ptx' in '9.0+ptx'"),
        ("7.0;8.0;9.9+PTX", "CUDA_OPS_ARCHS=7.0;8.0;9.9+PTX names 7.0, 9.9+PTX, which "),
        ("7.0", "cannot compile for; nvcc 13.0 knows 7.5, 8.0, 8.6, 9.0, 10.0, 12.0. Correct it, or unset it"),
    ],
)
def test_architectures_that_cannot_be_had_are_an_error(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch, named: str, text: str
) -> None:
    monkeypatch.setenv("CUDA_OPS_ARCHS", named)
    with pytest.raises(SetupError) as error:
        cuda.decide(CUDA_TORCH)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (("9.0", "9.0"), ("9.0",)),
        (("12.0", "8.6"), ("8.6", "12.0")),
        (("10.3",), ("10.0+PTX",)),
        (("7.0", "8.0"), ("8.0",)),
        (("[N/A]",), ("8.0", "8.6", "9.0", "10.0", "12.0+PTX")),
    ],
    ids=["twins", "two", "newer than nvcc", "one too old", "no answer"],
)
def test_the_gpus_of_this_machine(nvcc: Path, tmp_path: Path, seen: tuple[str, ...], expected: tuple[str, ...]) -> None:
    make_gpus(tmp_path, *seen)
    assert cuda.decide(CUDA_TORCH).architectures == expected


def test_an_nvidia_smi_that_fails_is_no_gpu(nvcc: Path, tmp_path: Path) -> None:
    script(tmp_path / "path" / "nvidia-smi", "echo 9.0; exit 9")
    assert cuda.visible_gpus() == []


def test_flags_of_architectures() -> None:
    assert cuda.generate_flags(["8.0", "12.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_every_file_of_kernels_has_its_command(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "path" / "g++-13", "exit 0")))
    commands = cuda.kernel_commands(extension.PROJECT, cuda.find_toolkit(), ["8.0"])
    assert list(commands) == sorted((extension.PROJECT / sources.SOURCE_FOLDER / "cuda" / "kernels").glob("*.cu"))
    for command in commands.values():
        assert command[0] == str(nvcc) and "-fmad=false" in command
        assert f"-ccbin={tmp_path / 'path' / 'g++-13'}" in command


def test_a_source_may_have_its_own_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are compiled once, and again only where something changed."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    record = 'printf "%s " "$0" "$@" >>"$0.calls"; echo >>"$0.calls"\nwhile [ $# -gt 0 ]; do case "$1" in -o) : >"$2";; -MF) echo "x: $0" >"$2";; esac; shift; done'
    first, second = (script(tmp_path / name, record) for name in ("cc", "nvcc"))
    for program in (first, second):
        os.utime(program, (0, 0))  # older than the objects, which come within the same tick of the clock
    (tmp_path / "calls").mkdir()
    host, kernels = tmp_path / "calls" / "a.cpp", tmp_path / "calls" / "a.cu"
    monkeypatch.setenv("CXXFLAGS", "-g")

    def compile_both(*flags: str) -> list[Path]:
        other = {kernels: [str(second), *flags]}
        return compiler.compile_objects([str(first)], {host: ["-O1"]}, tmp_path / "objects", other)

    def calls(program: Path) -> list[list[str]]:
        return [shlex.split(line) for line in Path(f"{program}.calls").read_text().splitlines()]

    made = compile_both("-O2")
    assert [path.name.rpartition("-")[2] for path in made] == ["a.cu.o", "a.cpp.o"]
    assert calls(first)[0][1:3] == ["-g", "-O1"] and calls(second)[0][1:3] == ["-O2", "-c"]
    compile_both("-O2")
    assert len(calls(first)) == len(calls(second)) == 1
    compile_both("-O3")
    assert len(calls(first)) == 1 and len(calls(second)) == 2


def test_a_compile_that_was_cut_off_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half-written object it left is newer than its sources, and an earlier compile was recorded."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    source = tmp_path / "a.cpp"
    source.touch()
    record = 'echo >>"$0.calls"\nwhile [ $# -gt 0 ]; do case "$1" in -o) : >"$2";; -MF) echo "x: $0" >"$2";; esac; shift; done'
    program = script(tmp_path / "cc", f'{record}\n[ ! -e "$0.cut-off" ]')
    cut_off, calls = Path(f"{program}.cut-off"), Path(f"{program}.calls")

    os.utime(program, (1, 1))

    def compile_it() -> list[Path]:
        return compiler.compile_objects([str(program)], {source: []}, tmp_path / "objects")

    [made] = compile_it()
    os.utime(made, (0, 0))  # the sources have changed since
    cut_off.touch()
    with pytest.raises(compiler.CompilerError):
        compile_it()
    cut_off.unlink()
    assert compile_it() == [made] and len(calls.read_text().splitlines()) == 3


def test_what_the_status_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a library without CUDA operators: why, and what to do, in the report and in the warning."""
    import torch

    from cuda_ops import __main__ as report
    from cuda_ops import _library

    without = _library.Status(True, cuda_reason="there was no nvcc", cuda_remedy="install the CUDA toolkit")
    monkeypatch.setattr(_library, "status", lambda: without)
    assert _library.backend_for("cuda", torch.float32) == "reference"
    _library._warn_once.cache_clear()
    warning = "no operators for GPUs were built: there was no nvcc. To change that, install the CUDA toolkit"
    with pytest.warns(_library.ReferenceBackendWarning, match=warning):
        _library.warn_if_reference("cuda", torch.float32)
    assert "run on the PyTorch reference, which is slow: there was no nvcc\n" in report.report(without)
    assert "GPU remedy:    install the CUDA toolkit" in report.report(without)

    with_cuda = _library.Status(True, cuda_architectures=("8.0", "9.0+PTX"), cuda="13.0")
    monkeypatch.setattr(_library, "status", lambda: with_cuda)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert _library.backend_for("cuda", dtype) == "cuda"
    assert _library.backend_for("cuda", torch.float64) == "reference"
    with pytest.warns(
        _library.ReferenceBackendWarning, match="torch.float64 tensors on 'cuda'. To change that, use float32"
    ):
        _library.warn_if_reference("cuda", torch.float64)
    assert "GPU:           8.0, 9.0+PTX; by nvcc 13.0" in report.report(with_cuda)
