"""What was pushed is loaded again: in another process, with and without this package, with and without a network."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loopback import WRITE_TOKEN, Hub
from pushed_models import ASK, PUSH, REPO, outputs, same_bits, tiny_answerer
from transformers import BertForQuestionAnswering, PreTrainedTokenizerFast

import bert_cluster
from bert_cluster import push_to_hub

pytestmark = pytest.mark.usefixtures("login", "no_waiting")

Run = Callable[..., subprocess.CompletedProcess[str]]
OTHERS = Path(sys.prefix) / "transformers"


def ask(
    run_python: Run, tmp_path: Path, repo: str = REPO, options: str = "", **variables: str | None
) -> list[torch.Tensor]:
    """Outputs of the loaded model in another process."""
    result = run_python(ASK.format(path=sys.path, repo=repo, options=options), **variables)
    assert result.returncode == 0, result.stderr
    assert "improved-clustered" in result.stdout
    found: list[torch.Tensor] = torch.load(tmp_path / "elsewhere" / "outputs.pt")
    return found


def test_another_process_gets_the_same_bits(
    hub: Hub, model: BertForQuestionAnswering, run_python: Run, tmp_path: Path
) -> None:
    """And gets them again from its cache: offline, and with the network gone."""
    push_to_hub(model, REPO, private=True)
    expected = outputs(model)
    exact = bert_cluster.unpatch(tiny_answerer())
    assert not same_bits(expected, outputs(exact)), "the settings must matter for this test to mean anything"
    assert same_bits(expected, ask(run_python, tmp_path))
    seen = len(hub.log)
    assert same_bits(expected, ask(run_python, tmp_path, HF_HUB_OFFLINE="1"))
    assert len(hub.log) == seen
    assert same_bits(expected, ask(run_python, tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))


def test_with_xet_and_a_hub_that_keeps_every_file_in_git(hub: Hub, run_python: Run, tmp_path: Path) -> None:
    hub.large = False
    result = run_python(PUSH.format(path=sys.path, repo=REPO), HF_HUB_DISABLE_XET=None)
    assert result.returncode == 0, result.stderr
    assert len(hub.requests("POST", "/commit/")) == 1
    assert hub.requests("POST", "/info/lfs/") == []
    assert same_bits(outputs(tiny_answerer()), ask(run_python, tmp_path, HF_HUB_DISABLE_XET=None))


@pytest.mark.parametrize("revision", [None, "faster"])
def test_the_code_on_the_card_runs(
    hub: Hub, model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, revision: str | None
) -> None:
    push_to_hub(model, REPO, tokenizer, revision=revision)
    hub.repos[REPO].refs.setdefault("faster", "")
    card = hub.repos[REPO].files(revision or "main")["README.md"].decode()
    clustered, exact = (part.split("```")[0] for part in card.split("```python\n")[1:])
    for code, patched in ((clustered, True), (exact, False)):
        names: dict[str, object] = {}
        exec(code, names)
        loaded = names["model"]
        assert isinstance(loaded, BertForQuestionAnswering)
        assert bool(bert_cluster.info(loaded).layers) is patched
        assert names["tokenizer"]("the old house").input_ids == tokenizer("the old house").input_ids  # type: ignore[operator]
        assert same_bits(outputs(loaded), outputs(model)) is patched


def test_the_code_on_the_card_of_a_folder_runs_beside_it(
    model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert_cluster.save_pretrained(model, tmp_path / "answers", tokenizer)
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "answers" / "README.md").read_text()
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert same_bits(outputs(names["model"]), outputs(model))  # type: ignore[arg-type]


def test_a_login_on_disk(hub: Hub, model: BertForQuestionAnswering, run_python: Run, tmp_path: Path) -> None:
    """As `hf auth login` leaves it."""
    push_to_hub(model, REPO, private=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(WRITE_TOKEN)
    assert same_bits(outputs(model), ask(run_python, tmp_path, HF_TOKEN=None))
