"""Virtual environments that the installation tests make, and commands run in them."""

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path


class Environment:
    """A new virtual environment without any package, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.folder = folder
        self.python = folder / "bin" / "python"

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` of this environment, outside the project."""
        return run([str(self.python), *arguments], self.folder, variables)

    def pip(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`pip ARGUMENTS` for this environment, with the pip of the tests' own."""
        return run([sys.executable, "-m", "pip", "--python", str(self.python), *arguments], self.folder, variables)

    def has(self, package: str) -> bool:
        """Whether a package lies in this environment's own folder."""
        return any(self.folder.glob(f"lib/python*/site-packages/{package}"))


def run(command: list[str], folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One command with nothing of this machine's settings for installers, compilers and our own build."""
    strange = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "CUDA_OPS_", "CXX")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    environment = {**ours, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "UV_NO_CONFIG": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """Everything a command printed, after checking that it succeeded."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    return output
