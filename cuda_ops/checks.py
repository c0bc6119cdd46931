"""What every operator asks of its inputs.

The public wrappers and the fake kernels run the same checks, so that a call fails with the same sentence on every
device, under ``torch.compile`` and on the meta device: what is wrong, what was expected, what came, what to do.

Only types, devices and shapes are looked at, never values: a check costs about a microsecond and no synchronisation.
"""

import math

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from cuda_ops.reference_parts import accumulation_dtype
from cuda_ops.steps import Step

FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
ACCUMULATION = frozenset((torch.float32, torch.float64))
LARGEST_HEAD_SIZE = 256
LARGEST_BITS = 256
LARGEST_CLUSTERS = 65536


def _tensor(name: str, x: object, rank: int, axes: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor {axes}, got {type(x).__name__}. Convert it, for example with torch.as_tensor."
        )
    if x.dim() != rank:
        raise ValueError(f"{name} must have {rank} axes {axes}, got shape {tuple(x.shape)}. Reshape it.")


def no_tangent(**tensors: Tensor) -> None:
    """No tangent of forward mode: PyTorch runs an operator without a rule for it on the values, and the derivative is 0 without a word."""
    if torch.compiler.is_compiling():
        return
    for name, x in tensors.items():
        if unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{name} must not carry a tangent, got one of forward-mode differentiation, for which there is no rule. "
                "Use reverse mode, for example torch.autograd.grad, or torch's scaled_dot_product_attention under "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
            )


def _device(name: str, x: Tensor, first: str, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {first}, {like.device}, got {x.device}. Move it with .to({first}.device)."
        )


def _shape(name: str, x: Tensor, expected: tuple[int, ...], axes: str, advice: str = "") -> None:
    if x.shape != expected:
        advice = advice or "Pass the one that was made from the same inputs."
        raise ValueError(f"{name} must have shape {axes} = {tuple(expected)}, got {tuple(x.shape)}. {advice}")


def _integer(name: str, value: object, smallest: int, largest: int | None, advice: str) -> None:
    if type(value) is int and smallest <= value and (largest is None or value <= largest):
        return
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}. Pass a Python int.")
    if value < smallest or (largest is not None and value > largest):
        limits = f"at least {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise ValueError(f"{name} must be {limits}, got {value}. {advice}")


def vectors(name: str, x: Tensor) -> None:
    """x (B, H, N, D) of a floating type, H at least 1, D from 1 to 256."""
    _tensor(name, x, 4, "(B, H, N, D)")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {x.dtype}. Convert it with .to(torch.float32)."
        )
    if not 1 <= x.shape[3] <= LARGEST_HEAD_SIZE:
        raise ValueError(
            f"{name} must have a head size D from 1 to {LARGEST_HEAD_SIZE}, got shape {tuple(x.shape)}. "
            "Split its heads further."
        )
    if x.shape[1] < 1:
        raise ValueError(f"{name} must have at least one head, got shape {tuple(x.shape)}. Expected are (B, H, N, D).")


def accumulated(name: str, x: Tensor, rank: int, axes: str) -> None:
    """A stage's result: float32 or float64."""
    _tensor(name, x, rank, axes)
    if x.dtype not in ACCUMULATION:
        raise TypeError(
            f"{name} must be float32 or float64, the type the stages accumulate in, got {x.dtype}. "
            "Convert it with .float()."
        )


def token_mask(mask: Tensor | None, first: str, x: Tensor, tokens_axis: int = 2) -> None:
    """mask (B, N) bool, true where a token is valid, or None."""
    if mask is None:
        return
    expected = (x.shape[0], x.shape[tokens_axis])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a bool tensor (B, N), true where a token is valid, got {got}. "
            "Convert it, for example with mask.bool()."
        )
    if mask.shape != expected:
        raise ValueError(
            f"mask must have shape (B, N) = {tuple(expected)}, got {tuple(mask.shape)}. "
            "Pass the padding mask of the tokens; masks of token pairs are not supported."
        )
    _device("mask", mask, first, x)


def hash_planes(planes: Tensor, first: str, x: Tensor) -> None:
    """planes (P, D) float32, P from 1 to 256."""
    _tensor("planes", planes, 2, "(P, D)")
    if planes.dtype != torch.float32:
        raise TypeError(
            f"planes must be float32 whatever the type of {first}, got {planes.dtype}. Keep them in float32."
        )
    if not 1 <= planes.shape[0] <= LARGEST_BITS or planes.shape[1] != x.shape[3]:
        raise ValueError(
            f"planes must have shape (P, D) with P from 1 to {LARGEST_BITS} and D = {x.shape[3]}, "
            f"got {tuple(planes.shape)}. Draw one normal vector of {first}'s head size for each bit."
        )
    _device("planes", planes, first, x)


def head_groups(first: str, heads: int, name: str, kv_heads: int) -> None:
    """The number of key heads divides the number of query heads."""
    if heads % kv_heads:
        raise ValueError(
            f"{name} must have a number of heads that divides the {heads} heads of {first}, got {kv_heads}. "
            f"Each head of {name} serves equally many heads of {first}."
        )


def attention_inputs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """q (B, H, N, D), k and v (B, H_kv, N, D), H_kv divides H, all of one type on one device; mask (B, N) or None."""
    vectors("q", q)
    vectors("k", k)
    _tensor("v", v, 4, "(B, H_kv, N, D)")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}. Convert them to the same."
        )
    batch, heads, tokens, size = q.shape
    head_groups("q", heads, "k", k.shape[1])
    expected = (batch, k.shape[1], tokens, size)
    _shape("k", k, expected, "(B, H_kv, N, D), with B, N and D of q,", "Only self-attention is supported.")
    _shape("v", v, expected, "(B, H_kv, N, D) of k", "Only self-attention with values of k's size is supported.")
    _device("k", k, "q", q)
    _device("v", v, "q", q)
    token_mask(mask, "q", q)


def codes(x: Tensor, bits: int) -> None:
    """codes (B, H, N, ceil(bits / 64)) int64."""
    _tensor("codes", x, 4, "(B, H, N, words)")
    if x.dtype != torch.int64:
        raise TypeError(f"codes must be int64, got {x.dtype}. Make them with hash_vectors.")
    _integer("bits", bits, 1, LARGEST_BITS, "Pass the number of planes that made the codes.")
    words = -(-bits // 64)
    if x.shape[3] != words:
        raise ValueError(
            f"codes must have ceil(bits / 64) = {words} words for {bits} bits, got shape {tuple(x.shape)}. "
            "Pass the bits that made them."
        )


def groups(
    assignment: Tensor,
    batch: int,
    heads: int,
    tokens: int | None,
    first: str,
    like: Tensor,
    name: str = "assignment",
) -> None:
    """assignment (B, H, N) int32; any N for None."""
    _tensor(name, assignment, 3, "(B, H, N)")
    if assignment.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {assignment.dtype}. Convert it with .int().")
    expected = (batch, heads, assignment.shape[2] if tokens is None else tokens)
    _shape(name, assignment, expected, f"(B, H, N) of {first}")
    _device(name, assignment, first, like)


def key_lists(top_keys: Tensor, batch: int, heads: int, clusters: int, first: str, like: Tensor) -> None:
    """top_keys (B, H, C, K) int32."""
    _tensor("top_keys", top_keys, 4, "(B, H, C, K)")
    if top_keys.dtype != torch.int32:
        raise TypeError(f"top_keys must be int32, got {top_keys.dtype}. Convert it with .int().")
    expected = (batch, heads, clusters, top_keys.shape[3])
    _shape("top_keys", top_keys, expected, f"(B, H, C, K), with B, H and C of {first},")
    _device("top_keys", top_keys, first, like)


def cluster_axis(name: str, x: Tensor) -> None:
    """Axis 2 of x counts clusters: from 1 to 65536."""
    if not 1 <= x.shape[2] <= LARGEST_CLUSTERS:
        raise ValueError(f"{name} must have 1 to {LARGEST_CLUSTERS} clusters on axis 2, got shape {tuple(x.shape)}.")


def same_accumulation(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """x has the type that `like` accumulates in."""
    expected = accumulation_dtype(like.dtype)
    if x.dtype != expected:
        raise TypeError(f"{name} must be {expected} where {first} is {like.dtype}, got {x.dtype}. Convert one of them.")


def same_batch_and_size(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """x (B, H, C, D) goes with `like` (B, H_kv, N, D)."""
    _shape(name, x, (like.shape[0], x.shape[1], x.shape[2], like.shape[3]), f"(B, H, C, D), with B and D of {first},")
    _device(name, x, first, like)


def scores_of(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """x (B, H, C, N) goes with `like` (B, H_kv, N, D)."""
    _shape(name, x, (like.shape[0], x.shape[1], x.shape[2], like.shape[2]), f"(B, H, C, N), with B and N of {first},")
    _device(name, x, first, like)


def same_batch_and_heads(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """x (B, H, C) goes with `like` (B, H, N, D)."""
    _shape(name, x, (like.shape[0], like.shape[1], x.shape[2]), f"(B, H, C), with B and H of {first},")
    _device(name, x, first, like)


def cells(name: str, x: Tensor, expected: tuple[int, ...], axes: str, first: str, like: Tensor) -> None:
    """x is one tensor of the tail, of the type, the device and the clusters of `like`."""
    _tensor(name, x, len(expected), axes)
    _shape(name, x, expected, axes)
    _device(name, x, first, like)
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} as {first}, got {x.dtype}. Make it with tail.")


def same_as(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """x has the shape, the type and the device of `like`."""
    _tensor(name, x, like.dim(), f"(B, H, N, D) of {first}")
    _shape(name, x, like.shape, f"(B, H, N, D) of {first}")
    _device(name, x, first, like)
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} as {first}, got {x.dtype}. Convert it with .to({first}.dtype).")


def cluster_count(clusters: int) -> None:
    _integer("clusters", clusters, 1, LARGEST_CLUSTERS, "More clusters than tokens are allowed, none are not.")


def key_cluster_count(name: str, count: int) -> None:
    _integer(name, count, 1, LARGEST_CLUSTERS, "More key clusters than tokens are allowed, none are not.")


def band_width(band: int) -> None:
    _integer("band", band, 0, None, "Use 0 for no exact neighbours.")


def updates(rounds: int) -> None:
    _integer("rounds", rounds, 0, None, "Use 0 to assign the tokens to the starting centroids.")


def sample_size(sample: int) -> None:
    _integer("sample", sample, 1, None, "A sample of at least 4 tokens per cluster is taken in any case.")


def key_count(topk: int) -> None:
    _integer("topk", topk, 0, None, "Use 0 for no exact keys.")


def rounds(iterations: int) -> None:
    _integer("iterations", iterations, 0, None, "Use 0 to assign the tokens to the starting centroids.")


def longer_steps(longer: object) -> None:
    """longer: five numbers a step, each step with more tokens than the one before."""
    width = len(Step._fields)
    if not isinstance(longer, (list, tuple)) or len(longer) % width:
        got = len(longer) if isinstance(longer, (list, tuple)) else type(longer).__name__
        raise ValueError(f"longer must hold steps of {width} numbers ({', '.join(Step._fields)}), got {got}.")
    before = 0
    for at in range(0, len(longer), width):  # without Steps, which take half the time of all checks
        tokens, clusters, topk, key_clusters, sample = longer[at : at + width]
        _integer("tokens of a step of longer", tokens, 1, None, "Shorter rows take the budgets given singly.")
        if tokens <= before:
            raise ValueError(f"The steps of longer must ascend in tokens, got {tokens} after {before}. Sort them.")
        before = tokens
        cluster_count(clusters)
        key_count(topk)
        key_cluster_count("key_clusters", key_clusters)
        sample_size(sample)


def exact_limit(exact_below: int) -> None:
    _integer("exact_below", exact_below, 0, None, "Use 0 to cluster rows of any length.")


def positive(scale: float) -> None:
    """scale is finite and above zero."""
    if not isinstance(scale, (int, float, torch.SymFloat)) or isinstance(scale, bool):
        raise TypeError(
            f"scale must be a float, got {type(scale).__name__}. Pass a Python float, or None for D ** -0.5."
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be finite and greater than 0, got {scale}. D ** -0.5 is usual.")
