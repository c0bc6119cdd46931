"""Finds the torch that the operators are compiled against, without importing it.

An isolated build hides the packages of the target environment from `import`, but pip runs it with the target's own
interpreter. Asking that interpreter again, outside the isolation, shows what the target environment has.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST_TORCH = (2, 11)
TORCH_REQUIREMENT = "torch>=2.11"

_PROBE = """
import importlib.util, json
spec = importlib.util.find_spec("torch")
print(json.dumps(list(spec.submodule_search_locations or []) if spec else []))
"""


@dataclass(frozen=True)
class TorchInstall:
    """A folder that holds an installed torch, the version it has, and the version of CUDA that it is for, or None."""

    root: Path
    version: str
    cuda: str | None = None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def find_torch() -> TorchInstall | None:
    """The torch to build against: the build environment's own, else the target environment's; None where neither has one."""
    for isolated in (True, False):
        for root in _torch_folders(isolated):
            found = read_torch(root)
            if found is not None and found.release >= OLDEST_TORCH:
                return found
    return None


def read_torch(root: Path) -> TorchInstall | None:
    """The torch in the folder `root`, or None if its version, headers or libraries are not there."""
    version_file = root / "version.py"
    if not version_file.is_file() or not (root / "include").is_dir() or not (root / "lib").is_dir():
        return None
    text = version_file.read_text()
    version = re.search(r"^__version__\s*=\s*['\"](\d+\.\d+[^'\"]*)['\"]", text, re.MULTILINE)
    if not version:
        return None
    # `cuda: Optional[str] = '13.0'`, or a version such as 2.11.0+cu130
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE) or re.search(r"\+cu(\d+)", version[1])
    return TorchInstall(root, version[1], cuda[1] if cuda else None)


def requirement() -> str:
    """What the build asks for when no torch is visible: `CUDA_OPS_BUILD_TORCH`, or any torch that can run the operators."""
    return os.environ.get("CUDA_OPS_BUILD_TORCH") or TORCH_REQUIREMENT


def _torch_folders(isolated: bool) -> list[Path]:
    """Where the interpreter finds torch: as this build sees it, or as the target environment sees it."""
    environment = dict(os.environ)
    if not isolated:
        # An isolated build is made with these two; without them the same interpreter is the target environment again.
        for name in ("PYTHONPATH", "PYTHONNOUSERSITE"):
            environment.pop(name, None)
    # The working folder is the project itself: -P keeps it out of the search.
    answer = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE], env=environment, capture_output=True, text=True, check=True
    )
    return [Path(folder) for folder in json.loads(answer.stdout.splitlines()[-1])]
