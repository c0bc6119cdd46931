"""The model card: valid for the Hub's own parsers, true to the results, and kind to what others wrote on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData
from huggingface_hub import _eval_results as parsers
from loopback import Hub
from pushed_models import REPO, RESULTS, tiny_answerer, tiny_classifier
from transformers import BertForQuestionAnswering, BertForSequenceClassification

import bert_cluster
from bert_cluster import SaveError, push_to_hub, save_pretrained
from bert_cluster.hub import front_matter

pytestmark = pytest.mark.usefixtures("login", "no_waiting")
BEGIN, END = "<!-- bert-cluster:begin -->", "<!-- bert-cluster:end -->"
GLUE = Path(__file__).parents[2] / "benchmarks" / "results" / "demo-qnli.json"


@pytest.fixture
def measured() -> BertForQuestionAnswering:
    """A model with the settings that the demo measured."""
    return tiny_answerer(method="refined-clustered")


@pytest.fixture
def classifier() -> BertForSequenceClassification:
    """A classifier with the settings that the demo measured."""
    return tiny_classifier(method="refined-clustered")


def card_of(hub: Hub, repo: str = REPO) -> str:
    return hub.repos[repo].files()["README.md"].decode()


def data_of(card: str) -> ModelCardData:
    return ModelCard(card).data  # type: ignore[return-value]


def test_a_new_card(hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]) -> None:
    hub.create("owner/base", {"README.md": "---\nlicense: apache-2.0\n---\n# Base\n"})
    results["data"]["source"] = "rajpurkar/squad validation"
    of_a_file = json.loads(RESULTS.read_text())
    of_a_file["task"]["title"] = "SQuAD v2.0"
    pushed = push_to_hub(measured, REPO, results=[results, of_a_file], base_model="owner/base")
    data = data_of(card_of(hub))
    assert data.base_model == "owner/base"
    assert data.license == "apache-2.0"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "question-answering")
    assert data.tags == ["bert-cluster", "clustered-attention", "efficient-attention"]
    assert data.datasets == ["rajpurkar/squad"], "the other results are of a file"
    assert [note for note in pushed.notes if "card" in note] == []
    card = card_of(hub)
    assert card.index("# answers") < card.index(BEGIN) < card.index("**no fine-tuning**") < card.index(END)
    assert (
        "weights come from [owner/base](https://huggingface.co/owner/base), runs as refined clustered attention" in card
    )
    assert "| 0 to 2 | `refined-clustered` | clusters = auto, topk = auto, " in card
    for heading in (
        "## Clustered attention",
        "## How to load it",
        "## What it costs and gains",
        "## Limits",
        "## Citation",
    ):
        assert heading in card


def test_the_results_table_says_what_was_measured(
    hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]
) -> None:
    push_to_hub(measured, REPO, results=results)
    rows = [line for line in card_of(hub).splitlines() if line.startswith(("| `full`", "| `refined"))]
    full, refined = results["methods"]["full"], results["methods"]["refined-clustered"]
    difference = refined["difference_to_full"]["f1"]
    assert f"{full['scores']['f1']:.2f} | – | – |" in rows[0]
    interval = f"{difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    assert (
        f"{refined['scores']['f1']:.2f} | {interval} | {100 * refined['agreement_with_full']['value']:.1f} %" in rows[1]
    )
    assert len(rows) == 2
    assert "400 examples from squad-dev-slice.json, at most 384 tokens." in card_of(hub)
    assert "examples/data" not in card_of(hub)


def index_of(hub: Hub, repo: str = REPO) -> dict[tuple[str | None, str, str], EvalResult]:
    """Configuration, score and method -> entry of the card's model-index."""
    found = data_of(card_of(hub, repo)).eval_results or []
    return {(one.dataset_config, one.metric_type, one.metric_args["attention"]): one for one in found}


def test_the_model_index(
    hub: Hub, measured: BertForQuestionAnswering, classifier: BertForSequenceClassification, results: dict[str, Any]
) -> None:
    results["data"]["source"] = "rajpurkar/squad validation"
    push_to_hub(measured, REPO, results=results)
    assert len(index_of(hub)) == 4
    f1 = index_of(hub)[None, "f1", "refined-clustered"]
    assert f1.metric_value == pytest.approx(results["methods"]["refined-clustered"]["scores"]["f1"], abs=1e-3)
    assert (f1.dataset_type, f1.task_type, f1.dataset_name) == (
        "rajpurkar/squad",
        "question-answering",
        "SQuAD v1.1, 400 examples",
    )
    glue = json.loads(GLUE.read_text())
    glue["data"]["source"] = "nyu-mll/glue qnli validation"
    push_to_hub(classifier, "tester/pairs", results=glue)
    index = index_of(hub, "tester/pairs")
    assert len(index) == 2
    accuracy = index["qnli", "accuracy", "full"]
    assert accuracy.metric_value == pytest.approx(100 * glue["methods"]["full"]["scores"]["accuracy"], abs=1e-3)
    assert (accuracy.dataset_type, accuracy.dataset_split) == ("nyu-mll/glue", "validation")


def test_results_of_another_model_are_refused(
    hub: Hub, measured: BertForQuestionAnswering, classifier: BertForSequenceClassification, results: dict[str, Any]
) -> None:
    advice = r"\. Give the results of this model, or leave results out\."
    with pytest.raises(
        SaveError, match="measured question answering, and BertForSequenceClassification has no h.*" + advice
    ):
        push_to_hub(classifier, REPO, results=results)
    with pytest.raises(SaveError, match="measured a classifier, and BertForQuestionAnswering is none" + advice):
        push_to_hub(measured, REPO, results=GLUE)
    results["model"]["model_type"] = "modernbert"
    with pytest.raises(SaveError, match="measured a model of the type modernbert, and this one is bert" + advice):
        push_to_hub(measured, REPO, results=results)
    assert hub.log == []
    del results["model"]["model_type"]
    push_to_hub(measured, REPO, results=results)


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"path": "data/my dev.csv"}, ("my dev.csv", None, None)),
        ({"path": "data/x.JSON"}, ("x.JSON", None, None)),
        ({"path": "a, b/dev.csv"}, ("dev.csv", None, None)),
        ({"path": "data/mine", "config": "hard", "split": "test"}, ("mine", "hard", "test")),
        ({"path": "rajpurkar/squad", "split": "validation"}, ("squad", None, "validation")),
        ({"dataset": "me/mine", "config": "hard", "split": "test"}, ("me/mine", "hard", "test")),
        ({"dataset": "squad", "split": "validation"}, ("squad", None, "validation")),
    ],
)
def test_the_recorded_origin_is_what_the_card_says(
    hub: Hub,
    measured: BertForQuestionAnswering,
    results: dict[str, Any],
    part: dict[str, str],
    found: tuple[str | None, ...],
) -> None:
    """Whatever the text of `source` looks like."""
    origin = {"dataset": None, "path": None, "config": None, "split": None, **part}
    results["data"] |= {"source": "rajpurkar/squad validation", "parts": [{**origin, "examples": 7, "labelled": True}]}
    push_to_hub(measured, REPO, results=results)
    data = data_of(card_of(hub))
    name, config, split = found
    assert data.datasets == ([part["dataset"]] if "dataset" in part else None)
    assert {
        (one.dataset_type, one.dataset_config, one.dataset_split, one.dataset_name) for one in data.eval_results or []
    } == {(name, config or (None if "dataset" in part else "squad"), split, "SQuAD v1.1, 7 examples")}
    assert f"\n7 examples from {' '.join(each for each in found if each)}, at most 384 tokens." in card_of(hub)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/my dev.csv", "my dev.csv"),
        ("data/x.JSON", "x.JSON"),
        ("a, b/dev.csv", "dev.csv"),
        ("me/mine validation", "mine validation"),
    ],
)
def test_an_older_file_names_no_data_set_that_may_be_a_file_or_folder(
    hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any], source: str, name: str
) -> None:
    results["data"]["source"] = source
    push_to_hub(measured, REPO, results=results)
    data = data_of(card_of(hub))
    assert data.datasets is None
    assert {(one.dataset_type, one.dataset_split) for one in data.eval_results or []} == {(name, None)}
    assert f"400 examples from {name}, at most" in card_of(hub)


@pytest.mark.parametrize("parts", [[], [{"path": "dev.json"}], "dev.json"])
def test_a_damaged_origin_is_told(measured: BertForQuestionAnswering, results: dict[str, Any], parts: Any) -> None:
    results["data"]["parts"] = parts
    with pytest.raises(SaveError, match="results is damaged: .*Evaluate again"):
        push_to_hub(measured, REPO, results=results)


def test_results_on_a_file_are_not_published_as_the_benchmark(
    hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]
) -> None:
    """It may hold anything in the form of SQuAD."""
    results["data"]["source"] = "/srv/clinic/questions.json"
    push_to_hub(measured, REPO, results=results)
    data = data_of(card_of(hub))
    assert data.datasets is None
    assert {one.dataset_type for one in data.eval_results or []} == {"questions.json"}
    assert "rajpurkar" not in card_of(hub) and "/srv" not in card_of(hub)


def test_both_parts_of_mnli_are_told_apart(hub: Hub, classifier: BertForSequenceClassification) -> None:
    glue = json.loads(GLUE.read_text())
    glue["task"] |= {"name": "mnli", "title": "MNLI"}
    glue["data"]["source"] = "nyu-mll/glue mnli validation_matched, nyu-mll/glue mnli validation_mismatched"
    glue["data"]["splits"] = ["validation_matched", "validation_mismatched"]
    for entry in glue["methods"].values():
        entry["scores"]["accuracy_mm"] = 0.5
    push_to_hub(classifier, REPO, results=glue)
    found = [one for one in data_of(card_of(hub)).eval_results or [] if one.metric_args == {"attention": "full"}]
    assert {(one.metric_type, one.dataset_split, one.dataset_name) for one in found} == {
        ("accuracy", "validation_matched", "MNLI"),
        ("accuracy", "validation_mismatched", "MNLI"),
    }, "an older file does not say how many examples each part has"
    places = "nyu-mll/glue mnli validation_matched, nyu-mll/glue mnli validation_mismatched"
    assert f"400 examples from {places}, at most" in card_of(hub)
    glue["data"]["source"] = "data/a.tsv, data/b, c.tsv"
    push_to_hub(classifier, REPO, results=glue)
    assert {one.dataset_type for one in data_of(card_of(hub)).eval_results or []} == {"a.tsv, b, c.tsv"}


def test_each_part_of_mnli_has_its_own_number_of_examples(hub: Hub, classifier: BertForSequenceClassification) -> None:
    glue = json.loads(GLUE.read_text())
    glue["task"] |= {"name": "mnli", "title": "MNLI", "primary_scores": ["accuracy_mm"]}
    parts = [
        {"dataset": None, "path": "data/a.tsv", "config": None, "split": None, "examples": 1376, "labelled": False},
        {"dataset": None, "path": "data/b.tsv", "config": None, "split": None, "examples": 24, "labelled": True},
    ]
    glue["data"] |= {"source": "data/a.tsv, data/b.tsv", "examples": 1400, "parts": parts}
    for entry in glue["methods"].values():
        entry["scores"] = {"accuracy_mm": 0.5}
        if entry["difference_to_full"]:
            entry["difference_to_full"] = {"accuracy_mm": entry["difference_to_full"]["accuracy"]}
    push_to_hub(classifier, REPO, results=glue, benchmark="owner/pairs:mnli")
    found = data_of(card_of(hub)).eval_results or []
    assert {(one.dataset_type, one.dataset_name) for one in found} == {("b.tsv", "MNLI, 24 examples")}
    assert "1,376 examples from a.tsv (without labels), 24 examples from b.tsv, at most" in card_of(hub)
    (entry,) = yaml.safe_load(hub.repos[REPO].files()[".eval_results/bert-cluster-owner--pairs--mnli.yaml"])
    assert entry["notes"].startswith("accuracy_mm with ") and "24 examples" in entry["notes"]


def test_files_of_one_name_are_two_data_sets(hub: Hub, classifier: BertForSequenceClassification) -> None:
    """As in GLUE's own folders: QNLI/dev.tsv and RTE/dev.tsv."""
    both = [json.loads(GLUE.read_text()) for _ in range(2)]
    both[1]["task"] |= {"name": "rte", "title": "RTE"}
    for one in both:
        one["data"]["source"] = f"glue/{one['task']['title']}/dev.tsv"
    push_to_hub(classifier, REPO, results=both)
    found = {(one.dataset_type, one.dataset_config, one.dataset_name) for one in index_of(hub).values()}
    assert found == {("dev.tsv", "qnli", "QNLI, 400 examples"), ("dev.tsv", "rte", "RTE, 400 examples")}


def test_the_benchmark_file_is_valid(hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]) -> None:
    push_to_hub(measured, REPO, results=results)
    assert not [path for path in hub.repos[REPO].files() if path.startswith(".eval_results")]
    push_to_hub(measured, REPO, results=results, benchmark="owner/answers:default")
    content = hub.repos[REPO].files()[".eval_results/bert-cluster-owner--answers--default.yaml"]
    (entry,) = parsers.parse_eval_result_entries(yaml.safe_load(content))
    assert isinstance(entry, EvalResultEntry)
    assert (entry.dataset_id, entry.task_id) == ("owner/answers", "default")
    assert entry.value == pytest.approx(results["methods"]["refined-clustered"]["scores"]["f1"], abs=1e-3)
    assert "400 examples, no fine-tuning" in str(entry.notes)


def test_without_labels_there_are_no_scores(
    hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]
) -> None:
    for entry in results["methods"].values():
        entry |= {"scores": {}, "difference_to_full": None}
    push_to_hub(measured, REPO, results=results)
    assert data_of(card_of(hub)).eval_results is None
    assert "| attention | agrees with full | seconds |" in card_of(hub)
    with pytest.raises(SaveError, match="needs the scores of exactly one task, got 1 results, 0 of them with scores"):
        push_to_hub(measured, REPO, results=results, benchmark="owner/answers:default")


def test_without_full_the_card_says_so(hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]) -> None:
    del results["methods"]["full"]
    results["methods"]["refined-clustered"] |= {"difference_to_full": None, "agreement_with_full": None}
    push_to_hub(measured, REPO, results=results)
    assert "Exact attention was not measured beside it." in card_of(hub)


def test_layers_of_their_own_are_listed(hub: Hub) -> None:
    model = tiny_answerer(method="clustered", clusters=3, layers={0: {"method": "full"}}, exact_below=9)
    push_to_hub(model, REPO)
    card = card_of(hub)
    assert "| 0 | `full` | exact_below = 9 |" in card or "| 0 | `full` | exact |" in card
    assert "| 1 to 2 | `clustered` | clusters = 3, bits = 63, iterations = 10, exact_below = 9 |" in card
    assert "`auto`" not in card


THEIRS = """---
# what I wrote about it
license: mit  # mine
tags: [answers, fast]
language:
- en
base_model: owner/older
model-index:
- name: My answers
  results:
  - task:
      type: question-answering
    dataset:
      name: Mine
      type: me/mine
    metrics:
    - type: f1
      value: 12.5
---

# My answers

I trained this *myself*.

## Thanks

To everybody.
"""


def test_a_card_of_the_user_is_kept(hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]) -> None:
    hub.create(REPO, {"README.md": THEIRS})
    pushed = push_to_hub(measured, REPO, results=results)
    card = card_of(hub)
    assert "# what I wrote about it\nlicense: mit  # mine\n" in card
    assert "language:\n- en\nbase_model: owner/older\n" in card
    assert "weights come from [owner/older]" in card
    assert "# My answers\n\nI trained this *myself*.\n\n## Thanks\n\nTo everybody.\n\n" + BEGIN in card
    data = data_of(card)
    assert (data.license, data.base_model) == ("mit", "owner/older")
    assert data.tags == ["answers", "fast", "bert-cluster", "clustered-attention", "efficient-attention"]
    assert data.model_name == "My answers"
    assert {one.dataset_type for one in data.eval_results or []} == {"me/mine", "squad-dev-slice.json"}
    assert [note for note in pushed.notes if "card" in note] == []
    push_to_hub(measured, REPO, results=results, base_model="owner/newer")
    assert data_of(card_of(hub)).base_model == "owner/newer", "what is given now wins"
    assert "weights come from [owner/newer]" in card_of(hub)


def test_only_our_part_is_written_again(hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]) -> None:
    push_to_hub(measured, REPO, results=results)
    repo = hub.repos[REPO]
    edited = card_of(hub).replace("# answers\n", "# Mine\n\nAbove.\n").replace(END, f"{END}\n\nBelow.") + "\nEnd.\n"
    edited = edited.replace("**no fine-tuning**", "trained for a week")
    repo.add("main", {**repo.commits[repo.refs["main"]], "README.md": hub.file("README.md", edited.encode())})
    bert_cluster.patch(measured, method="clustered", clusters=4)
    push_to_hub(measured, REPO)
    card = card_of(hub)
    assert "# Mine\n\nAbove.\n\n" + BEGIN in card
    assert card.endswith(END + "\n\nBelow.\n\nEnd.\n")
    assert "**no fine-tuning**" in card and "trained for a week" not in card
    assert "clusters = 4" in card and "What it costs" not in card
    assert data_of(card).eval_results is None, "results of other settings must not stay"
    assert push_to_hub(measured, REPO).uploaded == ()


@pytest.mark.parametrize("card", [f"# Mine\n{BEGIN}\n", f"# Mine\n{END}\n{BEGIN}\n", f"{BEGIN}{END}{BEGIN}{END}"])
def test_damaged_marks_are_told(hub: Hub, model: BertForQuestionAnswering, card: str) -> None:
    hub.create(REPO, {"README.md": card})
    with pytest.raises(SaveError, match="one of each is expected, in this order.*Nothing was changed on the Hub"):
        push_to_hub(model, REPO)
    assert card_of(hub) == card


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\ntags: [a\n---\n", "is not YAML: .*Repair it first"),
        ("---\n- a\n---\n", "must be keys with values, got list"),
    ],
)
def test_damaged_front_matter_is_told(hub: Hub, model: BertForQuestionAnswering, card: str, message: str) -> None:
    hub.create(REPO, {"README.md": card})
    with pytest.raises(SaveError, match=message):
        push_to_hub(model, REPO)
    assert card_of(hub) == card


def test_base_model_and_licence_from_where_it_was_loaded(
    hub: Hub, measured: BertForQuestionAnswering, tmp_path: Path
) -> None:
    push_to_hub(bert_cluster.patch(measured), "tester/base")
    hub.repos["tester/base"].private = False
    loaded = bert_cluster.from_pretrained("tester/base")
    push_to_hub(loaded, REPO)
    data = data_of(card_of(hub))
    assert (data.base_model, data.license) == ("tester/base", None)


def test_a_local_folder_is_no_base_model(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a name that could be a repository's and is a folder here."""
    monkeypatch.chdir(tmp_path)
    bert_cluster.unpatch(tiny_answerer()).save_pretrained("owner/base")
    for place in ("owner/base", str(tmp_path / "owner" / "base")):
        loaded = BertForQuestionAnswering.from_pretrained(place)
        pushed = push_to_hub(bert_cluster.patch(loaded), REPO)
        assert data_of(card_of(hub)).base_model is None
        assert any("names no base_model: the model was not loaded from a repository" in note for note in pushed.notes)
        assert any("names no license: that of the base model could not be read" in note for note in pushed.notes)


def test_a_model_pushed_back_to_its_own_repository_is_not_its_own_base(
    hub: Hub, model: BertForQuestionAnswering
) -> None:
    push_to_hub(model, REPO)
    pushed = push_to_hub(bert_cluster.from_pretrained(REPO), REPO)
    assert pushed.uploaded == ()
    assert data_of(card_of(hub)).base_model is None


@pytest.mark.parametrize("answer", [{"status": 400, "times": 99}, {"status": 403, "code": "GatedRepo"}])
def test_a_base_model_whose_card_cannot_be_read(
    hub: Hub, model: BertForQuestionAnswering, answer: dict[str, Any]
) -> None:
    hub.create("owner/unseen", {"README.md": "---\nlicense: mit\n---\n"})
    hub.fault("HEAD", "/owner/unseen/resolve/", **answer)
    pushed = push_to_hub(model, REPO, base_model="owner/unseen")
    assert data_of(card_of(hub)).license is None
    assert any("license" in note for note in pushed.notes)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", {"tags": ["a"], "license": "mit"}),
        ("license: gpl-3.0", {"license": "gpl-3.0", "tags": ["a"]}),
        ("tags: b", {"tags": ["b", "a"], "license": "mit"}),
        ("tags: [\nb,\nc]\nx: 1", {"tags": ["b", "c", "a"], "x": 1, "license": "mit"}),
        ("tags:\n- b\n# end\nx: 1\n", {"tags": ["b", "a"], "x": 1, "license": "mit"}),
        ("license:\ntags: [a]", {"tags": ["a"], "license": "mit"}),
        ("title: 'a: b'\ndate: 2020-01-01", None),
    ],
)
def test_front_matter_is_added_to(before: str, after: dict[str, Any] | None) -> None:
    text = front_matter.merged(before, {"tags": ["a"], "license": "mit"}, [], "name")
    wanted = after if after is not None else {**yaml.safe_load(before), "tags": ["a"], "license": "mit"}
    assert yaml.safe_load(text) == wanted
    assert front_matter.merged(text, {"tags": ["a"], "license": "mit"}, [], "name") == text
    assert "# end" in text or "# end" not in before


@pytest.mark.parametrize("card", ["# Mine\n---\na: b\n---\n", "text --- more\n", "", "---\nno end\n"])
def test_what_is_no_front_matter_stays_text(card: str) -> None:
    assert front_matter.split(card) == ("", card)


def test_front_matter_with_windows_line_ends() -> None:
    assert front_matter.split("---\r\nlicense: mit\r\n---\r\n# A\r\n") == ("license: mit\r\n", "# A\r\n")


def test_a_folder_keeps_the_card_that_is_there(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "README.md").write_text(THEIRS)
    saved = save_pretrained(model, tmp_path / "answers")
    card = (tmp_path / "answers" / "README.md").read_text()
    assert "I trained this *myself*." in card and BEGIN in card
    assert set(saved.files) == {"README.md", "config.json", "model.safetensors"}


def test_a_byte_order_mark_and_windows_line_ends_are_survived(hub: Hub, model: BertForQuestionAnswering) -> None:
    before = "\ufeff---\r\nlicense: mit\r\n---\r\n# Mine\r\n\r\nText.\r\n"
    hub.create(REPO, {"README.md": before})
    push_to_hub(model, REPO)
    card = card_of(hub)
    assert card.startswith("---\r\nlicense: mit\r\nlibrary_name: transformers\r\n")
    assert "---\r\n# Mine\r\n\r\nText.\r\n\r\n" + BEGIN + "\r\n" in card
    assert "\n" not in card.replace("\r\n", "")
    assert push_to_hub(model, REPO).uploaded == ()


def test_values_as_lists_are_seen(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.create(REPO, {"README.md": "---\nbase_model:\n- owner/base\n'license':\n- mit\n---\n"})
    pushed = push_to_hub(model, REPO)
    assert [note for note in pushed.notes if "card" in note] == []
    assert "weights come from [owner/base]" in card_of(hub)
    assert data_of(card_of(hub)).base_model == ["owner/base"]


def test_a_loaded_model_is_pushed_back_unchanged(hub: Hub, measured: BertForQuestionAnswering) -> None:
    push_to_hub(measured, REPO, base_model="owner/base")
    assert push_to_hub(bert_cluster.from_pretrained(REPO), REPO).uploaded == ()


def test_a_licence_with_a_name(hub: Hub, model: BertForQuestionAnswering) -> None:
    licence = "license: other\nlicense_name: my-licence\nlicense_link: LICENSE\n"
    hub.create("owner/named", {"README.md": f"---\n{licence}---\n"})
    push_to_hub(model, REPO, base_model="owner/named")
    assert licence in card_of(hub)


def test_an_odd_model_index_is_left_alone(
    hub: Hub, measured: BertForQuestionAnswering, results: dict[str, Any]
) -> None:
    odd = "model-index:\n- name: a\n  results:\n  - metrics: {f1: 3}\n- nothing\n"
    hub.create(REPO, {"README.md": f"---\n{odd}---\n# Mine\n"})
    push_to_hub(measured, REPO)
    assert odd in card_of(hub)
    push_to_hub(measured, REPO, results=results)
    index = yaml.safe_load(card_of(hub).split("---\n")[1])["model-index"]
    assert index[0]["results"][0] == {"metrics": {"f1": 3}} and index[1] == "nothing"


def test_a_folders_name_is_no_title(hub: Hub, tmp_path: Path) -> None:
    from bert_cluster.cli import main

    save_pretrained(tiny_answerer(), tmp_path / "checkpoint-500")
    assert main(["push", str(tmp_path / "checkpoint-500"), REPO]) == 0
    assert "# answers\n" in card_of(hub) and "checkpoint-500" not in card_of(hub)
