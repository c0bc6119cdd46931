"""What the installation tests share: a copy of the project, and a folder of wheels that stands for the package index.

Nothing is downloaded. setuptools is packed again from the environment of the tests; torch and the other dependencies are
stand-ins: wheels of the right name and version whose only content is a path to the environment of the tests, where the
real package is. So the installers resolve, fetch and install them as ever, and the build finds a real torch.
"""

import base64
import hashlib
import importlib.metadata
import shutil
import sysconfig
import zipfile
from pathlib import Path

import pytest
from environments import Environment

PROJECT = Path(__file__).parents[2]
FOLDERS = ("bert_cluster", "cuda_ops", "glue_eval", "squad_eval", "build_support")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md")
DEPENDENCIES = ("torch", "transformers", "datasets", "evaluate", "accelerate")
LEFT_BEHIND = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as it is in version control; builds of it share their objects."""
    copy = tmp_path_factory.mktemp("project")
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, copy / name, ignore=LEFT_BEHIND)
    for name in FILES:
        shutil.copy(PROJECT / name, copy)
    return copy


@pytest.fixture(scope="session")
def setuptools_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that has setuptools and nothing else."""
    folder = tmp_path_factory.mktemp("setuptools-only")
    distribution = importlib.metadata.distribution("setuptools")
    files = {str(file): Path(file.locate()).read_bytes() for file in distribution.files or [] if ".." not in str(file)}
    with zipfile.ZipFile(folder / f"setuptools-{distribution.version}-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            if not name.endswith((".pyc", "RECORD", "INSTALLER", "REQUESTED")):
                wheel.writestr(name, content)
        wheel.writestr(f"setuptools-{distribution.version}.dist-info/RECORD", "")
    return folder


@pytest.fixture(scope="session")
def wheelhouse(setuptools_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that has setuptools and stand-ins of all dependencies."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    shutil.copytree(setuptools_only, folder, dirs_exist_ok=True)
    for name in DEPENDENCIES:
        stand_in(folder, name, importlib.metadata.version(name))
    return folder


def stand_in(folder: Path, name: str, version: str) -> None:
    """Writes a wheel that makes the environment of the tests visible wherever it is installed."""
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}_of_the_tests.pth": sysconfig.get_path("purelib") + "\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {file: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for file, text in files.items()}
    record = [f"{file},sha256={digests[file].rstrip(b'=').decode()},{len(text)}" for file, text in files.items()]
    files[f"{information}/RECORD"] = "\n".join([*record, f"{information}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
