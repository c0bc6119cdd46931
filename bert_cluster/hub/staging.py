"""The files of a patched model, in a folder of their own: weights, configuration, tokenizer. No card yet."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from bert_cluster.config import CONFIG_KEY
from bert_cluster.errors import SaveError
from bert_cluster.hub import privacy
from bert_cluster.hub.kinds import SENTENCE_TRANSFORMERS, Kind
from bert_cluster.patching import running_settings

# What a full, read-only or forbidden disk answers.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def check_tokenizer(kind: Kind, tokenizer: Any) -> None:
    """Refuse what cannot be saved as the model's tokenizer.

    Raises:
        SaveError: no tokenizer or processor of transformers, or one beside a model that carries its own.
    """
    if tokenizer is None:
        return
    if kind.library == SENTENCE_TRANSFORMERS:
        raise SaveError(f"A {kind.loader} carries its tokenizer and saves it. Leave tokenizer out.")
    ours = hasattr(tokenizer, "save_pretrained") and type(tokenizer).__module__.startswith("transformers.")
    if not ours or not callable(tokenizer) or isinstance(tokenizer, nn.Module):  # a configuration, a model
        raise SaveError(
            f"tokenizer must be a tokenizer or processor of transformers, got {type(tokenizer).__name__}. Load it with "
            f"AutoTokenizer.from_pretrained, without remote code."
        )


def stage(kind: Kind, folder: Path, tokenizer: Any) -> None:
    """Write the model, and its tokenizer if one is given, the way their own libraries do, and clean what they wrote.

    Raises:
        SaveError: the disk is full or cannot be written, or the transformers model is not at the root of what is saved.
    """
    with disk_errors(folder.parent):
        if kind.library == SENTENCE_TRANSFORMERS:
            kind.model.save_pretrained(str(folder), create_model_card=False)
        else:
            kind.model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        privacy.clean(folder)
        _sign(folder / "config.json", kind)


def _sign(path: Path, kind: Kind) -> None:
    """The settings, and the version of this package that wrote them, in config.json."""
    import bert_cluster

    if not path.is_file():
        raise SaveError(
            f"This {kind.loader} keeps its transformers model in a folder of its own, and the settings belong into the "
            f"config.json at the root. Save a {kind.loader} whose first module is the transformers model."
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    config[CONFIG_KEY] = {
        **running_settings(kind.encoder).with_defaults().to_dict(),
        "library_version": bert_cluster.__version__,
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """What a disk refuses in a place, as one sentence; safetensors tells it in a text only."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else _code_in(str(error))
        if code not in _DISK:
            raise
        raise SaveError(
            f"The model could not be written into {place}: {error}. What was begun is removed. Make room or choose "
            f"another place (for a push: the environment variable TMPDIR), and save again."
        ) from error


def _code_in(text: str) -> int | None:
    return next((code for code in _DISK if f"(os error {code})" in text), None)
