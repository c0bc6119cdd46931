"""The processor's name, for every file that holds times."""

import platform
from pathlib import Path


def processor_name(information: str | Path = "/proc/cpuinfo") -> str:
    """As the system tells it, with family and model where it has them: rented machines often call different processors the same."""
    try:
        lines = Path(information).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    if "model name" not in first:
        return platform.processor() or platform.machine()
    numbers = [
        f"{short} {first[name]}" for name, short in (("cpu family", "family"), ("model", "model")) if name in first
    ]
    return f"{first['model name']} ({', '.join(numbers)})" if numbers else first["model name"]
