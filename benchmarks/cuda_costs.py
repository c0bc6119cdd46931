"""What one attention layer costs on a GPU, on paper: bytes, operations, launches and an expected time for each stage.

Nothing here is measured. The formulas follow the kernels of cuda_ops/csrc/cuda/kernels, whose tile sizes they repeat;
the rates are the makers' peaks times a share that kernels of this kind are assumed to reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MICROSECOND = 1e-6
LAUNCH = 2.5 * MICROSECOND
"""From kernel to kernel inside a CUDA graph: 2 to 3 microseconds."""
MEETING = 1.5 * MICROSECOND
"""Of the blocks that share a head: an atomic addition, a fence, and reading until all are there."""
FAST_TRIP, SLOW_TRIP = 0.3 * MICROSECOND, 0.7 * MICROSECOND
"""From asking the L2 cache, or memory, for a number until using it: what a loop waits for at each turn."""
MEMORY_SHARE, CACHE_SHARE, FLOAT_SHARE, TENSOR_SHARE, INTEGER_SHARE = 0.75, 0.6, 0.4, 0.3, 0.5
"""Of the peaks. Operands of products come from shared memory, which holds the FMA units to less than half."""
SDPA_RATE = 400e12
"""FLOP/s of FlashAttention-3, D=64, bfloat16: 330 to 500 were seen on an H200."""


SPLIT = 3
"""Products of bfloat16 parts for one of a float32 number with bfloat16 data: split_product.h."""


@dataclass(frozen=True)
class Card:
    """Peaks of a card, per second."""

    name: str
    memory: float
    cache: float = 5.5e12
    float32: float = 67e12
    tensor: float = 989e12
    integer: float = 15e12
    multiprocessors: int = 132


CARDS = (Card("H100", 3.35e12), Card("H200", 4.8e12))


@dataclass(frozen=True)
class Layer:
    """One layer of bfloat16 without padding, k and v with as many heads as q."""

    B: int
    N: int
    H: int = 12
    D: int = 64
    C: int = 25
    K: int = 32
    M: int = 32
    W: int = 4
    iterations: int = 10
    rounds: int = 3
    sample: int = 256

    @property
    def heads(self) -> int:
        return self.B * self.H

    @property
    def tokens(self) -> int:
        """Of all heads."""
        return self.heads * self.N


@dataclass(frozen=True)
class Stage:
    """What one stage asks for.

    Attributes:
        name: of the operator.
        launches: kernels, those that only fill memory with zeros included.
        memory: bytes read and written once, as if the cache kept everything else.
        cache: bytes that blocks ask for, whoever answers.
        flop: float32, a fused product counts 2.
        integer: operations; a population count takes as long as four.
        blocks: of the kernel that takes longest, all of which run at once where they fit.
        trips: reads of global memory that wait for each other, in one block.
        waits: seconds that blocks wait for each other.
        tensor: FLOP of the tensor cores.
    """

    name: str
    launches: int
    memory: float
    cache: float = 0.0
    flop: float = 0.0
    integer: float = 0.0
    blocks: float = 1e9
    trips: float = 0.0
    waits: float = 0.0
    tensor: float = 0.0

    def limits(self, card: Card) -> dict[str, float]:
        """Seconds by what limits them, launches apart."""
        filled = min(1.0, self.blocks / card.multiprocessors)
        trip = FAST_TRIP if self.memory < 40e6 else SLOW_TRIP
        waves = max(1.0, self.blocks / (8 * card.multiprocessors)) if self.blocks < 1e9 else 1.0
        return {
            "memory": self.memory / (card.memory * MEMORY_SHARE),
            "cache": self.cache / (card.cache * CACHE_SHARE),
            "FMA": self.flop / (card.float32 * FLOAT_SHARE * filled),
            "tensor cores": self.tensor / (card.tensor * TENSOR_SHARE * filled),
            "integers": self.integer / (card.integer * INTEGER_SHARE * filled),
            "latency": self.trips * trip * waves + self.waits,
        }

    def limit(self, card: Card) -> str:
        """What takes longest."""
        limits = self.limits(card)
        return max(limits, key=limits.__getitem__)

    def seconds(self, card: Card) -> float:
        """Launches, and what takes longest; waiting for other blocks comes on top of work."""
        limits = self.limits(card)
        work = max(seconds for name, seconds in limits.items() if name != "latency")
        latency = limits["latency"] - self.waits
        return self.launches * LAUNCH + max(work, latency) + self.waits


def tiles(count: float, size: int) -> float:
    """The count, rounded up to whole tiles."""
    return size * math.ceil(count / size)


def split_tiles(tokens: float) -> int:
    """split_product.h: tiles of 128 tokens a block has, for which it splits the vectors once: some 512 blocks in all."""
    return max(1, math.ceil(tokens / 128 / 512))


def grouping(layer: Layer, sides: int) -> Stage:
    """groups.cu, of queries and keys at once: counts, then lists. Each token looks at the 256 of its tile."""
    T, parts = sides * layer.tokens, max(1, min(64, math.ceil(layer.N / 1024)))
    blocks, trips = sides * layer.heads * parts, 4 * layer.N / parts / 256 + parts + 6
    return Stage("groups", 2, 12 * T, 12 * T, integer=3 * 256 * T, blocks=blocks, trips=trips)


def means(layer: Layer) -> Stage:
    """group_mean.cu: a block for 16 columns of each cluster, four rows of it at a time by each of 128 parts."""
    T, row, pieces = layer.tokens, 2 * layer.D, layer.D / 16
    asked = (row + 8 * pieces) * T
    trips = layer.N / layer.C / 512 + 4
    return Stage("group_mean", 1, (row + 4) * T, asked, blocks=layer.heads * layer.C * pieces, trips=trips)


def scores(layer: Layer) -> Stage:
    """centroid_scores.cu: tiles of 128 tokens by 32 centroids, float32 scores."""
    T, D, padded, block = layer.tokens, layer.D, tiles(layer.C, 32), 128 * split_tiles(layer.tokens)
    return Stage(
        "centroid_scores",
        1,
        (2 * D + 4 * layer.C) * T,
        (2 * D + 4 * layer.C + 4 * padded * D / block) * T,
        blocks=T / block,
        trips=3 + block / 128,
        tensor=SPLIT * 2 * padded * D * T,
    )


def top_keys(layer: Layer) -> Stage:
    """top_keys.cu: a block for each cluster reads 2,048 scores at a time, once; about three digits of those in shared memory."""
    T, kept = layer.tokens, min(1, 8192 / layer.N)
    once = 4 * layer.C * T
    return Stage(
        "top_keys",
        1,
        once,
        (1 if layer.N <= 8192 else 1 + 4096 / layer.N) * once,
        integer=(4 + 5 * 8 * kept) * layer.C * T,
        blocks=layer.heads * layer.C,
        trips=layer.N / 2048 + 8,
    )


def improved(layer: Layer) -> list[Stage]:
    """The stages of improved_clustered: 63 bits."""
    T, D, C, N = layer.tokens, layer.D, layer.C, layer.N
    rounds, padded, block = layer.iterations + 1, tiles(layer.C, 32), 128 * split_tiles(T)
    parts = math.ceil(N / (128 if N < 8192 else 256 if N < 32768 else 512))
    part_sums = 4 * C * D * layer.heads * parts
    keys = tiles(layer.K, 16)
    return [
        Stage(
            "hash_vectors",
            1,
            (2 * D + 8) * T,
            (2 * D + 8 + 4 * 64 * D / block) * T,
            blocks=T / block,
            trips=1 + block / 128,
            tensor=SPLIT * 2 * 64 * D * T,
        ),
        Stage(
            "cluster_codes",
            1,
            16 * T,
            16 * rounds * T,
            integer=rounds * C * T * (2 * 4 + 4),
            waits=layer.iterations * MEETING,
            trips=2 * rounds * max(1, N * layer.heads / (8 * 132 * 256)),
        ),
        grouping(layer, 1),
        means(layer),
        scores(layer),
        top_keys(layer),
        Stage(
            "centroid_attention: parts",
            1,
            (4 * C + 2 * D) * T + part_sums,
            (4 * C + 2 * D) * T + part_sums,
            integer=C * T * 8 * math.log2(max(2, layer.K)),
            blocks=layer.heads * parts,
            trips=4 + 2 * N / parts / 128,
            tensor=SPLIT * 2 * padded * D * T,
        ),
        Stage("centroid_attention: sums", 1, part_sums, part_sums, blocks=layer.heads * C, trips=3 + parts / 4),
        Stage(
            "exact_attention",
            1,
            (2 * 2 * D + 8) * T,
            (2 * 2 * D + 4 * D + 2 * 2 * layer.K * D / 64) * T,
            blocks=T / 64,
            trips=6,
            tensor=2 * 2 * keys * D * T,
        ),
    ]


def refined(layer: Layer) -> list[Stage]:
    """The stages of refined_clustered."""
    T, D, C, M, N = layer.tokens, layer.D, layer.C, layer.M, layer.N
    padded, sample = tiles(max(C, M), 32), min(N, max(layer.sample, 4 * max(C, M)))
    segments = math.ceil(N / 64) + M
    part_sums = 4 * C * 2 * D * layer.heads * segments
    cells = 4 * C * M * 2 * D * layer.heads
    keys, band, block = tiles(layer.K, 16) + tiles(M, 16), 2 * layer.W + 1, 128 * split_tiles(2 * T)
    segments_of_a_cell = max(1.0, N / 64 / M)
    return [
        Stage(
            "cluster_rows: rounds",
            1,
            2 * layer.heads * sample * 2 * D,
            2 * layer.heads * sample * 2 * D * (2 * layer.rounds),
            blocks=2 * layer.heads,
            trips=20 * layer.rounds,
            tensor=SPLIT * 2 * layer.heads * layer.rounds * 2 * sample * padded * D,
        ),
        Stage(
            "cluster_rows: assignment",
            1,
            2 * (2 * D + 4) * T,
            2 * (2 * D + 4 + 4 * padded * D / block) * T,
            blocks=2 * T / block,
            trips=3 + block / 128,
            tensor=SPLIT * 2 * 2 * padded * D * T,
        ),
        grouping(layer, 2),
        means(layer),
        scores(layer),
        top_keys(layer),
        Stage(
            "tail: segments",
            1,
            (4 * C + 2 * 2 * D) * T + part_sums,
            (32 * C + 2 * 2 * D) * T + part_sums,  # a score of a scattered token takes 32 bytes
            3 * D * T,  # squares of each key's distance from one vector for all clusters
            integer=C * T * 8 * math.log2(max(2, layer.K)),
            blocks=layer.heads * segments,
            trips=8,
            tensor=SPLIT * 2 * 2 * tiles(C, 32) * D * T,
        ),
        Stage(
            "tail: cells",
            1,
            part_sums + cells,
            part_sums + cells,
            blocks=layer.heads * M * math.ceil(C / 16),
            trips=4 * (2 + segments_of_a_cell),
        ),
        Stage(
            "refined_attention",
            1,
            (2 * 2 * D + 12) * T + cells,
            (2 * 2 * D + 2 * 2 * layer.K * D / 64 + 2 * 4 * M * D / 64 + band * 2 * 2 * D) * T,
            blocks=T / 64,
            trips=12 + 2 * math.ceil(band / 3),
            # a cell's key is two numbers; of the products with neighbours the diagonal of a tile of 16 counts
            tensor=(2 * 2 * keys + 2 * tiles(M, 16) + 2 * 2 * 16 * band) * D * T,
        ),
    ]


METHODS = {"improved-clustered": improved, "refined-clustered": refined}
SETTINGS = {"improved-clustered": {"K": 32}, "refined-clustered": {"K": 64}}
SIZES = ((1, 2048, 1.0), (1, 8192, 4.0), (1, 16384, 10.0), (1, 65536, 40.0), (16, 1024, 1.0), (2, 8192, 5.0))
"""Rows, tokens, and how many times faster than SDPA is the goal: one row, then 16,384 tokens in flight."""


def layer_of(method: str, B: int, N: int) -> Layer:
    return Layer(B=B, N=N, **SETTINGS[method])


def sdpa_seconds(layer: Layer) -> float:
    """Of exact attention by tensor cores."""
    return LAUNCH + 4 * layer.heads * layer.N**2 * layer.D / SDPA_RATE


def seconds(stages: Sequence[Stage], card: Card) -> float:
    return sum(stage.seconds(card) for stage in stages)


def floor_seconds(stages: Sequence[Stage], card: Card) -> float:
    """Of the bytes alone, at the peak: what no change of the kernels' insides can pass."""
    return sum(stage.memory for stage in stages) / card.memory


def launches(stages: Sequence[Stage]) -> int:
    return sum(stage.launches for stage in stages)
