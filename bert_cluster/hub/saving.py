"""`save_pretrained`: a patched model in a folder, as `push_to_hub` would upload it."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bert_cluster.errors import SaveError
from bert_cluster.hub.contents import README, check_contents, read_card
from bert_cluster.hub.kinds import SENTENCE_TRANSFORMERS, Kind
from bert_cluster.hub.results import ResultsLike
from bert_cluster.hub.staging import disk_errors
from bert_cluster.loading import ADAPTER_CONFIG

# Files of an earlier save that must not stay beside a new one: weights that a loader would take, results of other settings.
REPLACED = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|bert-cluster-[^/]+\.png|\.eval_results/bert-cluster-[^/]+\.yaml"
)


# File -> what a folder with it is loaded as, whatever else is in it.
_OTHER_KINDS = {ADAPTER_CONFIG: "a PEFT adapter", "modules.json": "a model of sentence-transformers"}


@dataclass(frozen=True)
class Saved:
    """A saved model: its folder, the files that were written, and what could not be filled in on its card."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    results: ResultsLike | Sequence[ResultsLike] | None = None,
    base_model: str | None = None,
    benchmark: str | None = None,
) -> Saved:
    """Save a patched model: weights as safetensors, tokenizer, config.json with the settings, model card, results.

    Plain transformers (or sentence-transformers) loads the folder as the exact model; `from_pretrained` of this package
    loads it patched. Everything is written to a temporary folder in it first and then moved, so that a full disk leaves what
    was there. A README.md that is there keeps what its author wrote: only the part between our marks is replaced.

    Args:
        model: a patched transformers model, SentenceTransformer or CrossEncoder.
        folder: created if it is not there. A link to a folder is followed.
        tokenizer: or processor, saved along; a SentenceTransformer or CrossEncoder carries its own.
        results: all_results.json of squad_eval or glue_eval (a file, its folder, its content, or several of them), shown on
            the card.
        base_model: repository that the weights come from; by default the one that the model was loaded from, if it was.
        benchmark: "DATASET:TASK" to write the primary score into `.eval_results` too.

    Returns:
        The folder, its files, and notes on what the card could not tell.

    Raises:
        NotPatchedError, UnsupportedModelError: a model that is not patched, or that cannot be.
        SaveError: a model with PEFT adapters, results of other settings, a full disk, or something private in a file.
    """
    if not isinstance(folder, str | os.PathLike):
        raise SaveError(f"folder must be a path, got {type(folder).__name__}. Give the folder to save into.")
    place = Path(folder)
    target = place.resolve()
    existing_part = next(each for each in (target, *target.parents) if each.exists())
    if not existing_part.is_dir():
        raise SaveError(f"{existing_part} is a file. Give a folder.")
    contents = check_contents(model, tokenizer, results, base_model, benchmark)
    existing = read_card(place / README) if (place / README).exists() else None
    refuse_other_kinds(str(place), contents.kind, [path.name for path in place.glob("*.json")])
    with disk_errors(existing_part):  # on the disk of the folder, so that its files can be moved by renaming them
        staged = Path(tempfile.mkdtemp(dir=existing_part, prefix=".bert-cluster-"))
    try:
        contents.write_files(staged)
        notes = contents.write_card(staged, existing, target.name)
        return Saved(place, _move(staged, target), tuple(notes))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def refuse_other_kinds(place: str, kind: Kind, files: Iterable[str]) -> None:
    """Refuse a place whose files make a loader take the new model for something else.

    Raises:
        SaveError: it names the file.
    """
    for name in files:
        if name in _OTHER_KINDS and not (name == "modules.json" and kind.library == SENTENCE_TRANSFORMERS):
            raise SaveError(
                f"{place} holds {_OTHER_KINDS[name]} ({name}), and a {type(kind.model).__name__} beside it would be loaded as that. "
                f"Choose another place, or remove that file there first."
            )


def _move(staged: Path, place: Path) -> tuple[str, ...]:
    """Rename every file into the folder; then remove what must not stay of an earlier save."""
    files = tuple(sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()))
    in_the_way = next((name for name in files if (place / name).is_dir()), None)
    if in_the_way is not None:
        raise SaveError(
            f"{place / in_the_way} is a folder, and a file of this name is to be saved there. Move it away."
        )
    with disk_errors(place):
        for name in files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, place / name)
        for path in (*place.glob("*"), *place.glob(".eval_results/*")):
            name = path.relative_to(place).as_posix()
            if name not in files and REPLACED.fullmatch(name):
                path.unlink()
    return files
