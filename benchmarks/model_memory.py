"""Peak memory of one forward pass, in a process of its own: benchmarks/model.py starts it.

    python benchmarks/model_memory.py --shape bert-base --tokens 512 --batch 1 --padding none --method full --threads 1

Prints one line of JSON: `growth_bytes`, by how much the process grows above the loaded model while the pass runs, or null where the
system does not tell (not Linux); a pass of 16 tokens before it loads what torch loads once.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from model_shapes import METHODS, PADDINGS, SHAPES, inputs, with_method

from bert_cluster.evaluation.memory import PeakMemory, is_out_of_memory


class OutOfMemory(Exception):
    """The process was killed, or could not get what it asked for."""


def growth(flags: dict[str, Any]) -> int | None:
    """Run this file with these flags, those that are None left out; returns its `growth_bytes`.

    Raises:
        OutOfMemory: there was not enough of it.
        RuntimeError: anything else that failed, with what the process wrote last.
    """
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL or is_out_of_memory(done.stderr):
        raise OutOfMemory
    if done.returncode:
        raise RuntimeError(f"{Path(__file__).name} {' '.join(words)} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["growth_bytes"]


def available_bytes(information: str | Path = "/proc/meminfo") -> int | None:
    """Memory that a new process could get; None where the system does not tell."""
    try:
        lines = Path(information).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--padding", choices=PADDINGS, required=True)
    parser.add_argument("--method", choices=[*METHODS], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        model = SHAPES[options.shape].encoder(max(options.tokens, 16), options.layers)
        encoder = with_method(model, METHODS[options.method])
        batch = inputs(encoder.config, options.tokens, options.batch, options.padding)
        encoder(**inputs(encoder.config, 16, 1, options.padding))
        memory = PeakMemory(torch.device("cpu"))
        memory.reset()
        before = memory.peak()
        encoder(**batch)
        after = memory.peak()
    print(json.dumps({"growth_bytes": None if before is None or after is None else after - before}))


if __name__ == "__main__":
    main()
