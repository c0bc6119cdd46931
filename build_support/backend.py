"""The build backend: setuptools, which asks for torch exactly where the target environment has none.

With torch in `build-system.requires` every isolated build would fetch gigabytes although torch is installed already.
"""

import sys
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (a backend is the functions of its module)

from build_support import extension, torch_install


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    if not extension.decide().compile or torch_install.find_torch():
        return []
    requirement = torch_install.requirement()
    print(
        f"cuda_ops: no torch >= 2.11 in the target environment; the build asks for {requirement}. "
        "CUDA_OPS_BUILD_TORCH names another requirement.",
        file=sys.stderr,
    )
    return [requirement]
