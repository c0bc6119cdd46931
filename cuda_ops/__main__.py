"""`python -m cuda_ops`: what was built, against what, for which processors, or why not.

The exit status is 0 where the compiled library is loaded and 1 where the operators run on the PyTorch reference.
"""

import argparse
import platform
import sys

import torch

from cuda_ops._library import Status, status


def report(found: Status) -> str:
    """The status as aligned lines, one fact a line."""
    facts: dict[str, str | None] = {
        "torch": f"{torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    }
    if found.compiled:
        facts |= {
            "operators": "compiled",
            "library": found.library,
            "built against": f"torch {found.built_against}, with {found.compiler}",
            "CPU": f"{', '.join(found.instruction_sets)}; in use: {found.active_instruction_set}",
        }
        facts |= _gpu_facts(found)
    else:
        facts |= {"operators": "not compiled: everything runs on the PyTorch reference, which is slow"}
        facts |= {"reason": found.reason, "remedy": found.remedy}
    return "\n".join(f"{name + ':':<15}{fact}" for name, fact in facts.items())


def _gpu_facts(found: Status) -> dict[str, str | None]:
    if found.cuda_architectures:
        return {"GPU": f"{', '.join(found.cuda_architectures)}; by nvcc {found.cuda}"}
    return {
        "GPU": f"none; tensors on a GPU run on the PyTorch reference, which is slow: {found.cuda_reason}",
        "GPU remedy": found.cuda_remedy,
    }


def main() -> int:
    """Prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cuda_ops", description=__doc__.replace("`", ""))
    parser.parse_args()
    found = status()
    print(report(found))
    return 0 if found.compiled else 1


if __name__ == "__main__":
    sys.exit(main())
