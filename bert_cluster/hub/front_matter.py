"""The YAML at the head of a model card. Keys that are there keep what their author wrote; only what is missing is added."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from bert_cluster.errors import SaveError
from bert_cluster.hub.privacy import is_local_path

INDEX = "model-index"
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
    there = parsed(yaml_text)
    changes: dict[str, Any] = {}
    for key, value in ours.items():
        old = there.get(key)
        if isinstance(value, list):
            wanted = listed(old) + [item for item in value if item not in listed(old)]
        else:
            wanted = value if old is None else old
        if wanted != old and wanted != []:
            changes[key] = wanted
    index = _model_index(there.get(INDEX), results, model_name)
    if index != listed(there.get(INDEX)):
        changes[INDEX] = index
    return replaced(yaml_text, changes)


def replaced(yaml_text: str, changes: Mapping[str, Any]) -> str:
    """Front matter with these values, whatever was there; a key whose value is an empty list is taken out."""
    text = yaml_text.rstrip("\n")
    for key, value in changes.items():
        text = _with_key(text, key, value)
    wanted = {
        key: value for key, value in {**parsed(yaml_text), **changes}.items() if value != [] or key not in changes
    }
    if not _holds(text, wanted):  # an unusual layout, such as a list in brackets over several lines
        text = _written(wanted)
    return text.strip("\n")


def _holds(yaml_text: str, content: Mapping[str, Any]) -> bool:
    try:
        return (yaml.safe_load(yaml_text) or {}) == content
    except yaml.YAMLError:
        return False


def _written(content: Mapping[str, Any]) -> str:
    return yaml_dump(dict(content), sort_keys=False, line_break="\n").rstrip("\n")


def without_local_base(card: str) -> str:
    """A card without a base_model that is a path of this machine, as sentence-transformers writes after training on one."""
    yaml_text, body = split(card)
    bases = listed(parsed(yaml_text).get("base_model"))
    if not any(is_local_path(base) for base in bases):
        return card
    return (
        f"---\n{replaced(yaml_text, {'base_model': [base for base in bases if not is_local_path(base)]})}\n---\n{body}"
    )


def parsed(yaml_text: str) -> dict[str, Any]:
    """The keys and values of a front matter.

    Raises:
        SaveError: it is no YAML, or no mapping.
    """
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


def listed(value: Any) -> list[Any]:
    """A value that may be one or a list of them, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _with_key(yaml_text: str, key: str, value: Any) -> str:
    """The text with one top-level key replaced or appended; taken out where the value is an empty list."""
    written = [] if value == [] else _written({key: value}).split("\n")
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
    """The models of `model-index`: what is there without our results, and ours under the first name of what is left."""
    models = [_without_ours(model) for model in listed(old)]
    left = [model for model in models if not isinstance(model, dict) or model.get("results")]
    if not results:
        return left
    name = left[0].get("name", model_name) if left and isinstance(left[0], dict) else model_name
    new = eval_results_to_model_index(name, list(results))[0]["results"]
    if not left or not isinstance(left[0], dict):
        return [{"name": name, "results": new}, *left]
    return [{**left[0], "results": [*listed(left[0].get("results")), *new]}, *left[1:]]


def _without_ours(model: Any) -> Any:
    """A model of `model-index` without the results that carry our argument; what has another form stays as it is."""
    if not isinstance(model, dict):
        return model
    kept = []
    for result in listed(model.get("results")):
        metrics = result.get("metrics") if isinstance(result, dict) else None
        if not isinstance(metrics, list):
            kept.append(result)
        elif theirs := [metric for metric in metrics if not _is_ours(metric)]:
            kept.append({**result, "metrics": theirs})
    return {**model, "results": kept}


def _is_ours(metric: Any) -> bool:
    arguments = metric.get("args") if isinstance(metric, dict) else None
    return isinstance(arguments, dict) and "attention" in arguments
