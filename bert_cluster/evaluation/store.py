"""Files of one evaluation: atomic writes, finished chunks, and the settings they were made with.

    OUTPUT_DIR/chunks/settings.json            what every method shares: model, data, batches, machine
    OUTPUT_DIR/chunks/METHOD/settings.json     what is the method's own: its cluster settings and backend
    OUTPUT_DIR/chunks/METHOD/00000.npz         raw outputs and measurements of one chunk of batches

The same command continues after the last finished chunk. Another command may add methods, but a setting that differs is an
error: results of different settings are never mixed.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_cluster.evaluation.errors import StoredResultsError

CHUNKS = "chunks"
SETTINGS = "settings.json"
MEASURES = "measures"


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


class Store:
    """The chunks of one output folder. Only the main process writes.

    Args:
        output_dir: the command's OUTPUT_DIR; created when the first file is written.
    """

    def __init__(self, output_dir: str | Path):
        self.output_dir = Path(output_dir)
        self.chunks_dir = self.output_dir / CHUNKS

    def open(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Claim the folder for these settings.

        Raises:
            StoredResultsError: results of other settings, or results without their settings, lie there.
        """
        if overwrite:
            for folder in self.chunks_dir.glob("*/"):
                shutil.rmtree(self.output_dir / folder.name, ignore_errors=True)
            shutil.rmtree(self.chunks_dir, ignore_errors=True)
            (self.output_dir / "all_results.json").unlink(missing_ok=True)
        path = self.chunks_dir / SETTINGS
        if not path.exists() and (self.output_dir / "all_results.json").exists():
            raise StoredResultsError(
                f"{self.output_dir} holds an all_results.json but not the settings it was made with ({path} is missing), "
                "so it cannot be continued. Choose another --output_dir, or add --overwrite_output_dir to start again."
            )
        self._claim(path, settings, str(self.output_dir))

    def open_method(self, method: str, settings: Mapping[str, Any]) -> None:
        """Claim the folder of one method for its own settings; raises StoredResultsError as `open` does."""
        self._claim(self.chunks_dir / method / SETTINGS, settings, f"{self.output_dir}, method {method},")

    def _claim(self, path: Path, settings: Mapping[str, Any], place: str) -> None:
        current = json.loads(json.dumps(settings))
        if path.exists():
            differences = differing_settings(_read_json(path), current)
            if differences:
                raise StoredResultsError(
                    f"{place} holds results of other settings: {'; '.join(differences)}. Repeat the first command to "
                    "continue it, choose another --output_dir, or add --overwrite_output_dir to start again."
                )
        else:
            write_json(path, current)

    def chunk_path(self, method: str, chunk: int) -> Path:
        """Where chunk number `chunk` of `method` is, or will be."""
        return self.chunks_dir / method / f"{chunk:05d}.npz"

    def is_finished(self, method: str, chunk: int) -> bool:
        """Whether the chunk was written whole."""
        return self.chunk_path(method, chunk).exists()

    def write_chunk(
        self, method: str, chunk: int, arrays: Mapping[str, np.ndarray], measures: Mapping[str, Any]
    ) -> None:
        """Write the arrays and the measurements (JSON values) of a chunk as one file."""
        content: dict[str, Any] = {**arrays, MEASURES: np.array(json.dumps(measures))}
        write_atomically(self.chunk_path(method, chunk), lambda file: np.savez(file, **content))

    def read_chunk(self, method: str, chunk: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read back what `write_chunk` wrote."""
        path = self.chunk_path(method, chunk)
        try:
            # opened here: np.load leaves the file open where it is damaged
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files if name != MEASURES}
                return arrays, json.loads(str(content[MEASURES]))
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise StoredResultsError(
                f"{path} is not a whole chunk ({error}). Delete it and run the command again."
            ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoredResultsError(
            f"{path} is not JSON ({error}). Delete its folder, or add --overwrite_output_dir to start again."
        ) from error
