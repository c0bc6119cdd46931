"""`calibrate`: the settings for a model, from the user's own texts and the times of this machine."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from bert_cluster.calibration import metrics
from bert_cluster.calibration.candidates import name_of, settings_of
from bert_cluster.calibration.decision import decide
from bert_cluster.calibration.laboratory import Laboratory
from bert_cluster.calibration.planner import settings_of_layer, worthwhile
from bert_cluster.calibration.progress import Progress, fingerprint
from bert_cluster.calibration.report import result_of
from bert_cluster.calibration.result import Calibration
from bert_cluster.calibration.session import Session, opened
from bert_cluster.calibration.texts import TOKENS_PER_BATCH, Part, Text, encode, listed, part_of, split
from bert_cluster.calibration.timing import OWN_EXACT, Timings, machine_of, measure
from bert_cluster.config import CONFIG_KEY, ClusterConfig, LayerSettings
from bert_cluster.errors import CalibrationError, ConfigError
from bert_cluster.families import attention_modules, encoder_of
from bert_cluster.lengths import longest_input

DEFAULT_TARGETS = {"hidden": 0.05, "agreement": 0.99, "kl": 0.01}


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[Text],
    *,
    target: float | None = None,
    metric: str = "hidden",
    max_tokens: int | None = None,
    candidates: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    plot: bool = True,
    progress: bool = True,
    timings: Timings | None = None,
) -> ClusterConfig:
    """Choose, per layer, the fastest settings whose error stays under a target, on texts of the user's own.

    Two thirds of the texts are searched on; the error on the others is what the printed table promises. Time is the
    operators' on this machine, measured at lengths up to the longest text. `exact_below` is the length from which on the
    chosen settings are faster than exact attention. Layers that no budget can serve stay `full`. Apart from the timings,
    which are stored, the same input gives the same settings.

    The model comes back as it was, patched or not, in training or not, also after an exception.

    Args:
        model: as for `bert_cluster.patch`. A patched one's settings are set aside.
        tokenizer: its tokenizer.
        texts: texts, or pairs of texts, without labels; like those that the model will read, in length above all.
        target: the bound of the metric; None for 0.05 ("hidden"), 0.99 ("agreement") or 0.01 ("kl").
        metric: "hidden": relative error ||h - h_full|| / ||h_full|| of the last hidden states, mean over texts, at most
            target. "agreement": share of texts with the same decision of the head, at least target. "kl": Kullback-Leibler
            divergence of the head's outputs in nats, mean over texts, at most target.
        max_tokens: longer texts are cut; None for what the model's position table holds.
        candidates: settings to choose from besides full, as fields of `ClusterConfig`; None for our own, from cheap to dear.
        seed: of the split and of the bootstrap.
        output_dir: folder for cluster_config.json, calibration.json, curve.png and progress.json; the same call continues
            there after an interruption. None writes nothing.
        plot: whether to draw curve.png, where matplotlib is installed.
        progress: whether to show a bar.
        timings: seconds measured before, instead of measuring.

    Returns:
        The settings, for `patch`. Where every layer stays full, ``method="full"``, which `patch` refuses.

    Raises:
        CalibrationError: no texts, no tokenizer, an impossible target or seed, unusable candidates or timings, or a head that the metric needs.
        UnsupportedModelError: the model cannot be patched.
    """
    result = run(
        model,
        tokenizer,
        texts,
        target=target,
        metric=metric,
        max_tokens=max_tokens,
        candidates=candidates,
        seed=seed,
        output_dir=output_dir,
        progress=progress,
        timings=timings,
    )
    print(result)
    if output_dir is not None:
        print(f"In {output_dir}: {', '.join(result.save(output_dir, plot=plot))}.")
    return result.config


def run(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[Text],
    *,
    target: float | None = None,
    metric: str = "hidden",
    max_tokens: int | None = None,
    candidates: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    progress: bool = True,
    timings: Timings | None = None,
) -> Calibration:
    """`calibrate` with everything it found, and without printing; output_dir gets progress.json only."""
    goal = DEFAULT_TARGETS.get(metric, 0.0) if target is None else target
    metrics.check_target(metric, goal)
    _check_seed(seed)
    several = listed(texts)
    chosen_from = settings_of(candidates)
    encoder = encoder_of(model)
    attention_modules(encoder)  # what cannot be patched is refused first
    _check_tokenizer(tokenizer)
    limit = _token_limit(encoder, tokenizer, max_tokens)
    encoded = encode(tokenizer, several, limit)
    with opened(model) as session:
        parts = _parts(encoded, tokenizer, seed, session)
        mark = _fingerprint(session, encoded, metric, chosen_from, seed)
        kept = Progress(None if output_dir is None else Path(output_dir), mark)
        laboratory = Laboratory(session, metric, parts, kept)
        lengths = parts["calibration"].lengths
        longest = max(length for part in parts.values() for length in part.lengths)
        with _bar(progress) as bar:
            if metric != "hidden":
                laboratory.check_head()
            measured = _timings(session, chosen_from, longest, kept, timings)
            useful, useless = worthwhile(measured, chosen_from, lengths)
            bar.total(len(session.layers) * len(useful))
            found = [
                settings_of_layer(laboratory, layer, useful, useless, measured, goal, bar.tick)
                for layer in session.layers
            ]
            decision = decide(laboratory, found, goal, seed, bar.tick)
            part = "held-out" if "held-out" in parts else "calibration"
            seconds = laboratory.seconds(part, decision.choice(session.layers))
        left_out = len(several) - len(encoded)
        notes = [f"{left_out} texts without any token were left out."] if left_out else []
        notes += [kept.note] if kept.note else []
        return result_of(session, metric, goal, decision, parts, measured, seconds, seed, notes, found)


def _check_seed(seed: Any) -> None:
    try:
        ClusterConfig(seed=seed)
    except ConfigError as error:
        raise CalibrationError(str(error)) from error


def _check_tokenizer(tokenizer: Any) -> None:
    if isinstance(tokenizer, type | nn.Module) or not callable(tokenizer):
        raise CalibrationError(
            f"tokenizer must be the model's tokenizer, got {tokenizer!r:.80}. Load it with AutoTokenizer.from_pretrained."
        )


def _token_limit(encoder: Any, tokenizer: Any, max_tokens: int | None) -> int:
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 4):
        raise CalibrationError(
            f"max_tokens must be a whole number from 4, got {max_tokens!r}. Longer texts are cut to it."
        )
    return longest_input(encoder.config, tokenizer, max_tokens)


def _parts(encoded: list[dict[str, list[int]]], tokenizer: Any, seed: int, session: Session) -> dict[str, Part]:
    device = next(session.encoder.parameters()).device
    names = zip(("calibration", "held-out"), split(len(encoded), seed), strict=True)
    made = {name: [encoded[index] for index in indices] for name, indices in names if indices}
    return {name: part_of(name, own, tokenizer, device) for name, own in made.items()}


def _fingerprint(session: Session, encoded: Any, metric: str, candidates: Sequence[LayerSettings], seed: int) -> str:
    config = {
        name: value
        for name, value in json.loads(session.encoder.config.to_json_string(use_diff=False)).items()
        if name not in (CONFIG_KEY, "_name_or_path")
    }
    names = [name_of(each) for each in candidates]
    return fingerprint(session.encoder, config, encoded, metric, names, seed, TOKENS_PER_BATCH, machine_of(session))


def _timings(
    session: Session,
    candidates: Sequence[LayerSettings],
    longest: int,
    kept: Progress,
    given: Timings | None,
) -> Timings:
    names = ["full", OWN_EXACT, *(name_of(each) for each in candidates)]
    if given is not None:
        missing = [name for name in names if not given.seconds.get(name)]
        if missing:
            raise CalibrationError(
                f"timings has no seconds for {missing[0]!r}. Leave timings out to have them measured."
            )
        return given
    stored = kept.get("timings")
    if stored is None:
        stored = measure(session, candidates, longest).to_dict()
        kept.put("timings", stored)
    return Timings.from_dict(stored)


class _Bar:
    def __init__(self, bar: Any):
        self._bar = bar

    def total(self, cells: int) -> None:
        self._bar.total = cells
        self._bar.refresh()

    def tick(self) -> None:
        if self._bar.total is not None and self._bar.n >= self._bar.total:
            self._bar.total += 1
        self._bar.update()


@contextmanager
def _bar(shown: bool) -> Iterator[_Bar]:
    from tqdm import tqdm

    with tqdm(desc="calibrate", unit="run", disable=not shown, file=sys.stderr) as bar:
        yield _Bar(bar)
