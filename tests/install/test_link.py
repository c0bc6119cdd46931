"""The link: an operator's error reaches Python, whatever the compiler links by default."""

import subprocess
import sys
from pathlib import Path

import pytest
from compiled_objects import compile_all

from build_support import compiler, torch_install

pytestmark = pytest.mark.install

WRONG_MASK = """
import sys
import torch

library = torch.library.Library("cuda_ops", "DEF")
library.define("hash_vectors(Tensor x, Tensor planes, Tensor? mask) -> Tensor")
torch.ops.load_library(sys.argv[1])
try:
    torch.ops.cuda_ops.hash_vectors(torch.zeros(1, 1, 7, 3), torch.zeros(3, 5), torch.ones(1, 2, dtype=torch.bool))
except RuntimeError as error:
    print("caught:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flags of GCC on Linux")
@pytest.mark.parametrize("flags", ["", "-static-libgcc -static-libstdc++"])
def test_errors_pass_from_the_operators_to_torch(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some toolchains come as a script that adds these flags to every link."""
    objects, command, torch = compile_all(), compiler.find_compiler(), torch_install.find_torch()
    assert command and torch
    monkeypatch.setenv("LDFLAGS", flags)
    library = tmp_path / "_C.abi3.so"
    compiler.link(command, list(objects.values()), library, torch.lib)
    answer = subprocess.run([sys.executable, "-c", WRONG_MASK, str(library)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("caught: "), answer.stdout
