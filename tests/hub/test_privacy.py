"""Nothing of the machine or of its user is saved or uploaded: no path, no name, no token, no pickle."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import WRITE_TOKEN, Hub
from pushed_models import REPO, RESULTS, tiny_answerer
from transformers import BertForQuestionAnswering, PreTrainedTokenizerFast

import bert_cluster
from bert_cluster import SaveError, push_to_hub, save_pretrained
from bert_cluster.hub import privacy

pytestmark = pytest.mark.usefixtures("login", "no_waiting")

PUSH = """
import sys
sys.path[:0] = {path!r}
import json, os
from pathlib import Path
import torch
from pushed_models import tiny_answerer
from transformers import AutoTokenizer, BertForQuestionAnswering
import bert_cluster
home = Path.home()
model = BertForQuestionAnswering.from_pretrained(home / "checkpoints" / "mine")
tokenizer = AutoTokenizer.from_pretrained(home / "checkpoints" / "mine")
bert_cluster.patch(model, method="refined-clustered")
print(bert_cluster.push_to_hub(model, "{repo}", tokenizer, results=home / "output"))
import sentence_transformers
model = sentence_transformers.SentenceTransformer(str(home / "checkpoints" / "mine"), device="cpu")
print(bert_cluster.push_to_hub(bert_cluster.patch(model), "tester/sentences"))
"""


def test_every_byte_that_is_uploaded(
    hub: Hub,
    tokenizer: PreTrainedTokenizerFast,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    results: dict[str, Any],
) -> None:
    """Everything lies in the home of a user whose name cannot occur by chance, results with local paths included."""
    user = "zaphodsusername"
    home = tmp_path / "home" / user
    place = home / "checkpoints" / "mine"
    bert_cluster.unpatch(tiny_answerer()).save_pretrained(place)
    tokenizer.save_pretrained(place)
    config = json.loads((place / "tokenizer_config.json").read_text())
    config |= {"is_local": True, "local_files_only": True, "name_or_path": str(place)}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    results["data"]["source"] = str(home / "data" / "dev.json")
    results["model"]["name"] = str(place)
    (home / "output").mkdir()
    (home / "output" / "all_results.json").write_text(json.dumps(results))
    result = run_python(PUSH.format(path=sys.path, repo=REPO), HOME=str(home), USER=user, LOGNAME=user)
    assert result.returncode == 0, result.stderr
    assert set(hub.repos) == {REPO, "tester/sentences"}
    uploaded = hub.uploaded()
    assert any(b"safetensors" in content or b"__metadata__" in content for content in uploaded)
    for secret in (user, str(tmp_path), str(home), WRITE_TOKEN, "local_files_only", "is_local", str(Path.cwd())):
        assert not [content[:200] for content in uploaded if secret.encode() in content], secret
    for repo in hub.repos.values():
        for path, content in repo.files().items():
            assert not path.endswith((".bin", ".pt", ".pkl"))
            assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04"))


def test_the_tokenizer_saves_the_same_bytes_wherever_it_came_from(
    model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_pretrained(model, tmp_path / "one", tokenizer)
    place = tmp_path / "checkpoint"
    tokenizer.save_pretrained(place)
    again = PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
    save_pretrained(model, tmp_path / "two", again)
    written = [(tmp_path / name / "tokenizer_config.json").read_text() for name in ("one", "two")]
    assert written[0] == written[1]


def test_files_that_a_tokenizer_was_made_from_are_taken_out(
    model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Older versions of transformers wrote them, and newer ones carry them on."""
    tokenizer.init_kwargs["special_tokens_map_file"] = f"{Path.home()}/.cache/special_tokens_map.json"
    try:
        save_pretrained(model, tmp_path, tokenizer)
    finally:
        del tokenizer.init_kwargs["special_tokens_map_file"]
    assert "special_tokens_map_file" not in (tmp_path / "tokenizer_config.json").read_text()


def test_a_token_in_a_file_is_refused(hub: Hub, model: BertForQuestionAnswering) -> None:
    model.config.remark = f"pushed with {WRITE_TOKEN}"
    with pytest.raises(SaveError, match="config.json contains a Hub token. Take it out"):
        push_to_hub(model, REPO)
    assert hub.log == []


def test_a_path_in_the_settings_is_refused(hub: Hub, model: BertForQuestionAnswering) -> None:
    model.config.corpus = f"{Path.home()}/corpus/texts.txt"
    with pytest.raises(SaveError, match=f"config.json contains the path {Path.home()}/ of this machine. Take it out"):
        push_to_hub(model, REPO)
    assert hub.log == []


def archive() -> bytes:
    """As torch.save and joblib write."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("data.pkl", pickle.dumps({"a": 1}))
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [("pytorch_model.bin", b"weights"), ("head", pickle.dumps([1])), ("rust_model.ot", archive())],
)
def test_a_pickle_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SaveError, match=f"{name} is a pickle, which can run code on whoever loads it"):
        privacy.check(tmp_path)


def test_words_of_a_vocabulary_are_not_paths(tmp_path: Path) -> None:
    words = json.dumps({"vocab": {f"{Path.home()}/": 1, "is_local": 2}})
    (tmp_path / "tokenizer.json").write_text(words)
    privacy.clean(tmp_path)
    privacy.check(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == words


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("google-bert/bert-base-uncased", False),
        ("bert-base-uncased", False),
        ("/data/model", True),
        ("./model", True),
        ("~/model", True),
        ("runs/7/checkpoint-500", True),
        ("C:\\models\\mine", True),
        ("", False),
        (None, False),
        (RESULTS.as_posix(), True),
    ],
)
def test_what_is_a_local_path(name: Any, local: bool) -> None:
    assert privacy.is_local_path(name) is local


def test_a_token_of_somebody_else_is_refused(hub: Hub, model: BertForQuestionAnswering) -> None:
    model.config.remark = "hf_" + "aB3" * 11
    with pytest.raises(SaveError, match="config.json contains a Hub token"):
        push_to_hub(model, REPO)


def test_a_path_outside_of_the_home_is_refused(hub: Hub, model: BertForQuestionAnswering, tmp_path: Path) -> None:
    model.config.corpus = str(tmp_path / "corpus.txt")
    with pytest.raises(SaveError, match=f"config.json contains the path {tmp_path}/corpus.txt of this machine"):
        push_to_hub(model, REPO)


def test_our_part_of_a_card_is_searched_and_the_users_is_not(hub: Hub, results: dict[str, Any], tmp_path: Path) -> None:
    hub.create(REPO, {"README.md": f"# Mine\n\nMount it at {Path.home()}/models.\n"})
    push_to_hub(tiny_answerer(method="refined-clustered"), REPO)
    results["environment"]["device_name"] = f"{Path.home()}/device"
    with pytest.raises(SaveError, match="README.md contains the path"):
        push_to_hub(tiny_answerer(method="refined-clustered"), REPO, results=results)


def test_a_relative_file_is_not_taken_for_a_data_set(hub: Hub, results: dict[str, Any]) -> None:
    results["data"]["source"] = "zaphod/dev.json"
    push_to_hub(tiny_answerer(method="refined-clustered"), REPO, results=results)
    assert "zaphod" not in hub.repos[REPO].files()["README.md"].decode()
