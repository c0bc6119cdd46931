"""What a folder must not carry to other people: paths and names of this machine, tokens, pickles."""

import getpass
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_cluster.errors import SaveError

# Keys that transformers writes of where this machine took a tokenizer or a model from.
_PLACES = ("is_local", "local_files_only", "_commit_hash")
_NAMES = ("name_or_path", "_name_or_path")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# A zip archive, as torch.save writes, and the opcode that starts a pickle of protocol 2 or newer.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Files of settings. Vocabularies are none: "/root/" may be a word of theirs.
_SETTINGS = ("*config*.json", "modules.json", "**/*config*.json")


def clean(folder: Path) -> None:
    """Take out of the files of settings what says where this machine read a model or tokenizer from."""
    for path in _settings_in(folder):
        content = json.loads(path.read_text(encoding="utf-8"))
        cleaned = _cleaned(content)
        if cleaned != content:
            path.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cleaned(value: Any) -> Any:
    if isinstance(value, list):
        return (
            value if all(isinstance(item, str | int | float) for item in value) else [_cleaned(item) for item in value]
        )
    if not isinstance(value, dict):
        return value
    return {
        key: _cleaned(item)
        for key, item in value.items()
        if key not in _PLACES and not (key in _NAMES and is_local_path(item)) and not _is_file(key, item)
    }


def _is_file(key: str, value: Any) -> bool:
    """Whether a key such as special_tokens_map_file says where a file lay on the machine of whoever made the tokenizer."""
    return key.endswith("_file") and isinstance(value, str) and value.startswith(("/", "~"))


def is_local_path(name: Any) -> bool:
    """Whether a name says where something lies on this machine, rather than on the Hub."""
    if not isinstance(name, str) or not name:
        return False
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()


def check(folder: Path, secrets: Iterable[str | None] = ()) -> None:
    """Refuse a folder that holds what must not leave this machine.

    Args:
        secrets: tokens; None and empty ones are passed over.

    Raises:
        SaveError: a pickle, a token in any file, or this user's or the working folder's path in a file of settings.
    """
    secrets = list(secrets)
    settings = _settings_in(folder)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = str(path.relative_to(folder))
        with open(path, "rb") as file:
            start = file.read(4)
        if path.suffix in _PICKLES or start.startswith(_PICKLE_STARTS):
            raise SaveError(
                f"{name} is a pickle, which can run code on whoever loads it. Save that part of the model as safetensors."
            )
        if path.suffix != ".safetensors":
            check_text(name, path.read_bytes().decode("utf-8", "replace"), secrets, paths=path in settings)


def check_text(name: str, content: str, secrets: Iterable[str | None], *, paths: bool = True) -> None:
    """Refuse a text with a token in it, or with a path of this machine.

    Raises:
        SaveError: as `check`.
    """
    if any(secret in content for secret in secrets if secret):
        raise SaveError(f"{name} contains a Hub token. Take it out of the model's, tokenizer's or card's settings.")
    found = next((place for place in _places() if place in content), None) if paths else None
    if found is not None:
        raise SaveError(
            f"{name} contains the path {found} of this machine. Take it out of the model's, tokenizer's or card's settings."
        )


def _settings_in(folder: Path) -> list[Path]:
    return sorted({path for pattern in _SETTINGS for path in folder.glob(pattern)})


def _places() -> list[str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = ""
    named = [f"/home/{user}", f"/Users/{user}"] if user else []
    return [
        f"{place}/"
        for place in dict.fromkeys([os.path.expanduser("~"), str(Path.cwd()), *named])
        if place not in ("/", "~")
    ]
