"""`bert-cluster push`: a saved model to the Hub."""

import argparse
from pathlib import Path
from typing import Any

import transformers

from bert_cluster.config import CONFIG_KEY, ClusterConfig
from bert_cluster.errors import NotPatchedError
from bert_cluster.hub.upload import MESSAGE, push_to_hub
from bert_cluster.loading import from_pretrained


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
    """Load, patch, push, and say what happened."""
    given = None if options.config is None else ClusterConfig.load(options.config)
    if given is None:
        config = transformers.AutoConfig.from_pretrained(options.model, token=options.token)
        if getattr(config, CONFIG_KEY, None) is None:
            raise NotPatchedError(
                f"{options.model} has no settings of clustered attention in its config.json. Give --config FILE (a JSON that "
                f"ClusterConfig.save or bert-cluster calibrate wrote), or save a patched model there."
            )
    model = from_pretrained(options.model, given, token=options.token)
    pushed = push_to_hub(
        model,
        options.repo_id,
        tokenizer=_tokenizer(options, model),
        results=options.results,
        base_model=options.base_model,
        private=options.private,
        revision=options.revision,
        commit_message=options.commit_message,
        create_pr=options.create_pr,
        token=options.token,
        benchmark=options.benchmark,
        card=_card(Path(options.model)),
    )
    print(pushed)


def _card(folder: Path) -> str | None:
    """The README.md of a local folder."""
    path = folder / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _tokenizer(options: argparse.Namespace, model: Any) -> Any:
    """The tokenizer beside the model, None where there is none or the model carries its own."""
    if not isinstance(model, transformers.PreTrainedModel):
        return None
    if Path(options.model).is_dir() and not any(Path(options.model).glob("token*")):
        return None
    return transformers.AutoTokenizer.from_pretrained(options.model, token=options.token)
