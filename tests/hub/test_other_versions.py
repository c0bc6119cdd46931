"""Other versions of transformers, which bring other versions of the Hub's client along: without this package, and with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loopback import Hub
from pushed_models import ASK, PUSH, REPO, batch, outputs, same_bits, tiny_answerer
from transformers import PreTrainedTokenizerFast

import bert_cluster
from bert_cluster import push_to_hub

pytestmark = pytest.mark.usefixtures("login", "no_waiting")

Run = Callable[..., subprocess.CompletedProcess[str]]
OTHERS = Path(sys.prefix) / "transformers"

PLAIN = """
import sys
sys.path[:0] = {path!r}
try:
    import bert_cluster
except ImportError:
    pass
else:
    raise SystemExit("this environment must not have the package")
import torch, transformers
{code}
assert model.config._attn_implementation == "sdpa"
rows = {rows!r}
with torch.inference_mode():
    found = model.eval()(input_ids=torch.tensor(rows["input_ids"]), attention_mask=torch.tensor(rows["attention_mask"]))
torch.save([each.clone() for each in found.to_tuple()], "outputs.pt")
print(transformers.__version__, type(model).__name__, tokenizer("the old house").input_ids)
"""


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0"])
def test_whoever_has_transformers_alone_gets_the_exact_model(
    hub: Hub, tokenizer: PreTrainedTokenizerFast, run_python: Run, tmp_path: Path, version: str
) -> None:
    """By the code on the card, with another transformers than that of the tests."""
    if not (OTHERS / version).is_dir():
        pytest.skip(f"transformers {version} is not in {OTHERS}: make test installs it")
    push_to_hub(tiny_answerer(), REPO, tokenizer)
    code = codes_on_card(hub)[1]
    libraries = [str(OTHERS / version), str(Path(torch.__file__).parents[1])]
    rows = {name: value.tolist() for name, value in batch().items()}
    result = run_python(PLAIN.format(path=libraries, code=code, rows=rows), "-S")  # without site: no editable installs
    assert result.returncode == 0, result.stderr
    ids = tokenizer("the old house").input_ids
    assert result.stdout.strip() == f"{version} BertForQuestionAnswering {ids}"
    found: list[torch.Tensor] = torch.load(tmp_path / "elsewhere" / "outputs.pt")
    for ours, theirs in zip(outputs(bert_cluster.unpatch(tiny_answerer())), found, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0"])
def test_pushing_and_loading_with_other_versions_of_transformers(
    hub: Hub, run_python: Run, tmp_path: Path, version: str
) -> None:
    """They bring other versions of the Hub's client along."""
    if not (OTHERS / version).is_dir():
        pytest.skip(f"transformers {version} is not in {OTHERS}: make test installs it")
    path = [str(OTHERS / version), *sys.path]
    hub.fault("POST", "/commit/", cut="after")
    result = run_python(PUSH.format(path=path, repo=REPO))
    assert result.returncode == 0, result.stderr
    assert len(hub.repos[REPO].commits) == 2
    load = ASK.format(path=path, repo=REPO, options="")
    assert run_python(load).returncode == 0
    assert same_bits(outputs(tiny_answerer()), torch.load(tmp_path / "elsewhere" / "outputs.pt"))


def codes_on_card(hub: Hub) -> list[str]:
    card = hub.repos[REPO].files()["README.md"].decode()
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]
