"""Evaluation results for a card: what `squad_eval` and `glue_eval` wrote about the method that is pushed."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from bert_cluster.config import FULL, ClusterConfig
from bert_cluster.errors import BertClusterError, SaveError
from bert_cluster.hub.kinds import ENCODER, Kind

FILE = "all_results.json"
PLOT = "plot.png"
SCHEMA, SCHEMA_VERSION = "bert_cluster.evaluation", 1

_SECOND = "_mm"  # end of the scores of MNLI's mismatched part
# Scores whose type on the Hub, as `evaluate` has it, is named otherwise.
_METRIC_TYPES = {"exact": "exact_match", "pearson": "pearsonr"}
_NAMED = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# The `source` of an older result file that can be nothing but a split of these data sets on the Hub.
_BENCHMARK = re.compile(r"(nyu-mll/glue|rajpurkar/squad|rajpurkar/squad_v2)(?: (\w+))? (\w+)")

ResultsLike = Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class Part:
    """The examples that scores are of: two parts for MNLI, one for every other task.

    Attributes:
        dataset: on the Hub, None where the examples came from a file or folder.
        name: of the data set, or of the file or folder without those it lay in.
        config, split: of the data set or folder, None where none was named.
        examples: how many; None in an older result file of two parts, which has their sum.
    """

    dataset: str | None
    name: str
    config: str | None
    split: str | None
    examples: int | None
    labelled: bool

    @property
    def place(self) -> str:
        """Where the examples came from, in one text."""
        return " ".join(part for part in (self.name, self.config, self.split) if part)

    @property
    def counted(self) -> str:
        """What follows the name of a task: ", 400 examples", or nothing where the number is not known."""
        return "" if self.examples is None else f", {self.examples:,} examples"


@dataclass(frozen=True)
class TaskResults:
    """One comparison of methods, as `docs/results-schema.md` describes it.

    Attributes:
        data: the content of all_results.json.
        method: name of the entry whose settings are the model's.
        plot: the picture beside the file, None where there is none.
    """

    data: Mapping[str, Any]
    method: str
    plot: Path | None

    @property
    def title(self) -> str:
        """The task as people write it."""
        return str(self.data["task"]["title"])

    @property
    def parts(self) -> list[Part]:
        """The examples, in the order in which they were evaluated."""
        data = self.data["data"]
        if "parts" not in data:
            return _guessed_parts(data)
        return [
            Part(
                one["dataset"],
                one["dataset"] or Path(one["path"]).name,
                one["config"],
                one["split"],
                one["examples"],
                one["labelled"],
            )
            for one in data["parts"]
        ]

    def part(self, score: str) -> Part:
        """The part that a score is of; scores of MNLI's second part end in _mm."""
        return self.parts[-1 if score.endswith(_SECOND) else 0]

    def configuration(self, score: str) -> str | None:
        """That of the part that a score is of, and the task where a file or folder has none: the Hub's client takes files
        of one name in two folders, such as QNLI/dev.tsv and RTE/dev.tsv, for the same."""
        part = self.part(score)
        return part.config or (str(self.data["task"]["name"]) if part.dataset is None else None)

    @property
    def examples(self) -> str:
        """How many examples there are, and where they came from."""
        parts = self.parts
        if any(part.examples is None for part in parts):
            return f"{self.data['data']['examples']:,} examples from {', '.join(part.place for part in parts)}"
        return ", ".join(
            f"{part.examples:,} examples from {part.place}{'' if part.labelled else ' (without labels)'}"
            for part in parts
        )

    @property
    def shown(self) -> dict[str, Mapping[str, Any]]:
        """The entries that a card compares: full, where it ran, and the model's."""
        methods = self.data["methods"]
        return {name: methods[name] for name in (FULL, self.method) if name in methods}

    @property
    def scale(self) -> float:
        """What turns a score into points of 100."""
        return 1.0 if self.data["task"]["score_unit"] == "percent" else 100.0


def read_results(
    given: ResultsLike | Sequence[ResultsLike] | None,
    kind: Kind,
    settings: ClusterConfig,
    show: Callable[[TaskResults], Any],
) -> list[TaskResults]:
    """Read what the evaluation commands wrote.

    Args:
        given: an all_results.json, its folder, its content, or several of them.
        kind: the model; each file must be of one like it.
        settings: the model's; each file must have measured them.
        show: what will be done with the results; a file that it cannot do it with is damaged.

    Raises:
        SaveError: no such file, another schema, results of another model or of other settings only, or a task twice.
    """
    if isinstance(given, str | Path | Mapping) or not isinstance(given, Iterable | None):
        given = [given]
    read = [_read(one, kind, settings, show) for one in given or ()]
    titles = [one.title for one in read]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise SaveError(f"results has {twice} twice. Give each task once.")
    return read


def _read(given: ResultsLike, kind: Kind, settings: ClusterConfig, show: Callable[[TaskResults], Any]) -> TaskResults:
    if not isinstance(given, str | Path | Mapping):
        raise SaveError(
            f"results must be {FILE} of squad-eval or glue-eval (a file, its folder, its content, or a list of them), got "
            f"{type(given).__name__}: {given!r:.80}."
        )
    if isinstance(given, Mapping):
        name, data, plot = "results", given, None
    else:
        path = Path(given) / FILE if Path(given).is_dir() else Path(given)
        name, data, plot = str(path), _content(path), path.parent / PLOT
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise SaveError(
            f"{name} is no comparison of methods (its schema is not {SCHEMA}). Give the {FILE} in the OUTPUT_DIR of "
            f"squad-eval or glue-eval itself, not one of a method's folder."
        )
    if data.get("schema_version") != SCHEMA_VERSION:
        raise SaveError(
            f"{name} has schema version {data.get('schema_version')!r}; this bert-cluster reads {SCHEMA_VERSION}. Evaluate "
            f"again with this version."
        )
    try:
        _refuse_other_models(name, data, kind)
        own = _own_method(name, data["methods"], settings)
        read = TaskResults(data, own, plot if plot and plot.is_file() else None)
        show(read)
        eval_results([read], None)
        return read
    except SaveError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SaveError(f"{name} is damaged: {type(error).__name__} {error}. Evaluate again.") from error


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaveError(f"results: there is no file {path}.") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaveError(f"results: {path} cannot be read as JSON: {error}.") from error


def _refuse_other_models(name: str, data: Mapping[str, Any], kind: Kind) -> None:
    """Older files may not say which model they are of."""
    advice = "Give the results of this model, or leave results out."
    own, measured = kind.encoder.config.model_type, data.get("model", {}).get("model_type")
    if measured not in (None, own):
        raise SaveError(f"{name} has measured a model of the type {measured}, and this one is {own}. {advice}")
    architecture = type(kind.encoder).__name__
    answers, command = "QuestionAnswering" in architecture, data.get("command")
    if command == "squad_eval" and not answers:
        raise SaveError(f"{name} has measured question answering, and {architecture} has no head for it. {advice}")
    if command == "glue_eval" and answers:
        raise SaveError(f"{name} has measured a classifier, and {architecture} is none. {advice}")


def _own_method(name: str, methods: Mapping[str, Any], settings: ClusterConfig) -> str:
    measured = {}
    for method, entry in methods.items():
        if entry["cluster_config"] is not None:
            try:
                measured[method] = ClusterConfig.from_dict(entry["cluster_config"]).with_defaults()
            except BertClusterError as error:
                raise SaveError(f"{name}, method {method}: {error}") from error
    wanted = settings.with_defaults()
    own = next((method for method, config in measured.items() if config == wanted), None)
    if own is None:
        raise SaveError(
            f"{name} has not measured this model's settings. It has {_shown(measured)}; the model has "
            f"{_settings_text(wanted)}. Evaluate with the model's settings, or patch the model with those that were measured."
        )
    return own


def _shown(measured: Mapping[str, ClusterConfig]) -> str:
    return "; ".join(_settings_text(config) for config in measured.values()) or "no clustered method"


def _settings_text(config: ClusterConfig) -> str:
    values = {name: value for name, value in config.to_dict().items() if name not in ("version", "method")}
    return f"{config.method} ({', '.join(f'{name}={value}' for name, value in values.items())})"


def _guessed_parts(data: Mapping[str, Any]) -> list[Part]:
    """The parts of a result file that has only a text for them: what may be a file or folder is taken for one."""
    source, count = str(data["source"]), len(data.get("splits", [None]))
    places = source.split(", ") if count > 1 else [source]
    if len(places) != count:  # a file with a comma in its name: nobody knows which part is which
        places = [", ".join(Path(place).name for place in places)] * count
    examples = data["examples"] if count == 1 else None
    parts = []
    for place in places:
        found = _BENCHMARK.fullmatch(place)
        dataset, config, split = (None, None, None) if found is None else found.groups()
        parts.append(Part(dataset, dataset or Path(place).name, config, split, examples, data["labelled"]))
    return parts


def eval_results(results: Sequence[TaskResults], task: str | None) -> list[EvalResult]:
    """The results as entries of a card's `model-index`: every score, of full attention and of the model's own.

    Args:
        task: pipeline tag of the model, None for a model without.
    """
    return [
        EvalResult(
            task_type=task or ENCODER,
            dataset_type=one.part(score).name,
            dataset_name=f"{one.title}{one.part(score).counted}",
            dataset_config=one.configuration(score),
            dataset_split=one.part(score).split,
            metric_type=_METRIC_TYPES.get(score.removesuffix(_SECOND), score.removesuffix(_SECOND)),
            metric_name=f"{score}, {method} attention",
            metric_value=round(one.scale * value, 4),
            metric_args={"attention": method},
        )
        for one in results
        for method, entry in one.shown.items()
        for score, value in entry["scores"].items()
        if value is not None
    ]


def split_benchmark(benchmark: str) -> tuple[str, str]:
    """Data set and task of a "DATASET:TASK".

    Raises:
        SaveError: another form.
    """
    dataset, _, task = benchmark.partition(":")
    if not re.fullmatch(r"[\w.-]+", task) or not _NAMED.fullmatch(dataset):
        raise SaveError(f"benchmark must be DATASET:TASK, such as owner/name:default, got {benchmark!r}.")
    return dataset, task


def benchmark_file(benchmark: str, results: Sequence[TaskResults]) -> tuple[str, list[dict[str, Any]]]:
    """Path and content of a `.eval_results` file: the first primary score of the only results, on a named benchmark.

    Args:
        benchmark: "DATASET:TASK", a data set on the Hub that lists the task as a benchmark.

    Raises:
        SaveError: another form, or not exactly one comparison with scores.
    """
    dataset, task = split_benchmark(benchmark)
    scored = [one for one in results if one.data["methods"][one.method]["scores"]]
    if len(results) != 1 or not scored:
        raise SaveError(
            f"benchmark {benchmark} needs the scores of exactly one task, got {len(results)} results, {len(scored)} of them with "
            f"scores. Give one {FILE} of labelled data."
        )
    one = scored[0]
    score = one.data["task"]["primary_scores"][0]
    value = one.data["methods"][one.method]["scores"].get(score)
    if value is None:
        raise SaveError(
            f"benchmark {benchmark} needs the score {score}, which is not defined in {one.title}'s results. Leave benchmark out."
        )
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=task,
        value=round(one.scale * value, 4),
        notes=f"{score} with {one.method} attention of bert-cluster{one.part(score).counted}, no fine-tuning",
    )
    return f".eval_results/bert-cluster-{dataset.replace('/', '--')}--{task}.yaml", eval_result_entries_to_yaml([entry])
