"""Every CUDA kernel, executed on the host in five orders of threads, against the CPU operators and float64."""

import pytest
import torch
from host_kernels import ORDERS, TYPES, HostKernels, compile_for_host, poisoned, sources
from torch import Tensor

import cuda_ops
from build_support import compiler

pytestmark = pytest.mark.usefixtures("compiled")
B, H, N, D = 2, 3, 337, 29


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    if compiler.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    return HostKernels(compile_for_host(sources(), tmp_path_factory.mktemp("kernels")))


@pytest.fixture(params=ORDERS)
def kernels(library: HostKernels, request: pytest.FixtureRequest) -> HostKernels:
    library.set_order(request.param)
    return library


def padding() -> Tensor:
    """A row with holes, and one with padding on both sides."""
    torch.manual_seed(11)
    mask = torch.rand(B, N) > 0.3
    mask[1, :40] = False
    mask[1, -60:] = False
    return mask


def strided(dtype: torch.dtype, size: int = D) -> Tensor:
    """(B, H, N, D) with the strides of a (B, N, H, D), and NaN where a token is not valid."""
    torch.manual_seed(12)
    x = torch.randn(B, N, H, size).to(dtype).transpose(1, 2)
    return x.masked_fill(~padding()[:, None, :, None], torch.nan)


def assigned(clusters: int) -> Tensor:
    """Clusters of the valid tokens, one of them empty; -1 elsewhere."""
    torch.manual_seed(13)
    clusters_of = torch.randint(0, clusters, (B, H, N), dtype=torch.int32)
    clusters_of[clusters_of == 2] = 0
    return clusters_of.masked_fill(~padding()[:, None], -1)


@pytest.mark.parametrize("tokens", [0, 1, 31, 1024, 1025, 2111])
def test_valid_tokens(kernels: HostKernels, tokens: int) -> None:
    torch.manual_seed(14)
    mask = (torch.rand(tokens, 3) > 0.4).T
    positions, counts = kernels.valid_tokens(mask)
    assert counts.tolist() == mask.sum(-1).tolist()
    for row, count, found in zip(mask, counts.tolist(), positions, strict=True):
        assert found[:count].tolist() == row.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("planes", [1, 63, 64, 131])
def test_hashes(kernels: HostKernels, dtype: torch.dtype, planes: int) -> None:
    """A bit may differ from float64's only where the product is within rounding of zero."""
    x, mask = strided(dtype), padding()
    directions = torch.randn(planes, D)
    codes = kernels.hash_vectors(x, directions, mask)
    valid = x.masked_fill(~mask[:, None, :, None], 0).double()
    products = valid @ directions.double().T
    bound = 2.0**-23 * D * (valid.abs() @ directions.double().abs().T)
    bits = torch.stack([(codes[..., p // 64] >> (p % 64)) & 1 for p in range(planes)], -1).bool()
    assert ((bits == (products > 0)) | (products.abs() <= bound)).all()
    assert (codes[~mask[:, None].expand(B, H, N)] == 0).all()
    padded_bits = 64 * codes.shape[-1] - planes
    assert padded_bits == 0 or ((codes[..., -1] >> (64 - padded_bits)) & (2**padded_bits - 1) == 0).all()
    expected = cuda_ops.hash_vectors(x, directions, mask)
    assert (codes != expected).sum() <= 2  # the CPU adds in another order


def test_a_hash_alone_has_the_same_bits(kernels: HostKernels) -> None:
    x, directions, mask = strided(torch.float32), torch.randn(63, D), padding()
    together = kernels.hash_vectors(x, directions, mask)
    for b in range(B):
        tokens = mask[b].nonzero()[:, 0]
        alone = kernels.hash_vectors(x[b : b + 1, :, tokens], directions, None)
        assert torch.equal(alone[0], together[b][:, tokens])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("clusters", "size"), [(1, D), (5, D), (7, 131)])
def test_means(kernels: HostKernels, dtype: torch.dtype, clusters: int, size: int) -> None:
    x, groups = strided(dtype, size), assigned(clusters)
    means = kernels.group_mean(x, groups, clusters, 0.37)
    for b in range(B):
        for h in range(H):
            for c in range(clusters):
                rows = x[b, h, groups[b, h] == c].double()
                exact = 0.37 * rows.mean(0) if len(rows) else torch.zeros(size, dtype=torch.float64)
                bound = 2.0**-22 * (rows.abs().mean(0) if len(rows) else 0)
                assert ((means[b, h, c].double() - exact).abs() <= bound + 1e-30).all()
    torch.testing.assert_close(means, cuda_ops.group_mean(x, groups, clusters, 0.37), rtol=1e-5, atol=1e-6)


def test_a_mean_depends_on_its_members_alone(kernels: HostKernels) -> None:
    x, groups = strided(torch.float32), assigned(5)
    together = kernels.group_mean(x, groups, 5, 1.0)
    for b in range(B):
        tokens = padding()[b].nonzero()[:, 0]
        alone = kernels.group_mean(x[b : b + 1, :, tokens], groups[b : b + 1, :, tokens].contiguous(), 5, 1.0)
        assert torch.equal(alone[0], together[b])


def test_nothing_at_all(library: HostKernels) -> None:
    """No tokens, no heads, no clusters' members."""
    assert library.hash_vectors(torch.empty(1, 2, 0, 7), torch.randn(63, 7), None).shape == (1, 2, 0, 1)
    empty = library.group_mean(torch.empty(1, 2, 0, 7), torch.empty(1, 2, 0, dtype=torch.int32), 3, 1.0)
    assert torch.equal(empty, torch.zeros(1, 2, 3, 7))
    assert torch.isnan(poisoned((2,), torch.float32)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_widened_exactly(library: HostKernels, dtype: torch.dtype) -> None:
    """A cluster of one token has the token as its mean."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    x = torch.zeros(-(-len(numbers) // 64) * 64, dtype=dtype)
    x[: len(numbers)] = numbers
    x = x.view(1, 1, -1, 64)
    one_each = torch.arange(x.shape[2], dtype=torch.int32).view(1, 1, -1)
    library.set_order("forward")
    assert torch.equal(library.group_mean(x, one_each, x.shape[2], 1.0), x.float())
