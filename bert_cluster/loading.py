"""`from_pretrained`: load a checkpoint and patch it in one call."""

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import _CACHED_NO_EXIST, HfApi, constants, try_to_load_from_cache
from transformers.utils import cached_file

from bert_cluster.config import ClusterConfig
from bert_cluster.errors import ConfigError, LoadError, NotPatchedWarning, UnsupportedModelError
from bert_cluster.hub.faults import first_cause, may_pass
from bert_cluster.hub.kinds import AUTO_CLASSES, SENTENCE_CLASSES
from bert_cluster.patching import patch, stored_settings

# Arguments of transformers' from_pretrained that say where a checkpoint lies: its configuration lies there too.
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Those besides that a configuration of somebody's own code needs.
_CODE = ("trust_remote_code", "code_revision")
ADAPTER_CONFIG = "adapter_config.json"
MERGE_FIRST = (
    "is a PEFT adapter. Merge it into its base model first (PeftModel.merge_and_unload), save that with its tokenizer, and "
    "give its folder."
)
_MODULES, _SENTENCE_CONFIG = "modules.json", "config_sentence_transformers.json"


def from_pretrained(
    name_or_path: str | Path,
    config: ClusterConfig | str | Path | None = None,
    *,
    task: str | None = None,
    auto_class: Any = None,
    **kwargs: Any,
) -> Any:
    """Load a model and patch it with the given settings, or with those stored in its config.json.

    Args:
        name_or_path: folder or Hub repository.
        config: settings, or a JSON file of them such as `calibrate` writes; None for the stored ones. They are read
            before any weight is.
        task: what it is loaded for, by the Hub's names: "question-answering", "text-classification",
            "token-classification", "multiple-choice", "fill-mask", "feature-extraction", "sentence-similarity" (a
            SentenceTransformer) or "text-ranking" (a CrossEncoder).
        auto_class: the class that loads it, such as `AutoModelForQuestionAnswering`, instead of a task. Without either it
            is the class that config.json names, or the SentenceTransformer or CrossEncoder that a modules.json describes.
        kwargs: for its `from_pretrained`: `revision`, `token`, `dtype` and so on.

    Returns:
        The patched model, in evaluation mode. Without settings anywhere it is the model as it is, with a warning.

    Raises:
        ConfigError: settings that cannot be read or run, an unknown task, or an argument that belongs elsewhere.
        UnsupportedModelError: a model that cannot be patched, or a PEFT adapter, which is none.
        LoadError: the connection to the Hub broke, or sentence-transformers is needed and not installed.
        OSError: no such folder, repository or revision, in transformers' words.
    """
    if task is not None and auto_class is not None:
        raise ConfigError("from_pretrained() takes a task or an auto_class, got both. Leave one out.")
    if task is not None and task not in {**AUTO_CLASSES, **SENTENCE_CLASSES}:
        raise ConfigError(f"task must be one of {', '.join([*AUTO_CLASSES, *SENTENCE_CLASSES])}, got {task!r}.")
    _check_class(auto_class)
    _check_arguments(kwargs)
    settings = _settings(config)
    place = {name: kwargs[name] for name in _PLACE if name in kwargs}
    code = {name: kwargs[name] for name in _CODE if name in kwargs}
    with network_errors(name_or_path):
        loaded = model_config(name_or_path, place, code)
        settings = settings or stored_settings(loaded)
        name = auto_class or _class_name(name_or_path, loaded, task, place)
        model = _load(name_or_path, name, kwargs)
    if settings is None:
        warnings.warn(
            f"{name_or_path} has no settings of clustered attention in its config.json and none were given: it is not patched. "
            f"Give config=ClusterConfig(), or call bert_cluster.patch.",
            NotPatchedWarning,
            stacklevel=2,
        )
        return model
    return patch(model, settings)


def model_config(
    name_or_path: str | Path, place: Mapping[str, Any], code: Mapping[str, Any] | None = None
) -> transformers.PreTrainedConfig:
    """The configuration of a checkpoint.

    Args:
        place: transformers' arguments that say where it lies.
        code: those for a configuration of somebody's own code.

    Raises:
        UnsupportedModelError: there is a PEFT adapter and no model.
        OSError, ValueError: no configuration, in transformers' words.
    """
    try:
        return transformers.AutoConfig.from_pretrained(name_or_path, **place, **(code or {}))
    except (OSError, ValueError) as error:
        adapter = None
        with suppress(Exception):  # what kept the configuration from being read is what is told
            adapter = optional_file(name_or_path, ADAPTER_CONFIG, place)
        if adapter is None:
            raise
        raise UnsupportedModelError(f"{name_or_path} {MERGE_FIRST}") from error


def class_of(config: transformers.PreTrainedConfig) -> Any:
    """The class that a checkpoint was saved from, head and all; `AutoModel` where transformers has none of that name."""
    names = config.architectures or [""]
    return getattr(transformers, names[0], transformers.AutoModel)


def optional_file(name_or_path: str | Path, file: str, place: Mapping[str, Any]) -> Path | None:
    """One file of a folder or a repository (from the cache where there is no network), None where it has none.

    An error of the network is raised: for transformers' `cached_file` a Hub out of reach and a file that is not there are
    the same.
    """
    name = str(name_or_path)
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **place)
    if found is not None:
        return Path(found)
    if Path(name).is_dir() or constants.HF_HUB_OFFLINE or place.get("local_files_only"):
        return None
    path = "/".join(part for part in (place.get("subfolder"), file) if part)
    revision = place.get("revision")
    if try_to_load_from_cache(name, path, cache_dir=place.get("cache_dir"), revision=revision) is not _CACHED_NO_EXIST:
        HfApi(token=place.get("token")).file_exists(name, path, revision=revision)
    return None


def _check_class(auto_class: Any) -> None:
    if auto_class is not None and not callable(getattr(auto_class, "from_pretrained", None)):
        raise ConfigError(
            f"auto_class must be a class with from_pretrained, such as transformers.AutoModel, got {auto_class!r}. Give the "
            f"class itself, or a task: {', '.join([*AUTO_CLASSES, *SENTENCE_CLASSES])}."
        )


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse keywords that mean nothing to the loader, or change what it returns."""
    settings = [f"{each.name}={given[each.name]!r}" for each in fields(ClusterConfig) if each.name in given]
    if settings:
        written = ", ".join(settings)
        raise ConfigError(
            f"from_pretrained() takes settings as one argument, got {written}. Write config=ClusterConfig({written})."
        )
    if given.get("output_loading_info"):
        raise ConfigError(
            "from_pretrained() returns the model alone, and output_loading_info=True asks for a second value. Leave it out, or "
            "load the model with the from_pretrained of its own class, and give it to bert_cluster.patch."
        )


def _settings(config: Any) -> ClusterConfig | None:
    if config is None or isinstance(config, ClusterConfig):
        return config
    expected = "config must be a ClusterConfig, or a JSON file of one"
    if not isinstance(config, str | Path):
        raise ConfigError(
            f"{expected}, got {type(config).__name__}. Write config=ClusterConfig(method=...), or leave it out for the stored "
            f"settings."
        )
    if not Path(config).is_file():
        raise ConfigError(
            f"{expected}, and there is no file {config}. A method is given by config=ClusterConfig(method=...)."
        )
    return ClusterConfig.load(config)


def _class_name(name_or_path: str | Path, config: Any, task: str | None, place: Mapping[str, Any]) -> Any:
    """A class of transformers, or the name of one of sentence-transformers."""
    if task in AUTO_CLASSES:
        return getattr(transformers, AUTO_CLASSES[task])
    if task is not None:
        return SENTENCE_CLASSES[task]
    if optional_file(name_or_path, _MODULES, place) is None:
        return class_of(config)
    described = optional_file(name_or_path, _SENTENCE_CONFIG, place)
    written = {} if described is None else json.loads(described.read_text(encoding="utf-8"))
    return written.get("model_type", "SentenceTransformer")


def _load(name_or_path: str | Path, loader: Any, kwargs: Mapping[str, Any]) -> Any:
    if not isinstance(loader, str):
        return loader.from_pretrained(name_or_path, **kwargs)
    try:
        import sentence_transformers
    except ImportError as error:
        raise LoadError(
            f"{name_or_path} is a {loader}, and sentence-transformers is not installed: pip install sentence-transformers, or "
            f"give auto_class=transformers.AutoModel for its encoder alone."
        ) from error
    kind = getattr(sentence_transformers, loader)
    known = inspect.signature(kind.__init__).parameters
    arguments = {"cache_folder" if name == "cache_dir" else name: value for name, value in kwargs.items()}
    own = {name: value for name, value in arguments.items() if name in known}
    rest = {name: value for name, value in arguments.items() if name not in known}
    if rest:  # such as dtype: for the transformers model inside
        own["model_kwargs"] = {**(own.get("model_kwargs") or {}), **rest}
    return kind(str(name_or_path), **own).eval()


@contextmanager
def network_errors(name_or_path: str | Path) -> Iterator[None]:
    """A connection that broke, as one sentence: transformers takes it for a missing file. Every other error stays its own."""
    try:
        yield
    except Exception as error:
        if not may_pass(error):
            raise
        raise LoadError(
            f"{name_or_path} could not be loaded: the connection to the Hub failed ({first_cause(error)}). Nothing was patched; "
            f"files that came whole are in the cache. Check the network, then load again."
        ) from error
