"""`from_pretrained`: load a checkpoint and patch it in one call."""

import warnings
from pathlib import Path
from typing import Any

import transformers

from bert_cluster.config import CONFIG_KEY, ClusterConfig
from bert_cluster.errors import NotPatchedWarning
from bert_cluster.patching import patch

# Arguments of transformers' from_pretrained that say where a checkpoint lies: its configuration lies there too.
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def class_of(config: transformers.PreTrainedConfig) -> Any:
    """The class that a checkpoint was saved from, head and all; `AutoModel` where transformers has none of that name."""
    names = config.architectures or [""]
    return getattr(transformers, names[0], transformers.AutoModel)


def from_pretrained(
    name_or_path: str | Path,
    config: ClusterConfig | str | Path | None = None,
    *,
    auto_class: Any = None,
    **kwargs: Any,
) -> Any:
    """Load a model with transformers and patch it with the given settings, or with those stored in its config.json.

    Args:
        name_or_path: folder or Hub repository.
        config: settings, or a JSON file of them such as `calibrate` writes; None for the stored ones. They are read
            before any weight is.
        auto_class: what loads it, such as `AutoModelForQuestionAnswering`; None for the class that config.json names.
        kwargs: for its `from_pretrained`: `revision`, `token`, `dtype` and so on.

    Returns:
        The patched model, in evaluation mode. Without settings anywhere it is the model as it is, with a warning.

    Raises:
        ConfigError: settings that cannot be read or run.
        UnsupportedModelError: a model that cannot be patched.
    """
    settings = config if isinstance(config, ClusterConfig | None) else ClusterConfig.load(config)
    if auto_class is None:
        place = {name: kwargs[name] for name in _PLACE if name in kwargs}
        auto_class = class_of(transformers.AutoConfig.from_pretrained(name_or_path, **place))
    model = auto_class.from_pretrained(name_or_path, **kwargs)
    if settings is None and getattr(model.config, CONFIG_KEY, None) is None:
        warnings.warn(
            f"{name_or_path} has no settings of clustered attention in its config.json and none were given: it is not patched. "
            f"Give config=ClusterConfig(), or call bert_cluster.patch.",
            NotPatchedWarning,
            stacklevel=2,
        )
        return model
    return patch(model, settings)
