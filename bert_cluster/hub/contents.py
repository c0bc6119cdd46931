"""What is saved or pushed: checked before anything is written, then written into one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.utils import HFValidationError, validate_repo_id, yaml_dump
from torch import nn

from bert_cluster.errors import SaveError
from bert_cluster.hub import privacy
from bert_cluster.hub.card import Card, licence_in, write_card
from bert_cluster.hub.faults import NETWORK_ERRORS
from bert_cluster.hub.front_matter import split
from bert_cluster.hub.kinds import SENTENCE_TRANSFORMERS, Kind, kind_of
from bert_cluster.hub.results import ResultsLike, TaskResults, benchmark_file, read_results
from bert_cluster.hub.staging import check_tokenizer, disk_errors, settings_of, stage

README = "README.md"


@dataclass(frozen=True)
class Contents:
    """One model with everything that goes along with it.

    Attributes:
        base_model: as it was given, None to take it from the model's configuration.
        benchmark: path and entries of a `.eval_results` file, or None.
        card: README.md to start from where there is none yet, or None.
        token: for the base model's card, and never to be found in a file.
    """

    kind: Kind
    tokenizer: Any
    results: Sequence[TaskResults]
    base_model: str | None
    benchmark: tuple[str, list[dict[str, Any]]] | None
    card: str | None
    token: str | bool | None

    def write_files(self, folder: Path) -> None:
        """Everything but the card.

        Raises:
            SaveError: see `staging.stage` and `privacy.check`.
        """
        stage(self.kind, folder, self.tokenizer)
        with disk_errors(folder):
            for one, name in zip(self.results, self.plots(), strict=True):
                if one.plot is not None:
                    (folder / name).write_bytes(one.plot.read_bytes())
            if self.benchmark is not None:
                path, entries = self.benchmark
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(yaml_dump(entries, sort_keys=False), encoding="utf-8")
        privacy.check(folder, self.secrets())

    def write_card(self, folder: Path, existing: str | None, place: str, revision: str | None = None) -> list[str]:
        """README.md: the card that is there, or a new one, with our part in it.

        Args:
            place: repository or folder that the card names in its code.

        Returns:
            What could not be filled in.
        """
        own_card = existing if existing is not None else self._own_card()
        base_model = self._base_model(place)
        has_base = base_model is not None or _has(own_card, "base_model")
        licence = None if base_model is None or _has(own_card, "license") else self._licence(base_model)
        has_tokenizer = self.tokenizer is not None or self.kind.library == SENTENCE_TRANSFORMERS
        card = Card(self.kind, place, revision, has_tokenizer, base_model, licence, self.results, self.plots())
        text = write_card(card, own_card)
        privacy.check_text(README, text, self.secrets(), paths=existing is None)
        with disk_errors(folder):
            (folder / README).write_text(text, encoding="utf-8")
        notes = []
        if not has_base:
            notes.append("The card names no base_model: the model was not loaded from a repository. Give base_model.")
        if licence is None and not _has(own_card, "license"):
            notes.append("The card names no license: that of the base model could not be read. Add one to README.md.")
        if not has_tokenizer:
            notes.append(
                "No tokenizer was given: whoever loads the model needs the one it was trained with. Give tokenizer."
            )
        return notes

    def plots(self) -> list[str]:
        """File name of each comparison's picture, "" where there is none."""
        names = [f"bert-cluster-{one.data['task']['name']}.png" for one in self.results]
        return [name if one.plot is not None else "" for name, one in zip(names, self.results, strict=True)]

    def secrets(self) -> list[str]:
        """Every token that this process could leak."""
        return [token for token in (self.token, get_token()) if isinstance(token, str) and token]

    def _own_card(self) -> str | None:
        """The card that was given, or that a SentenceTransformer or CrossEncoder was loaded with."""
        if self.card is not None:
            return self.card
        text = getattr(self.kind.model, "_model_card_text", None)
        return text if isinstance(text, str) and text.strip() else None

    def _base_model(self, place: str) -> str | None:
        if self.base_model is not None:
            return self.base_model
        name = getattr(self.kind.encoder.config, "_name_or_path", None)
        if not name or name == place or privacy.is_local_path(name) or not _is_repo_id(name):
            return None
        return str(name)

    def _licence(self, base_model: str) -> str | None:
        try:
            return licence_in(Path(hf_hub_download(base_model, README, token=self.token)).read_text(encoding="utf-8"))
        except (OSError, ValueError, *NETWORK_ERRORS):  # a card is no reason to fail: the note tells
            return None


def check_contents(
    model: nn.Module,
    tokenizer: Any,
    results: ResultsLike | Sequence[ResultsLike] | None,
    base_model: str | None,
    benchmark: str | None,
    card: str | None = None,
    token: str | bool | None = None,
) -> Contents:
    """Look at everything before anything is written or sent.

    Raises:
        SaveError, NotPatchedError, UnsupportedModelError: what cannot be saved, and why.
    """
    kind = kind_of(model)
    check_tokenizer(kind, tokenizer)
    check_base_model(base_model)
    read = read_results(results, settings_of(kind))
    file = None if benchmark is None else benchmark_file(benchmark, read)
    return Contents(kind, tokenizer, read, base_model, file, card, token)


def check_base_model(name: str | None) -> None:
    """Refuse a base model that the Hub would refuse on a card.

    Raises:
        SaveError: it is a path, or no name that a repository can have.
    """
    if name is not None and (privacy.is_local_path(name) or not _is_repo_id(name)):
        raise SaveError(
            f"base_model must be a repository on the Hub, such as google-bert/bert-base-uncased, got {name!r}."
        )


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _has(card: str | None, key: str) -> bool:
    lines = split(card or "")[0].splitlines()
    return any(line.startswith(f"{key}:") and line.removeprefix(f"{key}:").strip(" '\"") for line in lines)
