"""What is saved or pushed: checked before anything is written, then written into one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.utils import HFValidationError, validate_repo_id, yaml_dump
from torch import nn

from bert_cluster.errors import SaveError
from bert_cluster.hub import front_matter, privacy
from bert_cluster.hub.card import Card, comparison, licence_in, section_of, write_card
from bert_cluster.hub.faults import NETWORK_ERRORS
from bert_cluster.hub.kinds import SENTENCE_TRANSFORMERS, Kind, kind_of
from bert_cluster.hub.results import ResultsLike, TaskResults, benchmark_file, read_results
from bert_cluster.hub.staging import check_tokenizer, disk_errors, stage
from bert_cluster.patching import running_settings

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
        with disk_errors(folder.parent):
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
            existing: text of the card that is there.
            place: repository or folder that the card names in its code.

        Returns:
            What could not be filled in.
        """
        own_card = existing if existing is not None else self._own_card()
        unix = None if own_card is None else own_card.replace("\r\n", "\n")
        if existing is None and unix is not None:
            unix = front_matter.without_local_base(unix)
        there = front_matter.parsed(front_matter.split(unix or "")[0])
        base_model = self._base_model(there.get("base_model"), place)
        licence = self._licence(base_model) if base_model is not None and there.get("license") is None else {}
        has_tokenizer = self.tokenizer is not None or self.kind.library == SENTENCE_TRANSFORMERS
        card = Card(self.kind, place, revision, has_tokenizer, base_model, licence, self.results, self.plots())
        text = write_card(card, unix)
        privacy.check_paths(README, text if existing is None else section_of(card))
        privacy.check_tokens(README, text, self.secrets())
        if own_card is not None and "\r\n" in own_card:
            text = text.replace("\n", "\r\n")
        with disk_errors(folder.parent):
            (folder / README).write_bytes(text.encode("utf-8"))
        notes = []
        if base_model is None:
            notes.append("The card names no base_model: the model was not loaded from a repository. Give base_model.")
        if not licence and there.get("license") is None:
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

    def _base_model(self, on_card: Any, place: str) -> str | None:
        """The one that was given, else the one on the card, else where the model was loaded from."""
        if self.base_model is not None:
            return self.base_model
        written = next(iter(front_matter.listed(on_card)), None)
        name = written or getattr(self.kind.encoder.config, "_name_or_path", None)
        if not isinstance(name, str) or name == place or privacy.is_local_path(name) or not _is_repo_id(name):
            return None
        return name

    def _licence(self, base_model: str) -> dict[str, Any]:
        try:
            return licence_in(read_card(Path(hf_hub_download(base_model, README, token=self.token))))
        except (OSError, ValueError, *NETWORK_ERRORS):  # a card is no reason to fail: the note tells
            return {}


def read_card(path: Path) -> str:
    """The text of a README.md with its line ends, without a byte order mark.

    Raises:
        SaveError: it is no file, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise SaveError(f"{path.name} is not UTF-8 text: {error}. Repair or remove it.") from error


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
    read = read_results(results, kind, running_settings(kind.encoder), comparison)
    check_text("benchmark", benchmark, "owner/name:default")
    file = None if benchmark is None else benchmark_file(benchmark, read)
    return Contents(kind, tokenizer, read, base_model, file, card, token)


def check_text(argument: str, value: Any, example: str) -> None:
    """Refuse what is neither a text nor None.

    Raises:
        SaveError: with the example.
    """
    if value is not None and not isinstance(value, str):
        raise SaveError(f"{argument} must be a text such as {example}, got {type(value).__name__}: {value!r:.80}.")


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
