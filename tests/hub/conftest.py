"""Tiny patched models, real result files, and a Hub that does not make anybody wait."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import WRITE_TOKEN, Hub
from pushed_models import RESULTS, tiny_answerer
from tiny_tokenizer import tiny_tokenizer
from transformers import BertForQuestionAnswering, PreTrainedTokenizerFast

from bert_cluster.hub import faults


@pytest.fixture
def model() -> BertForQuestionAnswering:
    return tiny_answerer()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts take no time; what a server asks for is still waited for."""
    monkeypatch.setattr(faults, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Somebody who may write is logged in."""
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    yield WRITE_TOKEN


@pytest.fixture
def results() -> dict[str, Any]:
    """The demo's real comparison on SQuAD, as squad_eval wrote it."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.fixture
def run_python(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python(code, **environment): another process, in an empty folder, with the same Hub and a cache of its own."""

    def run(code: str, *options: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", **variables}
        kept = {name: value for name, value in environment.items() if value is not None}
        place = tmp_path / "elsewhere"
        place.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *options, "-c", code],
            cwd=place,
            env=kept,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
