"""nvcc's own code of kernels, its PTX, on the host: it computes what their C++ computes there. Skipped where there is no nvcc.

Here are the kernels of attention over lists, in one of which nvcc once took a number for a multiple of three; `make cuda-ptx` runs all of them. The translator is tested by itself.
"""

import shutil
import subprocess
from pathlib import Path

import host_program
import numpy as np
import ptx_program
import ptx_translation
import pytest
from host_library import HERE

FILES = ("exact_attention", "refined_attention")
START = """
.entry {name}(.param .u64 to)
.maxntid 32, 1, 1
{{
  .reg .pred %p<9>;
  .reg .b16 %rs<9>;
  .reg .b32 %r<9>;
  .reg .f32 %f<33>;
  .reg .b64 %rd<9>;
  .shared .align 16 .b8 table_of_{name}[256];
  ld.param.u64 %rd1, [to];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd2, %rd1, %rd2;  // a word of each thread
"""
END = "  st.global.u32 [%rd2], %r2;\n  ret;\n}"
KERNELS = {
    "predicates": """
        setp.lt.s32 %p1, %r1, 9;
        mov.u32 %r2, 5;
        @%p1 mov.u32 %r2, 6;
        @!%p1 bra $L_1;
        add.s32 %r2, %r2, 1;
      $L_1:
        selp.b32 %r2, %r2, -1, %p1;""",
    "signs": """
        sub.s32 %r3, %r1, 16;
        shr.s32 %r4, %r3, 1;
        shr.u32 %r5, %r3, 31;
        cvt.s64.s32 %rd3, %r3;
        shr.s64 %rd3, %rd3, 40;
        cvt.u32.u64 %r6, %rd3;
        add.s32 %r2, %r4, %r5;
        mad.lo.s32 %r2, %r6, 100, %r2;""",
    "floats": """
        cvt.rn.f32.s32 %f32, %r1;
        fma.rn.f32 %f2, %f32, 0f3F000000, 0f3F800000;
        mov.b32 %r2, %f2;
        setp.gt.f32 %p1, %f2, 0f7FC00000;
        @%p1 mov.u32 %r2, 0;
        setp.gtu.f32 %p1, %f2, 0f7FC00000;
        @!%p1 mov.u32 %r2, 0;""",
    "shuffles": """
        shfl.sync.bfly.b32 %r3|%p1, %r1, 5, 31, -1;
        shfl.sync.idx.b32 %r4|%p2, %r3, 2, 31, -1;
        setp.lt.s32 %p3, %r1, 3;
        vote.sync.ballot.b32 %r5, %p3, -1;
        add.s32 %r2, %r3, %r4;
        mad.lo.s32 %r2, %r5, 100, %r2;""",
    "vectors": """
        shl.b32 %r3, %r1, 3;
        mov.u32 %r4, table_of_vectors;
        add.s32 %r5, %r4, %r3;
        st.shared.v2.u32 [%r5], {%r1, %r3};
        bar.sync 0;
        and.b32 %r3, %r3, -16;
        add.s32 %r5, %r4, %r3;
        ld.shared.v4.u32 {_, %r6, %r7, _}, [%r5];
        mad.lo.s32 %r2, %r6, 100, %r7;""",
    "scopes": """
        { .reg .b16 low;
          mov.b32 {low, %rs1}, 0x20001U; }
        cvt.u32.u16 %r2, %rs1;
        { .reg .b64 %tmp;
          mov.b64 %tmp, {%r2, %r1};
          shr.u64 %tmp, %tmp, 31;
          cvt.u32.u64 %r2, %tmp; }""",
    "misaligned": "ld.global.v2.u32 {%r2, %r3}, [%rd1+4];",
    "outside": "ld.shared.u32 %r2, [table_of_outside+256];",
    "parted": "vote.sync.ballot.b32 %r2, %p1, 65535;",
    "divided": "div.s32 %r2, %r1, 0;",
}
RESULTS = {
    "predicates": [7 if t < 9 else -1 for t in range(32)],
    "signs": [(t - 16) // 2 + (-99 if t < 16 else 0) for t in range(32)],
    "floats": [int(np.float32(1 + t / 2).view(np.int32)) for t in range(32)],
    "shuffles": [(t ^ 5) + 707 for t in range(32)],
    "vectors": [t // 2 * 2 * 801 + 1 for t in range(32)],
    "scopes": [2 * t for t in range(32)],
}
REPORTS = {
    "misaligned": "an access is not at a multiple of its size",
    "outside": "an access outside the arrays of shared memory",
    "parted": "a collective without all lanes",
    "divided": "a division by zero",
}


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that runs one of KERNELS."""
    folder = tmp_path_factory.mktemp("snippets")
    code = "".join(START.format(name=name) + body + END for name, body in KERNELS.items())
    (folder / "snippets.cpp").write_text(ptx_translation.translate(code, "snippets.ptx"), encoding="utf-8")
    sources = [str(HERE / "ptx_main.cpp"), str(folder / "snippets.cpp")]
    host_program.sources()
    flags = [*host_program.flags("plain"), "-O0", "-w", f"-I{host_program.KERNELS}", f"-I{HERE}"]
    subprocess.run([*host_program.command(), *flags, *sources, "-o", str(folder / "program")], check=True)
    return folder / "program"


@pytest.mark.parametrize("name", RESULTS)
def test_instructions_do_what_ptx_says(snippets: Path, name: str) -> None:
    made = subprocess.run([str(snippets), f"snippets:{name}"], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert [int(word) for word in made.stdout.split()][:32] == [result % 2**32 for result in RESULTS[name]]


@pytest.mark.parametrize("name", REPORTS)
def test_what_a_device_would_not_do_is_reported(snippets: Path, name: str) -> None:
    made = subprocess.run([str(snippets), f"snippets:{name}"], capture_output=True, text=True)
    assert made.returncode != 0
    assert f"{REPORTS[name]} snippets.ptx:" in made.stderr


@pytest.mark.parametrize(
    "instruction",
    [
        "sin.approx.f32 %f1, %f2;",
        "add.f32 %f1, %f2, %f3;",
        "add.s32 %r1, %r2;",
        "ld.global.v2.u32 %r1, [%rd1];",
        "mov.u32 %r1, elsewhere;",
        "bar.sync 1;",
        "cp.async.cg.shared.global [%r1], [%rd1], 8;",
    ],
)
def test_what_is_not_known_is_refused_with_its_place(instruction: str) -> None:
    code = START.format(name="one") + instruction + END
    line = code[: code.index(instruction)].count("\n") + 1
    with pytest.raises(ptx_translation.NotUnderstood) as raised:
        ptx_translation.translate(code, "one.ptx")
    assert str(raised.value) == f"one.ptx:{line}: not understood: {instruction}"


def test_arrays_are_compared_by_their_largest_number() -> None:
    def written(kind: str, *numbers: float) -> list[ptx_program.Written]:
        return [ptx_program.Written("stage", kind, np.array(numbers))]

    assert not ptx_program.differences(written("f", np.nan, np.inf, 100, 1), written("f", np.nan, np.inf, 100, 1.0001))
    assert ptx_program.differences(written("f", 100, 1), written("f", 100, 1.001))
    assert not ptx_program.differences(written("b", 100, 1), written("b", 100, 1.001))
    assert ptx_program.differences(written("b", np.nan, 1), written("b", 1, 1))
    assert ptx_program.differences(written("f", 0), written("f", 1e-30))
    assert ptx_program.differences(written("i", 7, 8), written("i", 7, 9)) == [
        "stage (array 0): 1 of 2 decisions differ"
    ]


def test_values_are_read_as_they_lie_in_memory() -> None:
    data = b"scores f 2\n" + np.float32([1, np.inf]).tobytes() + b"out b 1\n\x80\x3f" + b"codes u 1\n" + b"\n" * 8
    stages = [(one.stage, one.kind, one.numbers.tolist()) for one in ptx_program.values_of(data)]
    assert stages == [("scores", "f", [1, np.inf]), ("out", "b", [1]), ("codes", "u", [0x0A0A0A0A0A0A0A0A])]


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    """What nvcc makes of FILES for 9.0."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    host_program.sources()
    ptx_program.FOLDER.mkdir(parents=True, exist_ok=True)
    return {
        name: ptx_program.compile_ptx(host_program.KERNELS / f"{name}.cu", "9.0", ptx_program.FOLDER) for name in FILES
    }


@pytest.fixture(scope="module")
def expected(ptx: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[ptx_program.Written]:
    """What the program writes with the kernels compiled as C++."""
    return ptx_program.run(ptx_program.link([], tmp_path_factory.mktemp("expected") / "program"))


def test_nvcc_computes_what_the_kernels_say(
    ptx: dict[str, str], expected: list[ptx_program.Written], tmp_path: Path
) -> None:
    parts = ptx_program.objects(ptx, ptx_program.FOLDER)
    assert not ptx_program.differences(ptx_program.run(ptx_program.link(parts, tmp_path / "program")), expected)


def test_a_changed_instruction_is_found(
    ptx: dict[str, str], expected: list[ptx_program.Written], tmp_path: Path
) -> None:
    faulty = {"exact_attention": ptx["exact_attention"].replace("ex2.approx.ftz.f32", "mov.f32")}
    parts = ptx_program.objects(faulty, tmp_path, "attend_top<float, 128>")
    lines = ptx_program.differences(ptx_program.run(ptx_program.link(parts, tmp_path / "program")), expected)
    assert {line.split()[0] for line in lines} == {"exact_attention"}
