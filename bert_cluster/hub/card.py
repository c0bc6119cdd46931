"""The model card: what was done to the model, how to load it, what it costs. Our part lies between two marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_cluster import cells
from bert_cluster.cells import NONE
from bert_cluster.config import AUTO, FULL, GROWTH
from bert_cluster.errors import SaveError
from bert_cluster.hub import front_matter
from bert_cluster.hub.kinds import SENTENCE_TRANSFORMERS, Kind
from bert_cluster.hub.results import TaskResults, eval_results
from bert_cluster.info import LayerInfo, info

BEGIN, END = "<!-- bert-cluster:begin -->", "<!-- bert-cluster:end -->"
_NOTICE = "<!-- This part is written again at every save and push; write above or below it. -->"
TAGS = ("bert-cluster", "clustered-attention", "efficient-attention")

_METHODS = {
    "clustered": "clustered attention: each query gets the attention of its cluster",
    "improved-clustered": "improved clustered attention: each query gets its cluster's attention, and its own products with "
    "the keys that matter most to the cluster",
    "refined-clustered": "refined clustered attention: each query gets its own products with the keys that matter most to its "
    "cluster and with its neighbours, and its own weights for summaries of all other keys",
}
_CITATION = """```bibtex
@inproceedings{vyas2020fast,
  title     = {Fast Transformers with Clustered Attention},
  author    = {Vyas, Apoorv and Katharopoulos, Angelos and Fleuret, Fran\\c{c}ois},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
  url       = {https://arxiv.org/abs/2007.04825}
}
```"""


@dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
        kind: the model.
        place: repository or folder in the code that loads it.
        revision: branch in that code, None for the main one.
        has_tokenizer: whether one is saved with the model.
        base_model: repository that the weights come from, None where it is not known.
        licence: keys of the front matter that say the base model's, empty where it could not be read.
        results: comparisons to show; `plots` names the picture of each, "" where there is none.
    """

    kind: Kind
    place: str
    revision: str | None
    has_tokenizer: bool
    base_model: str | None
    licence: Mapping[str, Any]
    results: Sequence[TaskResults]
    plots: Sequence[str]


def write_card(card: Card, existing: str | None) -> str:
    """The whole README.md.

    Args:
        existing: the card that is there. What its author wrote is kept: only our part and missing keys of the front matter
            are written.

    Raises:
        SaveError: its marks are damaged, or its front matter is not YAML.
    """
    name = card.place.split("/")[-1]
    yaml_text, body = front_matter.split(existing or "")
    yaml_text = front_matter.merged(yaml_text, _metadata(card), eval_results(card.results, card.kind.task), name)
    if card.base_model is not None:
        there = front_matter.parsed(yaml_text).get("base_model")
        if card.base_model not in front_matter.listed(there):
            yaml_text = front_matter.replaced(yaml_text, {"base_model": card.base_model})
    section = f"{BEGIN}\n{_NOTICE}\n\n{section_of(card)}\n\n{END}"
    body = f"# {name}\n\n{section}\n" if existing is None else _with_section(body, section)
    return f"---\n{yaml_text}\n---\n{body}"


def _with_section(body: str, section: str) -> str:
    begins, ends = body.count(BEGIN), body.count(END)
    if begins == ends == 0:
        return f"{body.rstrip()}\n\n{section}\n".lstrip("\n")
    if (begins, ends) != (1, 1) or body.index(END) < body.index(BEGIN):
        raise SaveError(
            f"The README.md that is there has {begins} marks {BEGIN} and {ends} marks {END}; one of each is expected, in this "
            f"order. Take all of them out, and the next save adds its part at the end."
        )
    return body[: body.index(BEGIN)] + section + body[body.index(END) + len(END) :]


def _metadata(card: Card) -> dict[str, Any]:
    values: dict[str, Any] = {
        "base_model": card.base_model,
        **card.licence,
        "library_name": card.kind.library,
        "pipeline_tag": card.kind.task,
        "tags": list(TAGS),
        "datasets": list(
            dict.fromkeys(part.dataset for one in card.results for part in one.parts if part.dataset is not None)
        ),
    }
    return {key: value for key, value in values.items() if value is not None}


def section_of(card: Card) -> str:
    """Our part of the card."""
    parts = [_what(card), _how(card)]
    if card.results:
        parts.append(_costs(card))
    return "\n\n".join(
        [*parts, _limits(), f"## Citation\n\nClustered attention, and the improved form of it, are from\n\n{_CITATION}"]
    )


def _what(card: Card) -> str:
    layers = info(card.kind.model).layers
    methods = [method for method in _METHODS if any(layer.method == method for layer in layers)]
    base = (
        ""
        if card.base_model is None
        else f", whose weights come from [{card.base_model}](https://huggingface.co/{card.base_model}),"
    )
    lines = [
        "## Clustered attention",
        "",
        f"The self-attention of this model{base} runs as {'; '.join(_METHODS[method] for method in methods)}. Its cost grows "
        f"linearly with the length of the text. Patching changed no weight and trained nothing: **no fine-tuning**.",
        "",
        "| layers | method | budgets |",
        "|---|---|---|",
        *(f"| {span} | `{layer.method}` | {_budgets(layer)} |" for span, layer in _grouped(layers)),
    ]
    if any(AUTO in layer.budgets.values() for layer in layers):
        lines += ["", f"`auto` goes by each text's own number of tokens: {_growth()}."]
    return "\n".join(lines)


def _grouped(layers: Sequence[LayerInfo]) -> list[tuple[str, LayerInfo]]:
    """Runs of neighbouring layers with the same settings, as "0 to 5"."""
    groups: list[list[int]] = []
    for index, layer in enumerate(layers):
        last = layers[groups[-1][0]] if groups else None
        if last is not None and (last.method, last.budgets) == (layer.method, layer.budgets):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [(cells.span(group), layers[group[0]]) for group in groups]


def _budgets(layer: LayerInfo) -> str:
    return ", ".join(f"{name} = {value}" for name, value in layer.budgets.items()) or "exact"


def _growth() -> str:
    steps = [
        f"from {least:,} " + ", ".join(f"{name} {value}" for name, value in budgets.items())
        for least, budgets in GROWTH.items()
    ]
    return "; ".join(steps)


def _how(card: Card) -> str:
    return "\n".join(
        [
            "## How to load it",
            "",
            "With the Python package `bert-cluster`, clustered as described here:",
            "",
            "```python",
            *_code(card, clustered=True),
            "```",
            "",
            f"With {card.kind.library} alone, without `bert-cluster`: the same weights with exact attention. Nothing in the "
            "repository needs remote code.",
            "",
            "```python",
            *_code(card, clustered=False),
            "```",
        ]
    )


def _code(card: Card, *, clustered: bool) -> list[str]:
    sentences = card.kind.library == SENTENCE_TRANSFORMERS
    revision = "" if card.revision is None else f', revision="{card.revision}"'
    place = f'("{card.place}"{revision})'
    tokenized = card.has_tokenizer and not sentences
    names = [*([] if clustered else [card.kind.loader]), *(["AutoTokenizer"] if tokenized else [])]
    lines = [f"from {card.kind.library.replace('-', '_')} import {', '.join(names)}"] if names else []
    if clustered:
        lines += [*([""] if lines else []), "import bert_cluster"]
    lines.append("")
    if tokenized:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained{place}")
    loader = "bert_cluster" if clustered else card.kind.loader
    return [*lines, f"model = {loader}{'' if sentences and not clustered else '.from_pretrained'}{place}"]


def comparison(one: TaskResults) -> list[str]:
    """One task's table, and under which conditions it was measured."""
    return [f"### {one.title}", "", *_table(one), "", _conditions(one)]


def _costs(card: Card) -> str:
    lines = ["## What it costs and gains"]
    for one, plot in zip(card.results, card.plots, strict=True):
        lines += ["", *comparison(one)]
        if FULL not in one.shown:
            lines += ["", "Exact attention was not measured beside it."]
        if plot:
            lines += ["", f"![{one.title} by method: scores, time and memory]({plot})"]
    return "\n".join(lines)


def _table(one: TaskResults) -> list[str]:
    scores = list(one.data["methods"][one.method]["scores"])
    header = ["attention"]
    for score in scores:
        header += [score, "difference to full [95 %]"]
    header += ["agrees with full", "seconds", "tokens/s", "peak memory"]
    rows = [[f"`{name}`", *_row(one, scores, entry)] for name, entry in one.shown.items()]
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _row(one: TaskResults, scores: Sequence[str], entry: Mapping[str, Any]) -> list[str]:
    shown = []
    for score in scores:
        interval = (entry["difference_to_full"] or {}).get(score) or {}
        value, low, high = (interval.get(key) for key in ("value", "low", "high"))
        shown += [cells.score(entry["scores"].get(score), one.scale), cells.difference(value, low, high, one.scale)]
    agreement = entry["agreement_with_full"]
    return [
        *shown,
        NONE
        if agreement is None or agreement["value"] is None
        else cells.agreement(agreement["kind"], agreement["value"]),
        f"{entry['seconds']:.1f}",
        f"{entry['tokens_per_second']:,.0f}",
        cells.memory(entry["peak_memory_bytes"]),
    ]


def _conditions(one: TaskResults) -> str:
    environment, settings = one.data["environment"], one.data["settings"]
    processes = environment["processes"]
    return (
        f"{one.examples}, at most {settings['max_seq_length']} tokens. Scores are in points of "
        f"100; brackets are paired bootstrap intervals over the examples. Seconds are forward passes only: {environment['device_name']}, "
        f"{environment['threads']} threads, {processes} process{'' if processes == 1 else 'es'}, {one.data['model']['dtype']}, "
        f"torch {environment['torch']}, operators {environment['operators']}."
    )


def _limits() -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            "- It is an approximation: outputs differ from those of exact attention, and what that costs depends on the task. "
            "Measure it on yours (`squad-eval`, `glue-eval`, `bert-cluster calibrate`).",
            "- It is for long texts. Up to 512 tokens attention is a small part of the work: expect little or no gain in time.",
            "- Clustered layers form no attention weights: a call with `output_attentions=True` runs exact attention.",
            "- What the weights know, and their biases, are those of the model that was patched.",
        ]
    )


def licence_in(card_text: str) -> dict[str, Any]:
    """The keys of a card's front matter that say its licence; empty where there are none."""
    there = front_matter.parsed(front_matter.split(card_text)[0])
    return {key: there[key] for key in ("license", "license_name", "license_link") if there.get(key) is not None}
