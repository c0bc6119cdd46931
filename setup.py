"""What pyproject.toml cannot say: the compiled operators."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))

from build_support.extension import BuildOperators, BuildPackages, extensions

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOperators, "build_py": BuildPackages},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
