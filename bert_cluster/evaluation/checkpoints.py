"""Finds out what `--model_name_or_path` is, before any weights are loaded: a checkpoint, or an adapter on a base model."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from bert_cluster.config import ClusterConfig
from bert_cluster.errors import BertClusterError
from bert_cluster.evaluation.errors import CheckpointError
from bert_cluster.hub.faults import answer_of, first_cause, may_pass
from bert_cluster.loading import ADAPTER_CONFIG, optional_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
# last layer of the heads that transformers' *ForSequenceClassification and *ForQuestionAnswering classes have
OUTPUT_LAYERS = (
    "classifier.out_proj.weight",
    "classifier.weight",
    "score.weight",
    "qa_outputs.weight",
    "summary.weight",
)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter. `folder` holds its files, `outputs` is its head's size (None: it carries no head)."""

    folder: Path
    base: str
    base_revision: str | None
    outputs: int | None
    keys: frozenset[str]


@dataclass(frozen=True)
class Checkpoint:
    """What will be loaded. `config` is the base model's for an adapter; `stored` the clustered settings found in it."""

    name: str
    weights: str
    revision: str | None
    config: PretrainedConfig
    tokenizer: Any
    adapter: Adapter | None
    stored: ClusterConfig | None
    fingerprint: Mapping[str, str]
    hub: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The family, such as bert."""
        return str(self.config.model_type)


def find_checkpoint(options: argparse.Namespace, task_type: str) -> Checkpoint:
    """Read configuration and tokenizer of the model that the flags name.

    Args:
        options: flags of `add_model_options`.
        task_type: PEFT's name of the task, QUESTION_ANS or SEQ_CLS; an adapter of another task is refused.

    Raises:
        CheckpointError: not a folder and not on the Hub, or not of this task.
    """
    name = options.model_name_or_path
    hub = {"cache_dir": options.cache_dir, "token": options.token}
    _require_place(name, "--model_name_or_path")
    adapter_file = _optional_file(name, ADAPTER_CONFIG, revision=options.model_revision, **hub)
    adapter = None
    weights, revision = name, options.model_revision
    if adapter_file is not None:
        adapter = _read_adapter(adapter_file, options, task_type, hub)
        weights, revision = adapter.base, adapter.base_revision
    elif options.base_model_name_or_path is not None:
        raise CheckpointError(
            f"--base_model_name_or_path is for adapters, and {name} is none (it has no {ADAPTER_CONFIG}). Leave it out."
        )
    with _named_errors(weights, "configuration"):
        config = AutoConfig.from_pretrained(options.config_name or weights, revision=revision, **hub)
    tokenizer_place, tokenizer_revision = _tokenizer_place(options, adapter, weights, revision, hub)
    with _named_errors(tokenizer_place, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_place, revision=tokenizer_revision, **hub)
    fingerprint = _fingerprint(weights, revision, adapter, hub)
    if options.config_name:
        fingerprint["config_name"] = _config_digest(config)
    return Checkpoint(
        name=str(name),
        weights=str(weights),
        revision=revision,
        config=config,
        tokenizer=tokenizer,
        adapter=adapter,
        stored=_stored_settings(config, weights),
        fingerprint=fingerprint,
        hub=hub,
    )


def _require_place(name: str, flag: str) -> None:
    """A folder, or something that can be a Hub id; anything else is a mistyped path."""
    path = Path(name)
    if path.is_dir():
        return
    if path.is_file():
        raise CheckpointError(f"{flag} {name} is a file. Give the folder that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"{flag}: there is no folder {name}, and it cannot be a Hub id (owner/name).")


def _optional_file(place: str, file: str, **hub: Any) -> Path | None:
    """One file of a folder or a repository, None where it has none, or where the Hub is out of reach and config.json is in
    the cache: then the repository was loaded before, with whatever files it needed.

    Raises:
        CheckpointError: the Hub cannot be asked, and the cache does not tell either.
    """
    unasked = None
    with _named_errors(place, "file list"):
        try:
            found = optional_file(place, file, hub)
        except Exception as error:
            if isinstance(answer_of(error), GatedRepoError):
                return None  # told when its configuration is read
            if not may_pass(error):
                raise
            found, unasked = None, first_cause(error)
    cache = {"cache_dir": hub["cache_dir"], "revision": hub["revision"]}
    if found is None and constants.HF_HUB_OFFLINE and not Path(place).is_dir():
        known = try_to_load_from_cache(place, file, **cache) is _CACHED_NO_EXIST
        unasked = None if known else "HF_HUB_OFFLINE=1"
    if unasked is not None and not isinstance(try_to_load_from_cache(place, "config.json", **cache), str):
        raise CheckpointError(
            f"{place}: the Hub could not be reached ({unasked}), and the cache has neither its {file} nor its config.json. "
            f"Check the network, or give a local folder."
        )
    return found


@contextmanager
def _named_errors(place: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if Path(place).is_dir() else " (A private repository needs --token or a login.)"
        raise CheckpointError(f"{place}: its {what} cannot be read: {first}{hint}") from error


def _read_adapter(file: Path, options: argparse.Namespace, task_type: str, hub: Mapping[str, Any]) -> Adapter:
    settings = _adapter_settings(file)
    found = settings.get("task_type")
    if found not in (None, task_type):
        raise CheckpointError(
            f"{file}: task_type is {found}, this command needs {task_type}. "
            "Question answering runs with squad_eval, sequence classification with glue_eval."
        )
    base = options.base_model_name_or_path or settings.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{file} names no base_model_name_or_path. Add --base_model_name_or_path.")
    _require_place(base, "--base_model_name_or_path")
    name, revision = options.model_name_or_path, options.model_revision
    weights = _optional_file(name, ADAPTER_WEIGHTS, revision=revision, **hub)
    if weights is None:
        raise CheckpointError(
            f"{name} has no {ADAPTER_WEIGHTS}. Save the adapter with safetensors: pickles are not read."
        )
    shapes = _shapes(weights)
    outputs = next((shapes[key][0] for layer in OUTPUT_LAYERS for key in shapes if key.endswith(f".{layer}")), None)
    own_base = options.base_model_name_or_path is None
    return Adapter(
        weights.parent, str(base), settings.get("revision") if own_base else None, outputs, frozenset(shapes)
    )


def _adapter_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}. Save or download the adapter again.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} must be a JSON object, got {json.dumps(settings):.60}. Save the adapter again.")
    return settings


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}.") from error


def _tokenizer_place(
    options: argparse.Namespace, adapter: Adapter | None, weights: str, revision: str | None, hub: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Where the tokenizer lies, and its revision: an adapter's own before its base's."""
    if options.tokenizer_name:
        return options.tokenizer_name, revision
    own = {"revision": options.model_revision, **hub}
    if adapter is not None and _optional_file(options.model_name_or_path, TOKENIZER_CONFIG, **own) is not None:
        return options.model_name_or_path, options.model_revision
    return weights, revision


def _stored_settings(config: PretrainedConfig, place: str) -> ClusterConfig | None:
    settings = getattr(config, "clustered_attention", None)
    if settings is None:
        return None
    try:
        return ClusterConfig.from_dict(settings)
    except (BertClusterError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{place}: config.json, key clustered_attention: {error}") from error


def _fingerprint(weights: str, revision: str | None, adapter: Adapter | None, hub: Mapping[str, Any]) -> dict[str, str]:
    """What tells these weights from others under the same name: commits on the Hub, digests of files."""
    parts = {}
    if Path(weights).is_dir():
        parts["weights"] = _digest(
            Path(weights), ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "vocab.txt")
        )
    else:
        file = _optional_file(weights, "config.json", revision=revision, **hub)
        parts["commit"] = (file or Path()).parent.name  # .../snapshots/COMMIT/config.json
    if adapter is not None:
        parts["adapter"] = _digest(adapter.folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    return parts


def _config_digest(config: PretrainedConfig) -> str:
    values = json.loads(config.to_json_string(use_diff=False))
    content = {name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
