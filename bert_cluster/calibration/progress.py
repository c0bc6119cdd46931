"""What was measured, kept on the disk after each step: an interruption loses one step at most."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

SCHEMA = 1
FILE = "progress.json"


class Progress:
    """Values by key, of one fingerprint.

    Args:
        folder: where `progress.json` lies or will lie; None keeps everything in memory.
        fingerprint: of the inputs; stored values of another one are dropped.
    """

    def __init__(self, folder: Path | None, fingerprint: str):
        self._path = None if folder is None else folder / FILE
        self._fingerprint = fingerprint
        self._values: dict[str, Any] = {}
        self.note: str | None = None
        if self._path is None or not self._path.exists():
            return
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            data = {}
        if isinstance(data, dict) and data.get("schema_version") == SCHEMA and data.get("fingerprint") == fingerprint:
            self._values = data["values"]
            self.note = f"{len(self._values)} measurements were taken over from {self._path}."
        else:
            self.note = (
                f"{self._path} is of other texts, another model, metric or version: everything was measured anew."
            )

    def get(self, key: str) -> Any:
        """The value of a key, None without one."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._values[key] = value
        if self._path is not None:
            data = {"schema_version": SCHEMA, "fingerprint": self._fingerprint, "values": self._values}
            write_atomically(self._path, json.dumps(data).encode())


def fingerprint(encoder: PreTrainedModel, *others: Any) -> str:
    """Digest of a model's weights and class, and of JSON values."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(type(encoder).__name__.encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    digest.update(json.dumps(others, sort_keys=True).encode())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file, flush, rename: a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
