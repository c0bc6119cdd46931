"""`--push_to_hub`: the evaluated model, patched, with its card and these results."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from bert_cluster.errors import HubError, SaveError
from bert_cluster.evaluation.checkpoints import Checkpoint
from bert_cluster.evaluation.errors import OptionError
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.options import FULL, same_command
from bert_cluster.evaluation.processes import Processes
from bert_cluster.hub.contents import check_base_model
from bert_cluster.hub.results import split_benchmark
from bert_cluster.hub.upload import check_repo_id, push_to_hub, require_login
from bert_cluster.patching import patch

# Flags that mean nothing without --push_to_hub.
_OTHERS = (
    "hub_model_id",
    "hub_token",
    "hub_private_repo",
    "hub_revision",
    "hub_base_model",
    "hub_benchmark",
    "push_attention",
)


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Flags of transformers' examples for pushing, and ours."""
    group = parser.add_argument_group("push to the Hub")
    group.add_argument(
        "--push_to_hub", action="store_true", help="push the patched model with its card and these results"
    )
    group.add_argument("--push_attention", metavar="NAME", help="method to push, where several are compared")
    group.add_argument("--hub_model_id", help="owner/name, or a name of your own; default: the name of output_dir")
    group.add_argument("--hub_token", help="token that may write there; default: --token, HF_TOKEN or the stored login")
    group.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    group.add_argument("--hub_revision", help="branch to push to; created if it is not there")
    group.add_argument("--hub_base_model", help="repository that the weights come from, for the card")
    group.add_argument("--hub_benchmark", metavar="DATASET:TASK", help="write the primary score into .eval_results too")


def method_to_push(options: argparse.Namespace, methods: Sequence[Method], processes: Processes) -> Method | None:
    """The method that `--push_to_hub` means, None without it. The main process asks the Hub who is logged in, before
    hours of work.

    Raises:
        OptionError: no method, or several and no `--push_attention`; flags without `--push_to_hub`.
        SaveError, HubError: an impossible name; nobody is logged in, or the Hub is out of reach.
    """
    if not options.push_to_hub:
        given = [name for name in _OTHERS if getattr(options, name) is not None]
        if given:
            raise OptionError(f"--{given[0]} means nothing without --push_to_hub. Add it, or leave --{given[0]} out.")
        return None
    clustered = [method for method in methods if method.name != FULL]
    names = ", ".join(method.name for method in clustered)
    if options.push_attention is not None:
        clustered = [method for method in clustered if method.name == options.push_attention]
        if not clustered:
            raise OptionError(
                f"--push_attention {options.push_attention} is none of the clustered methods of this run ({names or 'there is none'}). "
                f"Name one of them, or add it to --attention."
            )
    if len(clustered) != 1:
        raise OptionError(
            f"--push_to_hub pushes one method, and this run compares {names}. Name one with --push_attention."
            if clustered
            else "--push_to_hub pushes a clustered method, and this run has none. Add one to --attention."
        )
    check_repo_id(_repo_id(options))
    check_base_model(options.hub_base_model)
    if options.hub_benchmark is not None:
        split_benchmark(options.hub_benchmark)
    if processes.is_main:
        require_login(_repo_id(options), _token(options))
    return clustered[0]


def push_method(
    options: argparse.Namespace, method: Method, checkpoint: Checkpoint, load: Callable[[str], PreTrainedModel]
) -> None:
    """Load the model once more, in the checkpoint's own type, patch it, push it with the results in OUTPUT_DIR, say where it is.

    Raises:
        HubError, SaveError: as `bert_cluster.push_to_hub`; the results stay stored.
    """
    model = patch(load("auto"), method.config)
    if checkpoint.adapter is not None and not Path(checkpoint.name).is_dir():
        model.config._name_or_path = checkpoint.name  # the card credits where a model was loaded from
    try:
        pushed = push_to_hub(
            model,
            _repo_id(options),
            tokenizer=checkpoint.tokenizer,
            results=options.output_dir,
            base_model=options.hub_base_model,
            private=options.hub_private_repo,
            revision=options.hub_revision,
            token=_token(options),
            benchmark=options.hub_benchmark,
        )
    except (HubError, SaveError) as error:
        raise type(error)(
            f"{error} The results are stored in {options.output_dir}: {same_command(options)} pushes again."
        ) from error
    print(pushed)


def _repo_id(options: argparse.Namespace) -> str:
    return options.hub_model_id or Path(options.output_dir).resolve().name


def _token(options: argparse.Namespace) -> str | None:
    return options.hub_token or options.token
