"""The model and inputs of an evaluation command, for the error of its hidden states."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import measure
import torch
from questions import SEED
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

import glue_eval.command
import glue_eval.data
import squad_eval.command
import squad_eval.data
from bert_cluster import ClusterConfig
from bert_cluster.evaluation.checkpoints import find_checkpoint
from bert_cluster.evaluation.models import load_model
from glue_eval.tasks import get_task, split_of_file
from squad_eval.windows import make_windows

Inputs = list[Mapping[str, Sequence[int]]]


def hidden_state_errors(
    module: str, flags: Sequence[str], configs: Mapping[str, Mapping[str, Any] | None], texts: int
) -> dict[str, list[float]]:
    """For each clustered method the relative error of the last hidden state against full attention, text by text.

    Args:
        module: squad_eval or glue_eval, and `flags` its flags: the same model, data and cutting.
        configs: method -> its `ClusterConfig` as plain data; None (full) is left out.
        texts: so many random inputs of the data, or all if there are fewer.
    """
    model, inputs = (squad_model if module == "squad_eval" else glue_model)(flags)
    if texts < len(inputs):
        inputs = random.Random(SEED).sample(inputs, texts)
    exact = measure.hidden_states(model.base_model, inputs)
    return {
        name: measure.hidden_state_errors(model, inputs, ClusterConfig.from_dict(config), exact)
        for name, config in configs.items()
        if config is not None
    }


def squad_model(flags: Sequence[str]) -> tuple[Any, Inputs]:
    """Model and windows of a squad_eval command with a local file."""
    options = squad_eval.command.new_parser().parse_args(flags)
    checkpoint = find_checkpoint(options, "QUESTION_ANS")
    windows = make_windows(
        squad_eval.data.load_file(options.validation_file).head(options.max_eval_samples).examples,
        checkpoint.tokenizer,
        max_seq_length=options.max_seq_length,
        doc_stride=options.doc_stride,
        max_windows=options.max_windows,
    )
    model = load_model(checkpoint, AutoModelForQuestionAnswering, device=torch.device("cpu"))
    return model, [window.inputs for window in windows]


def glue_model(flags: Sequence[str]) -> tuple[Any, Inputs]:
    """Model and inputs of a glue_eval command with a local file."""
    options = glue_eval.command.new_parser().parse_args(flags)
    checkpoint = find_checkpoint(options, "SEQ_CLS")
    task = get_task(options.task_name)
    data = glue_eval.data.load_file(options.validation_file, task, split_of_file(task, options.validation_file))
    inputs = glue_eval.command.tokenise(
        data.head(options.max_eval_samples), checkpoint.tokenizer, options.max_seq_length
    )
    names = dict(enumerate(task.labels)) or {0: "score"}
    model = load_model(checkpoint, AutoModelForSequenceClassification, device=torch.device("cpu"), id2label=names)
    return model, list(inputs)
