"""`bert-cluster push`: a saved model to the Hub."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError

from bert_cluster.config import ClusterConfig
from bert_cluster.errors import BertClusterError, ConfigError, LoadError, NotPatchedError
from bert_cluster.hub.contents import README, read_card
from bert_cluster.hub.upload import MESSAGE, push_to_hub
from bert_cluster.loading import from_pretrained, model_config, network_errors, optional_file
from bert_cluster.patching import stored_settings

# One of these is beside every model that has a tokenizer.
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)


def add_push(commands: Any) -> None:
    """Add the subcommand's parser."""
    parser = commands.add_parser(
        "push", help="push a model with its settings, card and results to the Hub, in one commit"
    )
    parser.add_argument(
        "model", help="folder or Hub repository of a model whose config.json has settings, or see --config"
    )
    parser.add_argument("repo_id", help="owner/name, or a name of your own; created if it is not there")
    parser.add_argument("--config", metavar="FILE", help="JSON of settings to patch with, such as calibrate writes")
    parser.add_argument(
        "--results", nargs="+", default=[], metavar="FILE", help="all_results.json of squad-eval or glue-eval"
    )
    parser.add_argument("--base_model", help="repository that the weights come from, for the card")
    parser.add_argument("--benchmark", metavar="DATASET:TASK", help="write the primary score into .eval_results too")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; created if it is not there")
    parser.add_argument("--commit_message", default=MESSAGE, help="first line of the commit")
    parser.add_argument("--create_pr", action="store_true", help="propose the change as a pull request")
    parser.add_argument("--token", help="Hub token; default: HF_TOKEN or the stored login")


def push_saved(options: argparse.Namespace) -> None:
    """Load, patch, push, and say what happened.

    Raises:
        NotPatchedError: there are no settings to patch with.
        LoadError: the model or its tokenizer cannot be loaded.
        ConfigError: the file of settings cannot be read.
    """
    given = None if options.config is None else _settings(options.config)
    hub = {"token": options.token}
    with _load_errors(options.model):
        config = model_config(options.model, hub)
    if given is None and stored_settings(config) is None:
        raise NotPatchedError(
            f"{options.model} has no settings of clustered attention in its config.json. Give --config FILE (a JSON that "
            f"ClusterConfig.save or bert-cluster calibrate wrote), or save a patched model there."
        )
    with _load_errors(options.model):
        model = from_pretrained(options.model, given, **hub)
        tokenizer = _tokenizer(options.model, model, hub)
    pushed = push_to_hub(
        model,
        options.repo_id,
        tokenizer=tokenizer,
        results=options.results,
        base_model=options.base_model,
        private=options.private,
        revision=options.revision,
        commit_message=options.commit_message,
        create_pr=options.create_pr,
        token=options.token,
        benchmark=options.benchmark,
        card=_card(Path(options.model), options.repo_id),
    )
    print(pushed)


def _settings(path: str) -> ClusterConfig:
    try:
        return ClusterConfig.load(path)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error}.") from error


@contextmanager
def _load_errors(model: str) -> Iterator[None]:
    """Whatever keeps a checkpoint from being loaded, in one sentence."""
    try:
        with network_errors(model):
            yield
    except BertClusterError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise LoadError(f"{model} cannot be loaded: {said}.") from error


def _card(folder: Path, repo_id: str) -> str | None:
    """The README.md of a local folder; a heading that is the folder's name becomes that of the repository."""
    path = folder / README
    if not path.exists():
        return None
    return read_card(path).replace(f"\n# {folder.resolve().name}\n", f"\n# {repo_id.split('/')[-1]}\n", 1)


def _tokenizer(place: str, model: Any, hub: Mapping[str, Any]) -> Any:
    """The tokenizer beside the model, None where there is none (transformers would make one up) or the model carries it."""
    if not isinstance(model, transformers.PreTrainedModel):
        return None
    if all(optional_file(place, name, hub) is None for name in _TOKENIZER_FILES):
        return None
    return transformers.AutoTokenizer.from_pretrained(place, **hub)
