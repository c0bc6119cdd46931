"""The YAML at the head of a model card. Keys that are there keep what their author wrote; only what is missing is added."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from bert_cluster.errors import SaveError

_BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def split(card: str) -> tuple[str, str]:
    """The YAML of a card without its fences, and the text after it."""
    found = _BLOCK.match(card)
    return ("", card) if found is None else (found[1], card[found.end() :])


def merged(yaml_text: str, ours: Mapping[str, Any], results: Sequence[EvalResult], model_name: str) -> str:
    """Front matter with our keys added.

    Args:
        yaml_text: what is there, without fences; may be empty.
        ours: values by key. Lists are appended to; of everything else only what is missing is written.
        results: replace the results of an earlier call in `model-index`; what others wrote there stays.
        model_name: of a `model-index` that is written for the first time.

    Returns:
        YAML without fences; lines of keys that do not change are left as they are, comments too.

    Raises:
        SaveError: what is there is no YAML, or no mapping.
    """
    there = _parsed(yaml_text)
    changes: dict[str, Any] = {}
    for key, value in ours.items():
        old = there.get(key)
        if isinstance(value, list):
            wanted = _listed(old) + [item for item in value if item not in _listed(old)]
        else:
            wanted = value if old is None else old
        if wanted != old and wanted != []:
            changes[key] = wanted
    index = _model_index(there.get("model-index"), results, model_name)
    if index != (there.get("model-index") or []):
        changes["model-index"] = index
    text = yaml_text.rstrip("\n")
    for key, value in changes.items():
        text = _with_key(text, key, value)
    if not _holds(text, {**there, **changes}):  # an unusual layout, such as a list in brackets over several lines
        text = _written({**there, **changes})
    return text.strip("\n")


def _holds(yaml_text: str, content: Mapping[str, Any]) -> bool:
    try:
        return (yaml.safe_load(yaml_text) or {}) == content
    except yaml.YAMLError:
        return False


def _written(content: Mapping[str, Any]) -> str:
    return yaml_dump(dict(content), sort_keys=False, line_break="\n").rstrip("\n")


def _parsed(yaml_text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(yaml_text) if yaml_text.strip() else {}
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SaveError(
            f"The front matter of the README.md that is there is not YAML: {problem}. Repair it first."
        ) from error
    if not isinstance(content, dict | None):
        raise SaveError(
            f"The front matter of the README.md that is there must be keys with values, got {type(content).__name__}. Repair it "
            f"first."
        )
    return content or {}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _with_key(yaml_text: str, key: str, value: Any) -> str:
    """The text with one top-level key replaced, or appended."""
    written = _written({key: value}).split("\n")
    lines = yaml_text.split("\n") if yaml_text.strip() else []
    start = next(
        (number for number, line in enumerate(lines) if re.match(rf"[\"']?{re.escape(key)}[\"']?\s*:", line)), None
    )
    if start is None:
        return "\n".join([*lines, *written])
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " \t-"):
        end += 1
    return "\n".join([*lines[:start], *written, *lines[end:]])


def _model_index(old: Any, results: Sequence[EvalResult], model_name: str) -> list[Any]:
    """The models of `model-index`: what is there without our results, and ours, under the first model's name."""
    models = [_without_ours(model) for model in _listed(old) if isinstance(model, dict)]
    name = models[0].get("name", model_name) if models else model_name
    new = eval_results_to_model_index(name, list(results))[0]["results"] if results else []
    if not models:
        return [{"name": name, "results": new}] if new else []
    first = {**models[0], "results": [*(models[0].get("results") or []), *new]}
    return [model for model in (first, *models[1:]) if model.get("results") or model.get("name") != model_name]


def _without_ours(model: dict[str, Any]) -> dict[str, Any]:
    kept = []
    for result in model.get("results") or []:
        metrics = [metric for metric in result.get("metrics") or [] if "attention" not in (metric.get("args") or {})]
        if metrics or not result.get("metrics"):
            kept.append({**result, "metrics": metrics} if "metrics" in result else result)
    return {**model, "results": kept}
