"""Files of one evaluation: atomic writes, finished chunks, and the settings they were made with.

    OUTPUT_DIR/chunks/settings.json            what every method shares: model, data, batches, machine
    OUTPUT_DIR/chunks/METHOD/settings.json     what is the method's own: its cluster settings and backend
    OUTPUT_DIR/chunks/METHOD/00000.npz         raw outputs and measurements of one chunk of batches, and whose they are

The same command continues after the last finished chunk. Another command may add methods, but a setting that differs is an
error: results of different settings are never mixed. Settings without any chunk or result claim nothing.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_cluster.evaluation.errors import StoredResultsError
from bert_cluster.hub.results import FILE, PLOT

CHUNKS = "chunks"
SETTINGS = "settings.json"
REPORT = "report.md"
MEASURES = "measures"
OWNER = "owner"


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk and rename it: a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Bits that new files must not have: temporary files are private, results are as readable as any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8"))

    write_atomically(path, write)


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write JSON atomically, indented as the transformers examples do. NaN and infinity are not JSON and raise ValueError."""
    write_text(path, json.dumps(value, indent=4, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n")


def differing_settings(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One phrase for every setting that differs, nested settings by their dotted name."""
    old, new = _flatten(stored), _flatten(current)
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name} was {_shown(old, name)} and is now {_shown(new, name)}"
        for name in names
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]


_ABSENT = object()


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def has_finished_chunks(output_dir: str | Path) -> bool:
    """Whether anything lies in the folder that a run can continue."""
    return any((Path(output_dir) / CHUNKS).glob("*/*.npz"))


class Store:
    """The chunks of one output folder. Only the main process reads and writes.

    Args:
        output_dir: the command's OUTPUT_DIR; created when the first file is written.
        settings: what all methods share; JSON values.
        methods: the settings of each method by its name; JSON values.
    """

    def __init__(
        self,
        output_dir: str | Path,
        settings: Mapping[str, Any] | None = None,
        methods: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.output_dir = Path(output_dir)
        self.chunks_dir = self.output_dir / CHUNKS
        self.settings: dict[str, Any] = json.loads(json.dumps(settings or {}))
        self.methods: dict[str, dict[str, Any]] = json.loads(json.dumps(methods or {}))

    def check(self, *, overwrite: bool = False) -> None:
        """Refuse a folder that these settings cannot claim; changes nothing.

        Raises:
            StoredResultsError: results of other settings, or results without their settings, lie there; or a file where
                a folder has to be.
        """
        for name in ("", CHUNKS, *self.methods, *(f"{CHUNKS}/{method}" for method in self.methods)):
            path = self.output_dir / name
            if path.exists() and not path.is_dir():
                raise StoredResultsError(
                    f"{path} is a file, and this run needs a folder there. Move the file, or choose another --output_dir."
                )
        if overwrite:
            return
        path, has_results = self.chunks_dir / SETTINGS, (self.output_dir / FILE).exists()
        if has_results and not path.exists():
            raise StoredResultsError(
                f"{self.output_dir} holds an {FILE} but not the settings it was made with ({path} is missing), "
                "so it cannot be continued. Choose another --output_dir, or add --overwrite_output_dir to start again."
            )
        if has_results or has_finished_chunks(self.output_dir):
            _refuse_others(path, self.settings, str(self.output_dir))
        for method, settings in self.methods.items():
            if any((self.chunks_dir / method).glob("*.npz")):
                place = f"{self.output_dir}, method {method},"
                _refuse_others(self.chunks_dir / method / SETTINGS, settings, place)

    def claim(self, *, overwrite: bool = False) -> None:
        """Write these settings into the folder, after `check`; `overwrite` removes all results there."""
        self.check(overwrite=overwrite)
        if overwrite:
            for folder in self.chunks_dir.glob("*/"):
                shutil.rmtree(self.output_dir / folder.name, ignore_errors=True)
            shutil.rmtree(self.chunks_dir, ignore_errors=True)
            for name in (FILE, REPORT, PLOT):
                (self.output_dir / name).unlink(missing_ok=True)
        write_json(self.chunks_dir / SETTINGS, self.settings)
        for method, settings in self.methods.items():
            write_json(self.chunks_dir / method / SETTINGS, settings)

    def chunk_path(self, method: str, chunk: int) -> Path:
        """Where chunk number `chunk` of `method` is, or will be."""
        return self.chunks_dir / method / f"{chunk:05d}.npz"

    def is_finished(self, method: str, chunk: int) -> bool:
        """Whether the chunk was written, and under these settings: a run that was still alive may have left another's.

        Raises:
            StoredResultsError: the file is damaged.
        """
        path = self.chunk_path(method, chunk)
        return path.exists() and _read_members(path, [OWNER]).get(OWNER) == self._owner(method, chunk)

    def write_chunk(
        self, method: str, chunk: int, arrays: Mapping[str, np.ndarray], measures: Mapping[str, Any]
    ) -> None:
        """Write the arrays and the measurements (JSON values) of a chunk as one file."""
        content: dict[str, Any] = {
            **arrays,
            MEASURES: np.array(json.dumps(measures)),
            OWNER: np.array(self._owner(method, chunk)),
        }
        write_atomically(self.chunk_path(method, chunk), lambda file: np.savez(file, **content))

    def read_chunk(self, method: str, chunk: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read back what `write_chunk` wrote.

        Raises:
            StoredResultsError: the file is damaged, or was written under other settings.
        """
        path = self.chunk_path(method, chunk)
        content = _read_members(path)
        if content.pop(OWNER, None) != self._owner(method, chunk):
            raise StoredResultsError(
                f"{path} was written by a run of other settings. Run the command again: it computes this chunk anew."
            )
        try:
            return content, json.loads(str(content.pop(MEASURES)))
        except (KeyError, ValueError) as error:
            raise _damaged(path, error) from error

    def _owner(self, method: str, chunk: int) -> str:
        """Names the settings, the method and the number that a chunk belongs to."""
        settings = json.dumps([self.settings, self.methods.get(method)], sort_keys=True)
        return f"{hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()} {method} {chunk}"


def _read_members(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Arrays of an .npz by name, those of `names` that are there, by default all; single texts as `str`."""
    try:
        # opened here: np.load leaves the file open where it is damaged
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            found = {name: content[name] for name in content.files if names is None or name in names}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have many for bytes that make no sense
        raise _damaged(path, error) from error
    return {
        name: value.item() if value.dtype.kind == "U" and not value.ndim else value for name, value in found.items()
    }


def _damaged(path: Path, error: Exception) -> StoredResultsError:
    return StoredResultsError(f"{path} is not a whole chunk ({error}). Delete it and run the command again.")


def _refuse_others(path: Path, current: Mapping[str, Any], place: str) -> None:
    differences = differing_settings(_read_settings(path), current)
    if differences:
        raise StoredResultsError(
            f"{place} holds results of other settings: {'; '.join(differences)}. Repeat the first command to "
            "continue it, choose another --output_dir, or add --overwrite_output_dir to start again."
        )


def _read_settings(path: Path) -> dict[str, Any]:
    advice = "Delete its folder, or add --overwrite_output_dir to start again."
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoredResultsError(f"{path} is missing, and there are chunks beside it. {advice}") from error
    except ValueError as error:
        raise StoredResultsError(f"{path} is not JSON ({error}). {advice}") from error
    if not isinstance(settings, dict):
        raise StoredResultsError(f"{path} must be a JSON object, got {json.dumps(settings)[:60]}. {advice}")
    return settings
