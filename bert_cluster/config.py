"""The settings of clustered attention: which method, with which budgets, in which layers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from bert_cluster.errors import ConfigError

VERSION = 1
FULL = "full"  # the method that is none: exact attention, the model as it is
CONFIG_KEY = "clustered_attention"  # where config.json of a model keeps the settings

AUTO: Literal["auto"] = "auto"
Budget = int | Literal["auto"]

# What "auto" stands for: budgets of texts with at least so many tokens. docs/long-texts.md has the measurements.
GROWTH: dict[int, dict[str, int]] = {
    0: {"clusters": 25, "topk": 96, "key_clusters": 32, "sample": 256},
    768: {"clusters": 25, "topk": 128, "key_clusters": 64, "sample": 512},
    1536: {"clusters": 25, "topk": 384, "key_clusters": 128, "sample": 1024},
}

# Method -> its budgets with their defaults. The paper's methods have those of the paper (section 4: C = 25, K = 32,
# 63 bits, 10 updates).
METHODS: dict[str, dict[str, Budget]] = {
    "full": {},
    "clustered": {"clusters": 25, "bits": 63, "iterations": 10},
    "improved-clustered": {"clusters": 25, "topk": 32, "bits": 63, "iterations": 10},
    "refined-clustered": {
        "clusters": AUTO,
        "topk": AUTO,
        "key_clusters": AUTO,
        "band": 4,
        "rounds": 3,
        "sample": AUTO,
    },
}
DEFAULT_METHOD = "refined-clustered"

# Budget -> the least and the greatest value it can have.
LIMITS: dict[str, tuple[int, int]] = {
    "clusters": (1, 65536),
    "topk": (0, 2**31 - 1),
    "key_clusters": (1, 65536),
    "band": (0, 2**31 - 1),
    "rounds": (0, 1000),
    "sample": (1, 2**31 - 1),
    "bits": (1, 256),
    "iterations": (0, 1000),
    "exact_below": (0, 2**31 - 1),
    "seed": (0, 2**32 - 1),
}
# What `layers` may set for one layer.
LAYER_FIELDS = ("method", *(name for name in LIMITS if name != "seed"))


@dataclass(frozen=True)
class LayerSettings:
    """What one layer runs. Budgets that the method does not have are 0; those that are "auto" go by each text's length."""

    method: str
    clusters: Budget = 0
    topk: Budget = 0
    key_clusters: Budget = 0
    band: int = 0
    rounds: int = 0
    sample: Budget = 0
    bits: int = 0
    iterations: int = 0
    exact_below: int = 0
    seed: int = 0
    # Made once, for every call of a layer asks for them: the budgets at 0 tokens, and what longer texts take instead, as
    # `cuda_ops.refined_clustered` reads it.
    shortest: dict[str, int] = field(init=False, repr=False, compare=False)
    longer: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shortest", self.budgets_at(0))
        object.__setattr__(self, "longer", self._longer())

    def budgets(self) -> dict[str, Budget]:
        """The budgets of the method, by name."""
        return {name: getattr(self, name) for name in METHODS[self.method]}

    def budgets_at(self, tokens: int) -> dict[str, int]:
        """The same for a text of so many tokens: "auto" replaced by the last step of `GROWTH` that it reaches."""
        grown = GROWTH[max(least for least in GROWTH if least <= tokens)]
        return {name: grown[name] if value == AUTO else value for name, value in self.budgets().items()}

    def _longer(self) -> list[int]:
        """Five numbers a step, for every step of `GROWTH` after the first, where a budget is "auto"."""
        if AUTO not in self.budgets().values():
            return []
        names = ("clusters", "topk", "key_clusters", "sample")
        steps = [(least, self.budgets_at(least)) for least in GROWTH if least]
        return [number for least, budgets in steps for number in (least, *(budgets[name] for name in names))]

    @property
    def hashes(self) -> bool:
        """Whether the method groups queries by the signs of random planes."""
        return "bits" in METHODS[self.method]


@dataclass(frozen=True)
class ClusterConfig:
    """Settings of clustered attention.

    Args:
        method: "full", "clustered" (the paper's section 3.2), "improved-clustered" (section 3.3) or "refined-clustered"
            (ours: `cuda_ops.refined_clustered`).
        clusters: C, groups of queries per head, 1 to 65536. A budget that is None takes the method's default. That of
            "refined-clustered" for clusters, topk, key_clusters and sample is "auto": each text's own number of tokens
            decides, by the steps of `bert_cluster.config.GROWTH`.
        topk: K, keys per cluster whose products are exact, at least 0; not for "clustered".
        key_clusters: M, groups of keys per head, 1 to 65536; like the next three for "refined-clustered" only.
        band: W, tokens on either side of a query whose products are exact, at least 0.
        rounds: updates of the Euclidean K-means, at least 0.
        sample: tokens that those updates look at, at least 1.
        bits: P, random hash planes, 1 to 256; like the next for "clustered" and "improved-clustered" only.
        iterations: updates of the K-means in Hamming space, at least 0.
        layers: layer index -> the values of that layer that differ, such as ``{0: {"method": "full"}}``.
        exact_below: batch rows with fewer valid tokens take exact attention, inside the operator; 0: none.
        seed: of the hash planes.

    Raises:
        ConfigError: an unknown method or field, or a value outside of its range.
    """

    method: str = DEFAULT_METHOD
    clusters: int | Literal["auto"] | None = None
    topk: int | Literal["auto"] | None = None
    key_clusters: int | Literal["auto"] | None = None
    band: int | None = None
    rounds: int | None = None
    sample: int | Literal["auto"] | None = None
    bits: int | None = None
    iterations: int | None = None
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    exact_below: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        _check_method("method", self.method)
        for name in LIMITS:
            _check_budget(name, getattr(self, name), optional=name not in ("exact_below", "seed"))
        for name in _all_budgets() - set(METHODS[self.method]):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)} means nothing to the method {self.method!r}, which has "
                    f"{', '.join(METHODS[self.method]) or 'no budgets'}. Leave it out, or choose another method."
                )
        _refuse_auto("", self.method, {name: getattr(self, name) for name in METHODS[self.method]})
        for index in self.layers:
            self.for_layer(index)

    def for_layer(self, index: int) -> LayerSettings:
        """The settings of layer `index` (from 0), with every default filled in."""
        own = self.layers.get(index, {})
        method = own.get("method", self.method)
        values: dict[str, Any] = {}
        for name, default in METHODS[method].items():
            value = own.get(name, getattr(self, name))
            fixed = value == AUTO and default != AUTO and name not in own  # another method's: common, but not for this
            values[name] = default if value is None or fixed else value
        _refuse_auto(f"layers[{index}] ", method, values)
        unused = [name for name in own if name in _all_budgets() and name not in METHODS[method]]
        if unused:
            raise ConfigError(
                f"layers[{index}] sets {', '.join(unused)}, which means nothing to its method {method!r}. "
                f"Leave it out, or choose another method."
            )
        exact_below = own.get("exact_below", self.exact_below)
        return LayerSettings(method=method, exact_below=exact_below, seed=self.seed, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what is None is left out, `layers` has string keys, `version` is there."""
        data: dict[str, Any] = {"version": VERSION, "method": self.method}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("method", "layers") and value is not None:
                data[each.name] = value
        if self.layers:
            data["layers"] = {str(index): dict(values) for index, values in self.layers.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ClusterConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: not a mapping, a newer version than this package knows, or unknown keys.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"Settings must be a JSON object, got {type(data).__name__}: {data!r}.")
        version = data.get("version", VERSION)
        if type(version) is not int or version < 1:
            raise ConfigError(f"These settings have the version {version!r}; a whole number from 1 is expected.")
        if version > VERSION:
            raise ConfigError(
                f"These settings have version {version!r}; this bert-cluster reads versions up to {VERSION}. "
                f"Install a newer bert-cluster."
            )
        names = {each.name for each in fields(cls)}
        unknown = sorted(str(key) for key in data if key not in names and key not in ("version", "library_version"))
        if unknown:
            raise ConfigError(f"Unknown settings {', '.join(unknown)}; known are {', '.join(sorted(names))}.")
        return cls(**{key: value for key, value in data.items() if key in names})

    def with_defaults(self) -> "ClusterConfig":
        """The same settings with the method's default written out for each budget left open: what ran can be compared."""
        budgets = METHODS[self.method]
        missing: dict[str, Any] = {name: value for name, value in budgets.items() if getattr(self, name) is None}
        # Layers of another method have budgets of their own, or they would take the common ones that are written out now.
        layers = {
            index: {**own, **self.for_layer(index).budgets()} if own.get("method", self.method) != self.method else own
            for index, own in self.layers.items()
        }
        return replace(self, layers=layers, **missing)

    def save(self, path: str | Path) -> None:
        """Write the settings as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ClusterConfig":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ConfigError: it is no JSON, or its settings cannot be read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not JSON: {error}. Give a file that ClusterConfig.save wrote.") from error
        return cls.from_dict(data)


def _all_budgets() -> set[str]:
    return {name for budgets in METHODS.values() for name in budgets}


def _check_method(where: str, method: Any) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"{where} must be one of {', '.join(METHODS)}, got {method!r}.")


def _refuse_auto(where: str, method: str, budgets: Mapping[str, Any]) -> None:
    for name, value in budgets.items():
        if value == AUTO and METHODS[method][name] != AUTO:
            raise ConfigError(
                f"{where}{name}='auto' goes by the text's length in refined-clustered only. "
                f"Give {method} a whole number, or leave it out for {METHODS[method][name]}."
            )


def _check_budget(name: str, value: Any, *, optional: bool, where: str = "") -> None:
    if (value is None and optional) or (value == AUTO and name in GROWTH[0]):
        return
    least, greatest = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
        auto = " or 'auto'" if name in GROWTH[0] else ""
        raise ConfigError(f"{where}{name} must be a whole number from {least} to {greatest}{auto}, got {value!r}.")


def _checked_layers(layers: Any) -> dict[int, dict[str, Any]]:
    if not isinstance(layers, Mapping):
        raise ConfigError(f"layers must map a layer's index to its settings, got {type(layers).__name__}.")
    checked: dict[int, dict[str, Any]] = {}
    for key, values in layers.items():
        index = _layer_index(key)
        if not isinstance(values, Mapping):
            raise ConfigError(f"layers[{index}] must be a mapping such as {{'method': 'full'}}, got {values!r}.")
        for name, value in values.items():
            if name not in LAYER_FIELDS:
                raise ConfigError(f"layers[{index}] has no setting {name!r}; known are {', '.join(LAYER_FIELDS)}.")
            if name == "method":
                _check_method(f"layers[{index}]['method']", value)
            else:
                _check_budget(name, value, optional=False, where=f"layers[{index}] ")
        if index in checked:
            raise ConfigError(f"layers names layer {index} twice, as a number and as a text.")
        checked[index] = dict(values)
    return dict(sorted(checked.items()))


def _layer_index(key: Any) -> int:
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    if isinstance(key, bool) or not isinstance(key, int) or key < 0:
        raise ConfigError(f"layers must have whole numbers from 0 as keys, got {key!r}.")
    return key
