"""The documents are true: their Python runs, their commands parse, and what they link to or name exists."""

import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import budgets_page
import cuda_page
import fidelity_page
import model_page
import operators_page
import pytest
import readme_tables
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

import bert_cluster.cli
import glue_eval.command
import squad_eval.command

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/algorithm.md",
    "docs/calibration.md",
    "docs/cuda.md",
    "docs/long-texts.md",
    "docs/budgets.md",
    "docs/fidelity.md",
    "docs/hub.md",
    "docs/models.md",
    "docs/results-schema.md",
    "docs/speed.md",
    "examples/README.md",
]
CHECKPOINTS = ["distilbert/distilbert-base-cased-distilled-squad"]
"""Checkpoints that code in the documents loads. A folder of that name is what transformers looks for first."""
PARSERS = {"squad-eval": squad_eval.command.new_parser, "glue-eval": glue_eval.command.new_parser}
MACHINE_PATH = re.compile(rb"(?<![\w.:/}~-])/(?:work|root)(?:/[\w.]|\b(?!/))")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), flags=re.MULTILINE | re.DOTALL)


def prose(document: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def tracked_files() -> list[Path]:
    """What git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git clone, so what is tracked is not known")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def save_tiny_bert(folder: Path) -> None:
    """A random question answering BERT with a tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "sleeps", "under", "a", "tree", "where", "does", "sleep"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    BertForQuestionAnswering(config).save_pretrained(folder)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder where every checkpoint that the documents name is a tiny random model."""
    for name in CHECKPOINTS:
        save_tiny_bert(tmp_path / name)
    monkeypatch.chdir(tmp_path)


# Without those that push: they need a Hub, and tests/hub/test_readme.py runs them.
PYTHON = [
    (document, number)
    for document in DOCUMENTS
    for number, block in enumerate(blocks(document, "python"))
    if "push_to_hub" not in block
]


def test_there_is_python_to_run() -> None:
    assert {document for document, _ in PYTHON} >= {"README.md", "CONTRIBUTING.md", "docs/algorithm.md"}


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize(("document", "number"), PYTHON, ids=lambda value: str(value))
def test_python_blocks_run(document: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    names: dict[str, object] = {"__name__": f"block {number} of {document}"}
    try:
        exec(compile(blocks(document, "python")[number], f"{document}, block {number}", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    if document == "README.md":
        assert "refined-clustered" in capsys.readouterr().out
        assert names["outputs"].start_logits.isfinite().all()  # type: ignore[attr-defined]


def commands(document: str) -> list[list[str]]:
    """Every command of the shell blocks as words, without comments."""
    lines = "\n".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_evaluation_commands_parse() -> None:
    found = [words for document in DOCUMENTS for words in commands(document) if words[0] in PARSERS]
    assert {words[0] for words in found} == set(PARSERS)
    for name, *flags in found:
        PARSERS[name]().parse_args(flags)


def test_calibration_commands_parse() -> None:
    found = [
        words for document in DOCUMENTS for words in commands(document) if words[:2] == ["bert-cluster", "calibrate"]
    ]
    assert found
    for _, *flags in found:
        bert_cluster.cli.new_parser().parse_args(flags)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    named = {
        word
        for document in DOCUMENTS
        for word in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text_of(document), re.M)
    }
    named_targets = {first or second for first, second in named}
    assert named_targets >= {"demo", "test"}
    assert named_targets <= targets


def map_of_the_tree() -> list[str]:
    """The paths in the README's map: a line's first word, inside the folder that it is indented under."""
    (block,) = re.findall(r"^## Map\n\n```\n(.*?)^```$", text_of("README.md"), flags=re.MULTILINE | re.DOTALL)
    folders: dict[int, str] = {}
    paths = []
    for line in block.splitlines():
        name, indent = line.split()[0], len(line) - len(line.lstrip())
        outer = "".join(folder for level, folder in folders.items() if level < indent)
        folders = {level: folder for level, folder in folders.items() if level < indent} | {indent: name}
        paths.append(outer + name)
    return paths


def test_the_map_is_the_tree() -> None:
    paths = map_of_the_tree()
    assert "cuda_ops/csrc/cpu/" in paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    folders = {path.relative_to(ROOT).parts[0] + "/" for path in tracked_files() if path.parent != ROOT}
    assert {folder for folder in folders if not folder.startswith(".")} <= set(paths)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    folders = "|".join(path.rstrip("/") for path in map_of_the_tree() if path.count("/") == 1)
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", prose(document))
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    local = [link for link in links if not link.startswith(("https://", "http://"))]
    folder = (ROOT / document).parent
    assert not [link for link in local if not (folder / link.partition("#")[0]).exists()]


def test_the_readme_table_is_what_the_demo_wrote() -> None:
    assert readme_tables.updated(text_of("README.md")) == text_of("README.md")


@pytest.mark.parametrize(
    "page", [fidelity_page, budgets_page, model_page, operators_page, cuda_page], ids=lambda page: page.NAME
)
def test_pages_are_what_the_results_say(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.updated(text, page.kept_results()) == text


def test_results_are_kept_without_machine_paths() -> None:
    cut = readme_tables.without_machine_paths
    assert cut({"name": "/somewhere/clone/examples/adapters/squad"}) == {"name": "examples/adapters/squad"}
    assert cut(["/env/lib/site-packages/package/model", "main", 3]) == ["package/model", "main", 3]


def test_no_path_of_one_machine_is_tracked() -> None:
    assert MACHINE_PATH.search(b'open("' + b"/ro" + b'ot/x")') and MACHINE_PATH.search(b"cd " + b"/wo" + b"rk/main")
    assert not MACHINE_PATH.search(b"https://example.org/work/x, src/root")
    found = {}
    for path in tracked_files():
        hit = MACHINE_PATH.search(path.read_bytes())
        if hit:
            found[str(path.relative_to(ROOT))] = hit.group().decode()
    assert not found
