"""What a folder must not carry to other people: paths and names of this machine, tokens, pickles."""

import getpass
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_cluster.errors import SaveError

# Keys that transformers writes of where this machine took a tokenizer or a model from, and of code that came with it.
_PLACES = ("is_local", "local_files_only", "_commit_hash", "auto_map")
_NAMES = ("name_or_path", "_name_or_path")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# A zip archive, as torch.save writes, and the opcode that starts a pickle of protocol 2 or newer.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
# A value that is a path, such as /data/corpus/texts.txt; group 1 is the first folder.
_PATH = re.compile(r"(/[\w.-]+)(/[^/\0\n]+)+/?")
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
        SaveError: a pickle, a token in any file, or a path of this machine in a file of settings.
    """
    secrets = list(secrets)
    settings = _settings_in(folder)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        with open(path, "rb") as file:
            start = file.read(4)
        if path.suffix in _PICKLES or start.startswith(_PICKLE_STARTS):
            raise SaveError(
                f"{name} is a pickle, which can run code on whoever loads it. Save that part of the model as safetensors."
            )
        if path.suffix != ".safetensors":
            text = path.read_bytes().decode("utf-8", "replace")
            check_tokens(name, text, secrets)
            if path in settings:
                check_paths(name, text)
                for value in _texts(json.loads(text)):
                    found = _PATH.fullmatch(value)
                    if found is not None and Path(found[1]).is_dir():
                        raise _refusal(name, f"the path {value} of this machine")


def check_tokens(name: str, text: str, secrets: Iterable[str | None]) -> None:
    """Refuse a text with a Hub token in it: one of those given, or anything that looks like one.

    Raises:
        SaveError: as `check`.
    """
    if _TOKEN.search(text) or any(secret in text for secret in secrets if secret):
        raise _refusal(name, "a Hub token")


def check_paths(name: str, text: str) -> None:
    """Refuse a text with a path in this user's home or in the working folder.

    Raises:
        SaveError: as `check`.
    """
    found = next((place for place in _places() if place in text), None)
    if found is not None:
        raise _refusal(name, f"the path {found} of this machine")


def _refusal(name: str, what: str) -> SaveError:
    return SaveError(f"{name} contains {what}. Take it out of the model's, tokenizer's or card's settings.")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


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
