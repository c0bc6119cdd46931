"""The results file of what kernels take of a GPU is of the kernels as they are; the compiler itself is asked in tests/cuda/test_nvcc.py."""

import json
import re
from pathlib import Path

import pytest
from cuda_registers import KERNELS, RESULTS, WANTED, dotted, sources_hash

NAME = re.compile(r"CUDA_OPS_KERNEL (?:CUDA_OPS_BLOCKS?\(.*\)\s)?(\w+)\(")
SOURCES = [source for source in sorted(KERNELS.glob("*.cu")) if "CUDA_OPS_KERNEL" in source.read_text(encoding="utf-8")]
REPORT = json.loads(RESULTS.read_text(encoding="utf-8"))
FILES = REPORT["files"]


def test_every_file_is_listed() -> None:
    assert list(FILES) == [source.name for source in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.stem))
def test_every_kernel_is_listed(source: Path) -> None:
    listed = FILES[source.name]
    assert {name.partition("<")[0] for name in listed} == set(NAME.findall(source.read_text(encoding="utf-8")))
    for name, architectures in listed.items():
        assert list(architectures) == [dotted(one) for one in WANTED], name
        for usage in architectures.values():
            assert usage["spill_bytes"] == 0 and usage["shared_bytes"] <= 48 * 1024, name


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.stem))
def test_every_kernel_was_compiled_as_it_is(source: Path) -> None:
    assert REPORT["sources"][source.name] == sources_hash(source), (
        f"{source.name} or a header of it has changed: python benchmarks/cuda_registers.py"
    )


def test_the_hash_is_of_code_and_headers_alone(tmp_path: Path) -> None:
    source, header, other = (tmp_path / name for name in ("a.cu", "a.h", "b.h"))
    source.write_text('#include "a.h"\n#include <cstdint>\nint x;\n')
    header.write_text('#include "b.h"\nint y;\n')
    other.write_text('#include "a.h"\nint z;\n')
    before = sources_hash(source)
    header.write_text('#include "b.h"\n\n// y\nint y;  // again\n')
    assert sources_hash(source) == before
    other.write_text('#include "a.h"\nint w;\n')
    assert sources_hash(source) != before
