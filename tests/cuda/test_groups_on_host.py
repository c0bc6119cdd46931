"""Group means by the CUDA kernels, executed on the host in five orders of threads."""

import host_library
import pytest
import torch
from torch import Tensor

import cuda_ops

pytestmark = pytest.mark.usefixtures("compiled")
B, H, N, D = 2, 3, 1537, 29


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("clusters", "size"), [(1, D), (5, D), (307, 13), (700, 3), (7, 131)])
def test_means(order: str, dtype: torch.dtype, clusters: int, size: int) -> None:
    x, groups = strided(dtype, size), assigned(clusters)
    means = torch.ops.cuda_ops_host.group_mean(x, groups, clusters, 0.37)
    for b in range(B):
        for h in range(H):
            for c in range(clusters):
                rows = x[b, h, groups[b, h] == c].double()
                exact = 0.37 * rows.mean(0) if len(rows) else torch.zeros(size, dtype=torch.float64)
                bound = 2.0**-22 * (rows.abs().mean(0) if len(rows) else 0)
                assert ((means[b, h, c].double() - exact).abs() <= bound + 1e-30).all()
    torch.testing.assert_close(means, cuda_ops.group_mean(x, groups, clusters, 0.37), rtol=1e-5, atol=1e-6)


def test_a_mean_depends_on_its_members_alone(order: str) -> None:
    x, groups = strided(torch.float32), assigned(5)
    together = torch.ops.cuda_ops_host.group_mean(x, groups, 5, 1.0)
    for b in range(B):
        tokens = padding()[b].nonzero()[:, 0]
        alone = torch.ops.cuda_ops_host.group_mean(
            x[b : b + 1, :, tokens], groups[b : b + 1, :, tokens].contiguous(), 5, 1.0
        )
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_read_by_eights_have_the_same_bits(order: str, dtype: torch.dtype) -> None:
    """Rows that begin anywhere are read number by number."""
    x, groups = strided(dtype, 40), assigned(3)
    shifted = torch.nn.functional.pad(x.contiguous(), (1, 0))[..., 1:]
    by_eights, by_ones = (torch.ops.cuda_ops_host.group_mean(rows, groups, 3, 0.37) for rows in (x, shifted))
    assert torch.equal(by_eights, by_ones)


@pytest.mark.parametrize("clusters", [3, 512, 513])
def test_members_of_long_rows(host: None, clusters: int) -> None:
    """Parts of more tokens than are read at once, and tokens that belong to no cluster."""
    torch.manual_seed(15)
    groups = torch.randint(-1, clusters + 1, (1, 1, 80_021), dtype=torch.int32)
    x = torch.randint(-8, 9, (1, 1, 80_021, 1)).float()
    expected = torch.stack([x[groups == c].sum() / max(1, int((groups == c).sum())) for c in range(clusters)])
    torch.testing.assert_close(torch.ops.cuda_ops_host.group_mean(x, groups, clusters, 1.0).flatten(), expected)


def test_no_tokens(host: None) -> None:
    empty = torch.ops.cuda_ops_host.group_mean(torch.empty(1, 2, 0, 7), torch.empty(1, 2, 0, dtype=torch.int32), 3, 1.0)
    assert torch.equal(empty, torch.zeros(1, 2, 3, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_widened_exactly(host: None, dtype: torch.dtype) -> None:
    """A cluster of one token has the token as its mean."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    x = torch.nn.functional.pad(numbers, (0, -len(numbers) % 64)).view(1, 1, -1, 64)
    one_each = torch.arange(x.shape[2], dtype=torch.int32).view(1, 1, -1)
    host_library.set_order("forward")
    assert torch.equal(torch.ops.cuda_ops_host.group_mean(x, one_each, x.shape[2], 1.0), x.float())
