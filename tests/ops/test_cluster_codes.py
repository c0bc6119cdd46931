"""cluster_codes: K-means in Hamming space. Integers only, so every result is exact."""

import numpy as np
import oracle
import pytest
import torch
from operator_cases import make_mask, numpy
from torch import Tensor

import cuda_ops

pytestmark = pytest.mark.usefixtures("backend")


def random_codes(*shape: int, bits: int, distinct: int = 0) -> Tensor:
    """Codes of ``bits`` bits; only ``distinct`` different ones if that is not 0, as real queries repeat themselves."""
    drawn = np.random.rand(*shape, bits) < 0.5
    if distinct:
        drawn = drawn.reshape(-1, bits)[:distinct][np.random.randint(0, distinct, shape)]
    return torch.from_numpy(oracle.pack_codes(drawn))


def check(codes: Tensor, mask: Tensor | None, bits: int, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    assignment, centroids = cuda_ops.cluster_codes(
        codes, mask=mask, bits=bits, clusters=clusters, iterations=iterations
    )
    assert assignment.dtype == torch.int32 and centroids.dtype == torch.int64
    oracle.check_assignment(assignment.numpy(), codes.numpy(), centroids.numpy(), numpy(mask), bits)
    expected = oracle.cluster_codes(codes.numpy(), numpy(mask), bits, clusters, iterations)
    np.testing.assert_array_equal(assignment.numpy(), expected[0])
    np.testing.assert_array_equal(centroids.numpy(), expected[1])
    return assignment, centroids


def by_hand(
    codes: list[int], bits: int, clusters: int, iterations: int, mask: list[bool] | None = None
) -> tuple[list[int], list[int]]:
    """Clusters of the tokens and codes of the centroids, of one (batch, head)."""
    valid = None if mask is None else torch.tensor([mask])
    assignment, centroids = check(torch.tensor(codes).view(1, 1, -1, 1), valid, bits, clusters, iterations)
    return assignment.flatten().tolist(), centroids.flatten().tolist()


def test_starts_are_evenly_spaced_valid_tokens() -> None:
    # Five valid tokens, three centroids: valid tokens 0, 1 and 3.
    mask = [False, True, True, False, True, True, True]
    assert by_hand([9, 1, 2, 9, 4, 8, 15], 4, 3, 0, mask) == ([-1, 0, 1, -1, 0, 2, 0], [1, 2, 8])


def test_more_clusters_than_tokens_repeat_starts() -> None:
    # Starts: floor(c * 2 / 5) for c = 0..4; the lowest of equal centroids gets the token, the others keep theirs.
    assert by_hand([1, 2], 2, 5, 10) == ([0, 3], [1, 1, 1, 2, 2])


def test_majority_tie_gives_zero() -> None:
    assert by_hand([0b11, 0b01], 2, 1, 1) == ([0, 0], [0b01])


def test_majority_of_three() -> None:
    assert by_hand([0b011, 0b101, 0b110], 3, 1, 1) == ([0, 0, 0], [0b111])


def test_empty_cluster_keeps_its_centroid() -> None:
    # Tokens 0 and 2 start both clusters with the same code: the second never gets a member.
    assert by_hand([0b01, 0b11, 0b01, 0b01], 2, 2, 7) == ([0, 0, 0, 0], [0b01, 0b01])


@pytest.mark.instruction_path
@pytest.mark.parametrize("clusters", [127, 128, 256, 257])
def test_many_clusters(clusters: int) -> None:
    """Their numbers fit into one byte, signed or not, or into none."""
    assignment, _ = check(random_codes(1, 1, 409, bits=63), None, 63, clusters, 1)
    assert assignment.max() == clusters - 1


def test_distance_ties_go_to_the_lowest_cluster() -> None:
    # Token 1 is one bit from both starts.
    assert by_hand([0b00, 0b01, 0b11, 0b11], 2, 2, 0) == ([0, 0, 1, 1], [0b00, 0b11])


def test_without_iterations_the_starts_stay() -> None:
    assert by_hand([1, 3, 7, 7], 3, 1, 0) == ([0, 0, 0, 0], [1])


def test_the_last_assignment_uses_the_last_centroids() -> None:
    # One update moves centroid 0 from 0000 to 0011, and token 0 then is as near to both: it stays in 0.
    codes = [0b0000, 0b0011, 0b0011, 0b1111, 0b1111, 0b1110]
    assignment, centroids = by_hand(codes, 4, 2, 1)
    assert (assignment, centroids) == ([0, 0, 0, 1, 1, 1], [0b0011, 0b1111])


def test_no_valid_token_gives_no_cluster_and_zero_centroids() -> None:
    assert by_hand([5, 6, 7], 3, 4, 3, [False] * 3) == ([-1] * 3, [0] * 4)


@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
@pytest.mark.parametrize("bits", [1, 63, 64, 65, 128, 256])
def test_against_the_oracle(bits: int, iterations: int) -> None:
    check(random_codes(6, 2, 61, bits=bits), make_mask("mixed", 6, 61), bits, 5, iterations)


@pytest.mark.parametrize("clusters", [1, 2, 7, 16, 17, 61, 67, 131])
def test_numbers_of_clusters(clusters: int) -> None:
    check(random_codes(3, 2, 61, bits=31), make_mask("mixed", 3, 61), 31, clusters, 5)


@pytest.mark.parametrize("distinct", [1, 2, 5, 13])
def test_repeated_codes(distinct: int) -> None:
    check(random_codes(2, 3, 47, bits=19, distinct=distinct), None, 19, 7, 10)


def test_few_bits_tie_everywhere() -> None:
    check(random_codes(3, 2, 101, bits=3), make_mask("mixed", 3, 101), 3, 11, 10)


@pytest.mark.parametrize("N", range(1, 71))
def test_every_number_of_tokens(N: int) -> None:
    for bits in (63, 67):  # in one word and in two
        check(random_codes(1, 1, N, bits=bits), None, bits, 5, 3)


def test_many_tokens() -> None:
    """Counters of members and bits must not overflow: 70,000 tokens in one cluster exceed 16 bits."""
    codes = torch.full((1, 1, 70_001, 1), 0b10)
    codes[0, 0, :35_000] = 0b01
    assignment, centroids = cuda_ops.cluster_codes(codes, bits=2, clusters=1, iterations=3, mask=None)
    assert (assignment == 0).all() and centroids.flatten().tolist() == [0b10]


@pytest.mark.parametrize("shape", [(0, 3, 5, 1), (2, 3, 0, 1)])
def test_empty(shape: tuple[int, ...]) -> None:
    assignment, centroids = cuda_ops.cluster_codes(
        torch.zeros(shape, dtype=torch.int64), bits=7, clusters=3, iterations=2, mask=None
    )
    assert assignment.shape == shape[:3]
    assert centroids.shape == (*shape[:2], 3, 1) and not centroids.any()


def test_strides_do_not_matter() -> None:
    codes = random_codes(2, 3, 31, bits=70)
    mask = make_mask("mixed", 2, 31)
    assert mask is not None
    views = [codes.transpose(1, 2).contiguous().transpose(1, 2), codes.transpose(2, 3).contiguous().transpose(2, 3)]
    for view in views:
        check(view, mask.T.contiguous().T, 70, 5, 3)
    check(codes[:1, :1].expand(2, 3, 31, 2), mask[:1].expand(2, 31), 70, 5, 3)
