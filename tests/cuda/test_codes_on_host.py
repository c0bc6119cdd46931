"""Hashes, their clusters and the top keys by the CUDA kernels, executed on the host in five orders of threads.

All but the products of the hash are integers and comparisons: the decisions must be those of the CPU operators.
"""

from collections.abc import Iterator

import host_library
import pytest
import torch
from torch import Tensor

import cuda_ops

pytestmark = pytest.mark.usefixtures("compiled")
B, H, N = 2, 3, 1537


def padding(tokens: int = N) -> Tensor:
    """A row with holes, and one with padding on both sides."""
    torch.manual_seed(11)
    mask = torch.rand(B, tokens) > 0.3
    mask[1, : tokens // 31] = False
    mask[1, tokens - tokens // 29 :] = False
    return mask


def scores_of(kind: str, clusters: int, tokens: int) -> Tensor:
    """(B, H, C, N) that differ in high bits, in the last ones alone, hardly at all, or are no numbers."""
    torch.manual_seed(21)
    shape = (B, H, clusters, tokens)
    if kind == "numbers":
        return torch.randn(shape)
    if kind == "close":
        return torch.randint(0x3F800000, 0x3F800000 + 300, shape, dtype=torch.int32).view(torch.float32)
    if kind == "ties":
        return torch.randint(-2, 3, shape).float() * torch.where(torch.rand(shape) > 0.5, 1.0, -0.0)
    if kind == "any bits":
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).int().view(torch.float32)
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -torch.nan, 1e-45, -1e-45])
    return odd[torch.randint(0, len(odd), shape)]


@pytest.mark.parametrize("topk", [0, 1, 64, N - 1, N, N + 1])
@pytest.mark.parametrize("kind", ["numbers", "close", "ties", "any bits", "odd"])
def test_top_keys(host: None, kind: str, topk: int) -> None:
    scores, mask = scores_of(kind, 2, N), padding()
    for given in (None, mask):
        expected = cuda_ops.top_keys(scores, given, topk)
        assert torch.equal(torch.ops.cuda_ops_host.top_keys(scores, given, topk), expected)


@pytest.mark.parametrize("kind", ["close", "ties", "odd"])
def test_top_keys_in_every_order(order: str, kind: str) -> None:
    scores, mask = scores_of(kind, 1, 1031), padding(1031)
    assert torch.equal(torch.ops.cuda_ops_host.top_keys(scores, mask, 64), cuda_ops.top_keys(scores, mask, 64))


@pytest.mark.parametrize("topk", [1, 32, 64, 200, 1100])
@pytest.mark.parametrize("kind", ["numbers", "close", "ties", "any bits", "odd", "ascending", "few"])
def test_top_keys_of_long_rows(host: None, kind: str, topk: int) -> None:
    """More scores than are kept in shared memory: those above a bound are, unless they are too many. "few" has exactly as many large ones as there are top keys."""
    tokens = 70001
    scores = scores_of("numbers" if kind in ("ascending", "few") else kind, 1, tokens)[:, :1]
    if kind == "ascending":
        scores = scores.sort(-1).values
    if kind == "few":
        scores[..., torch.randperm(tokens)[:topk]] += 1000
    mask = padding(tokens)
    for given in (None, mask):
        expected = cuda_ops.top_keys(scores, given, topk)
        assert torch.equal(torch.ops.cuda_ops_host.top_keys(scores, given, topk), expected)


@pytest.mark.parametrize("kind", ["numbers", "ties"])
def test_top_keys_of_long_rows_in_every_order(order: str, kind: str) -> None:
    scores = scores_of(kind, 1, 9001)[:1, :1]
    assert torch.equal(torch.ops.cuda_ops_host.top_keys(scores, None, 64), cuda_ops.top_keys(scores, None, 64))


def test_top_keys_do_not_read_padding(host: None) -> None:
    scores, mask = scores_of("numbers", 3, 173), padding(173)
    scores = scores.masked_fill(~mask[:, None, None], torch.nan).transpose(2, 3).contiguous().transpose(2, 3)
    together = torch.ops.cuda_ops_host.top_keys(scores, mask, 20)
    for b in range(B):
        tokens = mask[b].nonzero()[:, 0]
        alone = torch.ops.cuda_ops_host.top_keys(scores[b : b + 1, ..., tokens], None, 20)
        assert torch.equal(tokens[alone[0].long()].int(), together[b])


@pytest.mark.parametrize("tokens", [0, 1, 5, 31])
def test_top_keys_of_few_tokens(host: None, tokens: int) -> None:
    scores, mask = scores_of("numbers", 3, tokens), torch.zeros(B, tokens, dtype=torch.bool)
    mask[1, tokens // 2 :] = True
    for topk in (0, 1, 7, 40):
        for given in (None, mask):
            found = torch.ops.cuda_ops_host.top_keys(scores, given, topk)
            assert torch.equal(found, cuda_ops.top_keys(scores, given, topk))


def test_top_keys_of_nothing(host: None) -> None:
    """No heads, no clusters."""
    assert torch.ops.cuda_ops_host.top_keys(torch.empty(2, 0, 3, 7), None, 4).shape == (2, 0, 3, 4)
    assert torch.ops.cuda_ops_host.top_keys(torch.empty(2, 3, 0, 7), None, 4).shape == (2, 3, 0, 4)


def strided(dtype: torch.dtype, size: int, tokens: int = 337) -> Tensor:
    """(B, H, N, D) with the strides of a (B, N, H, D), and NaN where a token is not valid."""
    torch.manual_seed(12)
    x = torch.randn(B, tokens, H, size).to(dtype).transpose(1, 2)
    return x.masked_fill(~padding(tokens)[:, None, :, None], torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("planes", [1, 63, 64, 131])
def test_hashes(order: str, dtype: torch.dtype, planes: int) -> None:
    """A bit may differ from float64's only where the product is within rounding of zero."""
    size = 29
    x, mask = strided(dtype, size), padding(337)
    directions = torch.randn(planes, size)
    codes = torch.ops.cuda_ops_host.hash_vectors(x, directions, mask)
    valid = x.masked_fill(~mask[:, None, :, None], 0).double()
    products = valid @ directions.double().T
    bound = 2.0**-23 * size * (valid.abs() @ directions.double().abs().T)
    bits = torch.stack([(codes[..., p // 64] >> (p % 64)) & 1 for p in range(planes)], -1).bool()
    assert ((bits == (products > 0)) | (products.abs() <= bound)).all()
    assert (codes[~mask[:, None].expand(B, H, -1)] == 0).all()
    beyond = 64 * codes.shape[-1] - planes
    assert beyond == 0 or ((codes[..., -1] >> (64 - beyond)) & (2**beyond - 1) == 0).all()
    assert (codes != cuda_ops.hash_vectors(x, directions, mask)).sum() <= 2  # the CPU adds in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 29, 64, 256])
def test_a_hash_alone_has_the_same_bits(host: None, size: int, dtype: torch.dtype) -> None:
    x, mask = strided(dtype, size, 173), padding(173)
    directions = torch.randn(63, size)
    together = torch.ops.cuda_ops_host.hash_vectors(x, directions, mask)
    for b in range(B):
        tokens = mask[b].nonzero()[:, 0]
        alone = torch.ops.cuda_ops_host.hash_vectors(x[b : b + 1, :, tokens], directions, None)
        assert torch.equal(alone[0], together[b][:, tokens])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_blocks_that_hash_several_tiles(host: None, dtype: torch.dtype) -> None:
    """Of so many tokens a block takes two to four tiles, the last one of a head fewer; of a part of them, one."""
    x, directions = torch.randn(1, 5, 13619, 7).to(dtype), torch.randn(17, 7)
    together = torch.ops.cuda_ops_host.hash_vectors(x, directions, None)
    for part in (slice(0, 1000), slice(5003, 6011), slice(13001, None)):
        assert torch.equal(torch.ops.cuda_ops_host.hash_vectors(x[:, :, part], directions, None), together[:, :, part])
    assert (together != cuda_ops.hash_vectors(x, directions, None)).sum() <= 5  # the CPU adds in another order


def test_hashes_of_no_tokens(host: None) -> None:
    assert torch.ops.cuda_ops_host.hash_vectors(torch.empty(1, 2, 0, 7), torch.randn(63, 7), None).shape == (1, 2, 0, 1)


@pytest.fixture(params=[1, 3])
def parts(host: None, request: pytest.FixtureRequest) -> Iterator[int]:
    """Blocks to a head, where it has tokens for as many."""
    host_library.set_blocks_at_once(request.param * B * 2)
    yield request.param
    host_library.set_blocks_at_once(8)


def codes_of(bits: int, tokens: int, spread: float) -> Tensor:
    """(B, 2, N, words) around a few centres, each bit turned with the chance `spread`; junk where a token is not valid."""
    torch.manual_seed(22)
    centres = torch.rand(B, 2, 7, bits) > 0.5
    chosen = torch.randint(0, 7, (B, 2, tokens, 1)).expand(-1, -1, -1, bits)
    ones = centres.gather(2, chosen) ^ (torch.rand(B, 2, tokens, bits) < spread)
    powers = torch.tensor([1 << p if p < 63 else -(1 << 63) for p in range(64)])
    padded = torch.nn.functional.pad(ones.long(), (0, -bits % 64)).unflatten(-1, (-1, 64))
    return (padded * powers).sum(-1).masked_fill(~padding(tokens)[:, None, :, None], 0x5A5A_5A5A_5A5A)


def assert_same_clusters(codes: Tensor, mask: Tensor | None, bits: int, clusters: int, iterations: int) -> None:
    arguments = codes, mask, bits, clusters, iterations
    found, expected = torch.ops.cuda_ops_host.cluster_codes(*arguments), cuda_ops.cluster_codes(*arguments)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("iterations", [0, 1, 10])
@pytest.mark.parametrize("bits", [1, 63, 64, 128, 131, 256])
def test_clusters(parts: int, bits: int, iterations: int) -> None:
    codes = codes_of(bits, 673, 0.2)
    assert_same_clusters(codes, padding(673), bits, 11, iterations)
    assert_same_clusters(codes[:1], None, bits, 11, iterations)


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize(
    ("bits", "clusters"),
    [(63, 1), (63, 78), (63, 79), (63, 126), (63, 127), (256, 19), (256, 20), (256, 300), (3, 1031), (63, 2100)],
)
def test_many_clusters(parts: int, bits: int, clusters: int, iterations: int) -> None:
    """More than counters in shared memory, more than a tile of centroids, more than tokens."""
    assert_same_clusters(codes_of(bits, 541, 0.3), padding(541), bits, clusters, iterations)


@pytest.mark.parametrize("clusters", [5, 140])
def test_clusters_in_every_order(order: str, parts: int, clusters: int) -> None:
    assert_same_clusters(codes_of(100, 541, 0.3), padding(541), 100, clusters, 5)


@pytest.mark.parametrize("tokens", [0, 1, 2, 31])
def test_clusters_of_few_tokens(parts: int, tokens: int) -> None:
    mask = torch.zeros(B, tokens, dtype=torch.bool)
    mask[1, tokens // 2 :] = True
    for clusters in (1, 3, 40):
        for given in (None, mask):
            assert_same_clusters(codes_of(63, tokens, 0.3), given, 63, clusters, 3)
    assert torch.ops.cuda_ops_host.cluster_codes(torch.empty(2, 0, 7, 1).long(), None, 63, 4, 3)[0].shape == (2, 0, 7)


@pytest.mark.parametrize("tokens", [1023, 1024, 1025, 2111])
def test_valid_tokens(order: str, tokens: int) -> None:
    """A mask of any strides, longer than the tile that is listed at once."""
    torch.manual_seed(14)
    mask = (torch.rand(tokens, 3) > 0.4).T
    mask[2] = False
    scores = torch.zeros(3, 1, 1, tokens)
    listed = torch.ops.cuda_ops_host.top_keys(scores, mask, tokens)
    for row, found in zip(mask, listed[:, 0, 0], strict=True):
        positions = row.nonzero()[:, 0]
        assert torch.equal(found[: len(positions)].long(), positions)
        assert (found[len(positions) :] == -1).all()
    codes = torch.ops.cuda_ops_host.hash_vectors(torch.ones(3, 1, tokens, 1), torch.ones(1, 1), mask)
    assert torch.equal(codes[:, 0, :, 0] == 1, mask)
