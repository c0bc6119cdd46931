"""Real processes: one that is killed and continues, two that share the work, and one that should have been two."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_cluster.evaluation import compare
from squad_eval.command import main


def flags(model: str, file: str, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", model, "--validation_file", file, "--output_dir", str(output), "--device", "cpu"]
    return [*given, "--max_seq_length", "32", "--doc_stride", "8", "--bootstrap_samples", "50", "--disable_tqdm", *more]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


SLOW = """
import sys, time
from bert_cluster.evaluation import compare, runner
compare.CHUNK_TOKENS = 64
forward = runner._forward
def slow(*arguments):
    time.sleep(float(sys.argv[1]))
    return forward(*arguments)
runner._forward = slow
from squad_eval.command import main
sys.exit(main(sys.argv[2:]))
"""


def start(arguments: list[str], delay: float) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SLOW, str(delay), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_run_continues_where_it_stopped(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = squad_file(12), tmp_path / "out"
    arguments = flags(qa_model, file, output, "--attention", "full", "clustered", "--no_plot")
    third = output / "chunks" / "clustered" / "00002.npz"
    process = start(arguments, delay=0.05)
    deadline = time.monotonic() + 120
    while not third.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    text, _ = process.communicate()
    assert third.exists(), text
    assert process.returncode == -signal.SIGKILL, text
    stored = {path: path.stat().st_mtime_ns for path in (output / "chunks").rglob("*.npz")}
    assert not (output / "all_results.json").exists()
    again = start(arguments, delay=0)
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 0, text
    assert all(path.stat().st_mtime_ns == written for path, written in stored.items())
    assert len(list((output / "chunks").rglob("*.npz"))) > len(stored)
    monkeypatch.setattr(compare, "CHUNK_TOKENS", 64)
    assert main(flags(qa_model, file, tmp_path / "whole", "--attention", "full", "clustered", "--no_plot")) == 0
    for method in ("full", "clustered"):
        for name in ("eval_predictions.json", "eval_nbest_predictions.json"):
            close(read(output / method / name), read(tmp_path / "whole" / method / name))


def close(one: Any, other: Any) -> None:
    """Equal, numbers up to the rounding that another number of threads brings."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            close(first, second)
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    else:
        assert one == other


def launch(command: list[str], arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, *command, "-m", "squad_eval", *arguments]
    return subprocess.run(whole, env=environment, text=True, capture_output=True, timeout=300, check=False)


def test_two_processes_give_the_scores_of_one(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> None:
    file = squad_file(12)
    more = ["--attention", "full", "improved-clustered", "--clusters", "3", "--no_plot"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = launch(torchrun, flags(qa_model, file, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SQuAD v1.1") == 1
    assert main(flags(qa_model, file, tmp_path / "one", *more)) == 0
    one, two = (read(tmp_path / name / "all_results.json") for name in ("one", "two"))
    assert two["environment"]["processes"] == 2
    assert one["batches"] == two["batches"]
    for method in ("full", "improved-clustered"):
        assert one["methods"][method]["scores"] == two["methods"][method]["scores"]
        predictions = [read(tmp_path / name / method / "eval_predictions.json") for name in ("one", "two")]
        assert predictions[0] == predictions[1]
    logits = [
        np.load(tmp_path / name / "chunks" / "full" / "00000.npz")["start_logits.values"] for name in ("one", "two")
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


LEAVE = """
import sys, time
from pathlib import Path
import torch.distributed
from bert_cluster.evaluation.processes import join_processes
written, fails = Path(sys.argv[1]), sys.argv[2] == "fails"
with join_processes("cpu") as processes:
    assert torch.distributed.is_initialized()
    if processes.is_main:
        time.sleep(2)
        if fails:
            raise SystemExit(7)
        written.touch()
assert written.exists(), "left while the main process still wrote"
assert not torch.distributed.is_initialized(), "the process group is still there at exit"
"""


@pytest.mark.parametrize("how", ["works", "fails"])
def test_processes_leave_the_launch_in_order(how: str, tmp_path: Path) -> None:
    """Nobody ends, and no thread of the group lives on, before the main process is done; a failure ends all of them."""
    (tmp_path / "leave.py").write_text(LEAVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    whole = [*command, str(tmp_path / "leave.py"), str(tmp_path / "written"), how]
    done = subprocess.run(whole, env=environment, text=True, capture_output=True, timeout=120, check=False)
    assert (done.returncode == 0) == (how == "works"), done.stderr
    assert (tmp_path / "written").exists() == (how == "works")


def test_a_launch_that_runs_alone_is_an_error(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> None:
    accelerate = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment_free = [*accelerate, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launch(environment_free, flags(qa_model, squad_file(2), tmp_path / "out"))
    assert done.returncode != 0
    assert "started only this one" in done.stderr
    assert not (tmp_path / "out").exists()
