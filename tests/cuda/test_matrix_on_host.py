"""Products of fragments as a tensor core takes them: the layouts of the host against those that NVIDIA publishes, and tiles against plain products."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from host_library import FLAGS, HERE, ORDERS, ROOT
from torch import Tensor

from build_support import compiler

MATRIX = ROOT / "cuda_ops" / "csrc" / "cuda" / "kernels" / "matrix.h"
TYPES = {torch.bfloat16: 1, torch.float16: 2}

# The layouts of mma.m16n8k16 as CUTLASS has them (MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>): number of values and strides, of which a lane and a value of the
# fragment add up to the element's index, rows first. Lanes are (4, 8), values (2, 2, 2) or (2, 2), the first mode changing fastest.
A_LAYOUT = ([(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)], 16)
B_LAYOUT = ([(4, 16), (8, 1)], [(2, 8), (2, 64)], 8)
C_LAYOUT = ([(4, 32), (8, 1)], [(2, 16), (2, 8)], 16)
# Some rows of the figures in the PTX ISA (9.7.14, matrix fragments for mma.m16n8k16): lane and register's number of each element.
A_FIGURE = {
    (0, 0): [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)],
    (0, 8): [(0, 4), (0, 5), (1, 4), (1, 5), (2, 4), (2, 5), (3, 4), (3, 5)],
    (8, 0): [(0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3)],
    (15, 8): [(28, 6), (28, 7), (29, 6), (29, 7), (30, 6), (30, 7), (31, 6), (31, 7)],
}
B_FIGURE = {
    (0, 0): [(0, 0), (4, 0), (8, 0), (12, 0), (16, 0), (20, 0), (24, 0), (28, 0)],
    (1, 0): [(0, 1), (4, 1), (8, 1), (12, 1), (16, 1), (20, 1), (24, 1), (28, 1)],
    (14, 0): [(3, 2), (7, 2), (11, 2), (15, 2), (19, 2), (23, 2), (27, 2), (31, 2)],
}
C_FIGURE = {
    (0, 0): [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)],
    (15, 0): [(28, 2), (28, 3), (29, 2), (29, 3), (30, 2), (30, 3), (31, 2), (31, 3)],
}
Layout = tuple[list[tuple[int, int]], list[tuple[int, int]], int]


def offset(modes: list[tuple[int, int]], index: int) -> int:
    total = 0
    for size, stride in modes:
        total += index % size * stride
        index //= size
    return total


def elements(layout: Layout) -> list[list[tuple[int, int]]]:
    """(row, column) of each value of each lane; for B (k, n)."""
    lanes, values, rows = layout
    count = 1
    for size, _ in values:
        count *= size
    at = [[offset(lanes, lane) + offset(values, value) for value in range(count)] for lane in range(32)]
    if layout is B_LAYOUT:  # CUTLASS counts n first
        return [[(index // 8, index % 8) for index in row] for row in at]
    return [[(index % rows, index // rows) for index in row] for row in at]


def fragments(matrix: Tensor, layout: Layout) -> Tensor:
    """(32, values): what each lane holds of the matrix."""
    return torch.stack([torch.stack([matrix[at] for at in lane]) for lane in elements(layout)])


def build(folder: Path, changes: dict[Path, tuple[str, str]]) -> ctypes.CDLL:
    """The library, with texts of the header of the device or of matrix.h changed."""
    command = compiler.find_compiler()
    if command is None:
        pytest.skip("there is no C++ compiler")
    source = (HERE / "matrix_products.cu").read_text(encoding="utf-8").replace('"../../', f'"{ROOT}/')
    flags = ["-O1" if flag == "-O2" else flag for flag in FLAGS]
    for path, (old, new) in changes.items():
        text = path.read_text(encoding="utf-8")
        assert old in text
        changed = folder / path.name
        changed.write_text(text.replace(old, new).replace('#include "', f'#include "{path.parent}/'), encoding="utf-8")
        source = source.replace(str(path), str(changed))
        flags = [flag.replace(str(path), str(changed)) for flag in flags]
    (folder / "matrix_products.cu").write_text(source, encoding="utf-8")
    library = folder / "library.so"
    made = subprocess.run(
        [*command, *flags, "-shared", "-x", "c++", str(folder / "matrix_products.cu"), "-o", str(library)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("matrix"), {})


def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(one.is_contiguous() for one in tensors)
    return [ctypes.c_void_p(one.data_ptr()) for one in tensors]


def registers_agree(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    torch.manual_seed(3)
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    of_a, of_b, of_c = fragments(a, A_LAYOUT), fragments(b, B_LAYOUT), fragments(c, C_LAYOUT)
    library.run_registers(TYPES[dtype], *pointers(of_a, of_b, of_c))
    expected = c.double() + a.double() @ b.double()
    bound = 17 * 2.0**-24 * (c.abs().double() + a.abs().double() @ b.abs().double())
    return bool(((of_c - fragments(expected, C_LAYOUT)).abs() <= fragments(bound, C_LAYOUT)).all())


def tiles_agree(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    torch.manual_seed(4)
    q, k, v = (torch.randn(2, 16, 16).to(dtype) for _ in range(3))
    scores, out = torch.full((2, 16, 16), torch.nan), torch.full((2, 16, 16), torch.nan)
    library.run_tiles(TYPES[dtype], *pointers(q, k, v, scores, out))
    q, k, v, narrowed = q.double(), k.double(), v.double(), scores.to(dtype).double()
    bound = 17 * 2.0**-24
    scores_agree = (scores - q @ k.mT).abs() <= bound * (q.abs() @ k.abs().mT)
    out_agree = (out - narrowed @ v).abs() <= bound * (narrowed.abs() @ v.abs())
    return bool(scores_agree.all() and out_agree.all())


@pytest.mark.parametrize(
    ("layout", "figure"), [(A_LAYOUT, A_FIGURE), (B_LAYOUT, B_FIGURE), (C_LAYOUT, C_FIGURE)], ids="abc"
)
def test_both_sources_of_the_layouts_agree(
    layout: Layout, figure: dict[tuple[int, int], list[tuple[int, int]]]
) -> None:
    at = elements(layout)
    assert len({place for lane in at for place in lane}) == 32 * len(at[0])
    for (row, column), held in figure.items():
        assert [at[lane][value] for lane, value in held] == [(row, column + i) for i in range(8)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_products(library: ctypes.CDLL, order: str, dtype: torch.dtype) -> None:
    library.set_order(ORDERS.index(order), 1)
    assert registers_agree(library, dtype)
    assert tiles_agree(library, dtype)


HOST = HERE / "host_cuda.h"


@pytest.mark.parametrize(
    "changes",
    [
        {HOST: ("number(5 + 2 * half)", "number(7 - 2 * half)")},  # the quarters of A
        {HOST: ("number(8 + half)", "number(9 - half)")},  # the halves of B
        {HOST: ("number(4 + 2 * half)", "widen(T{uint16_t(words[4 + 2 * half] >> 16 * (1 - side))})")},
        {HOST: ("group = lane / 4, first = lane % 4 * 2", "group = lane % 8, first = lane / 8 * 2")},
        {HOST: ("transposed ? matrices[k][column][row] : matrices[k][row][column]", "matrices[k][row][column]")},
        {MATRIX: ("tile + lane % 16 * stride", "tile + (lane + 8) % 16 * stride")},  # load_a and load_b
        {MATRIX: ("b[k / 2][k % 2] = all[k]", "b[k % 2][k / 2] = all[k]")},
        {MATRIX: ("return device::thread() % WARP / 4 + i / 2 * 8", "return device::thread() % 8 + i / 2 * 8")},
    ],
    ids=["a", "b", "halves", "lanes", "transposed", "load-a", "load-b", "d"],
)
def test_a_permuted_fragment_is_found(tmp_path: Path, changes: dict[Path, tuple[str, str]]) -> None:
    faulty = build(tmp_path, changes)
    assert not (registers_agree(faulty, torch.bfloat16) and tiles_agree(faulty, torch.bfloat16))
