"""The settings that calibration chooses from, and the `ClusterConfig` that a choice of them makes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bert_cluster.config import ClusterConfig, LayerSettings
from bert_cluster.errors import CalibrationError, ConfigError

FULL = LayerSettings("full")


def _refined(clusters: int, topk: int, key_clusters: int, sample: int) -> dict[str, Any]:
    budgets = {"clusters": clusters, "topk": topk, "key_clusters": key_clusters, "sample": sample}
    return {"method": "refined-clustered", **budgets}


# Cheap to dear. `full` is always a candidate besides these.
LADDER: tuple[Mapping[str, Any], ...] = (
    {"method": "improved-clustered", "clusters": 25, "topk": 32},
    _refined(12, 16, 16, 128),
    _refined(16, 32, 16, 256),
    _refined(25, 32, 32, 256),
    _refined(25, 64, 32, 256),
    _refined(50, 64, 32, 256),
    _refined(50, 128, 64, 512),
    _refined(100, 128, 64, 512),
    _refined(25, 256, 128, 1024),
    _refined(25, 384, 128, 1024),
)


def settings_of(candidates: Sequence[Mapping[str, Any]] | None) -> tuple[LayerSettings, ...]:
    """The settings of the candidates, without `full` and without doubles.

    Args:
        candidates: fields of `ClusterConfig` each: a method and its budgets; None for `LADDER`.

    Raises:
        CalibrationError: none, or one that is no method with budgets.
    """
    found: list[LayerSettings] = []
    for number, fields in enumerate(LADDER if candidates is None else candidates):
        where = f"candidates[{number}]"
        if not isinstance(fields, Mapping):
            raise CalibrationError(
                f"{where} must map fields of ClusterConfig to values, such as "
                f"{{'method': 'refined-clustered', 'topk': 32}}, got {fields!r}."
            )
        outside = sorted(set(fields) & {"layers", "exact_below", "seed"})
        if outside:
            raise CalibrationError(
                f"{where} sets {', '.join(outside)}. A candidate is a method with budgets: calibration measures exact_below "
                f"and chooses per layer itself. Leave it out."
            )
        try:
            settings = ClusterConfig(**fields).for_layer(0)
        except (ConfigError, TypeError) as error:
            raise CalibrationError(f"{where}: {error}") from error
        if settings.method != "full" and settings not in found:
            found.append(settings)
    if not found:
        raise CalibrationError(
            "candidates holds no clustered settings, so there is nothing to choose. Give some, or None."
        )
    return tuple(found)


def name_of(settings: LayerSettings) -> str:
    """Method and budgets in one line: what identifies settings in tables and files."""
    budgets = [f"{name}={value}" for name, value in settings.budgets().items()]
    return " ".join(
        [settings.method, *budgets, *([f"exact_below={settings.exact_below}"] if settings.exact_below else [])]
    )


def config_of(choice: Mapping[int, LayerSettings], *, shared: bool) -> ClusterConfig:
    """The settings of single layers as one configuration: the most common ones, and in `layers` those that differ.

    Args:
        choice: layer index -> its settings, for every layer that is not exempt.
        shared: all layers are one module and have one entry.
    """
    clustered = [each for each in choice.values() if each.method != "full"]
    if not clustered:
        return ClusterConfig(method="full")
    method = Counter(each.method for each in clustered).most_common(1)[0][0]
    base = Counter(each for each in clustered if each.method == method).most_common(1)[0][0]
    layers = {} if shared else {index: _difference(each, base) for index, each in choice.items() if each != base}
    budgets: dict[str, Any] = {**base.budgets()}
    return ClusterConfig(method=method, **budgets, exact_below=base.exact_below, layers=layers, seed=base.seed)


def _difference(settings: LayerSettings, base: LayerSettings) -> dict[str, Any]:
    if settings.method == "full":
        return {"method": "full"}
    values = {**settings.budgets(), "exact_below": settings.exact_below}
    if settings.method != base.method:
        return {"method": settings.method, **values}
    return {name: value for name, value in values.items() if value != getattr(base, name)}
