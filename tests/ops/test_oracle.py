"""The oracle by hand, and proof that what tests rely on can fail: checkers, tolerance, poison, network guard."""

import ctypes
import socket

import numpy as np
import oracle
import pytest
import torch
from tolerance import assert_close, assert_same_bits

# One (batch, head), four tokens in two clusters {0, 1} and {2, 3}; log 2 and log 3 make the weights fractions.
LOG2, LOG3 = np.log(2.0), np.log(3.0)
Q = np.array([[[[2.0], [0.0], [0.0], [0.0]]]])
K = np.array([[[[0.0], [0.0], [LOG2], [LOG3]]]])
V = np.array([[[[1.0], [2.0], [3.0], [4.0]]]])
CLUSTERS = np.array([[[0, 0, 1, 1]]])


def test_clustered_by_hand() -> None:
    out, log_mass = oracle.clustered(Q, K, V, None, CLUSTERS, scale=1.0)
    # Centroid 0 is 1: weights 1, 1, 2, 3 of 7. Centroid 1 is 0: equal weights.
    np.testing.assert_allclose(out[0, 0, :, 0], [(1 + 2 + 6 + 12) / 7] * 2 + [2.5] * 2)
    np.testing.assert_allclose(log_mass[0, 0], [np.log(7)] * 2 + [np.log(4)] * 2)


def test_improved_clustered_by_hand() -> None:
    top = np.array([[[[2, 3], [0, 1]]]])
    out, _ = oracle.improved_clustered(Q, K, V, None, CLUSTERS, top, scale=1.0)
    # Cluster 0: 5/7 of the mass on keys 2 and 3. Query 0 is 2, so there e^(q.k) = 4 and 9; query 1 is 0: equal.
    first, second = 3 / 7 + 5 / 7 * (4 * 3 + 9 * 4) / 13, 3 / 7 + 5 / 7 * 3.5
    np.testing.assert_allclose(out[0, 0, :, 0], [first, second, 2.5, 2.5])


def test_improved_clustered_leaves_out_padding() -> None:
    mask = np.array([[True, True, True, False]])
    out, log_mass = oracle.improved_clustered(
        Q, K, V, mask, np.array([[[0, 0, 1, -1]]]), np.full((1, 1, 2, 0), -1), scale=1.0
    )
    np.testing.assert_allclose(out[0, 0, :, 0], [(1 + 2 + 6) / 4] * 2 + [2.0, 0.0])
    np.testing.assert_allclose(log_mass[0, 0], [np.log(4)] * 2 + [np.log(3), -np.inf])


def test_stages_of_the_oracle_are_its_whole() -> None:
    """Two ways of writing the paper's formula agree: A^t row by row, and mass times exact part plus rest."""
    random = np.random.RandomState(0)
    q, k, v = (
        random.standard_normal((2, 4, 11, 3)),
        random.standard_normal((2, 2, 11, 3)),
        random.standard_normal((2, 2, 11, 3)),
    )
    mask = random.rand(2, 11) < 0.7
    assignment = np.where(mask[:, None], random.randint(0, 3, (2, 4, 11)), -1)
    scores = oracle.centroid_scores(oracle.group_mean(q, assignment, 3, 0.7), k, mask)
    top = oracle.top_keys(scores, mask, 5)
    rest, top_mass, log_mass = oracle.centroid_attention(scores, v, mask, top)
    parts = oracle.exact_attention(q, k, v, assignment, top, top_mass, 0.7) + oracle.group_scatter(rest, assignment)
    out, by_token = oracle.improved_clustered(q, k, v, mask, assignment, top, 0.7)
    np.testing.assert_allclose(parts, out, atol=1e-14)
    np.testing.assert_allclose(
        oracle.group_scatter(log_mass[..., None], assignment)[mask[:, None].repeat(4, 1), 0],
        by_token[mask[:, None].repeat(4, 1)],
    )


def test_lloyd_by_hand() -> None:
    codes = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0]], dtype=bool)
    assignment, centroids = oracle.lloyd(codes, clusters=2, iterations=1)
    # Starts: tokens 0 and 2. The third bit of each cluster is a tie, which gives 0.
    np.testing.assert_array_equal(assignment, [0, 0, 1, 1])
    np.testing.assert_array_equal(centroids, [[0, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize("bits", [1, 63, 64, 65, 128, 256])
def test_codes_survive_packing(bits: int) -> None:
    unpacked = np.random.RandomState(bits).rand(3, bits) < 0.5
    np.testing.assert_array_equal(oracle.unpack_codes(oracle.pack_codes(unpacked), bits), unpacked)


def test_check_codes_can_fail() -> None:
    x, planes = np.array([[[[1.0, 2.0]]]]), np.array([[1.0, 1.0], [-1.0, 0.0]])
    oracle.check_codes(np.array([[[[1]]]]), x, planes, None, tolerance=1e-6)
    for wrong in (0, 3, 5):
        with pytest.raises(AssertionError):
            oracle.check_codes(np.array([[[[wrong]]]]), x, planes, None, tolerance=1e-6)
    with pytest.raises(AssertionError, match="padded"):
        oracle.check_codes(np.array([[[[1]]]]), x, planes, np.array([[False]]), tolerance=1e-6)


def test_check_assignment_can_fail() -> None:
    codes, centroids = np.array([[[[3], [0], [1]]]]), np.array([[[[3], [0]]]])
    mask = np.array([[True, True, True]])
    oracle.check_assignment(np.array([[[0, 1, 0]]]), codes, centroids, mask, bits=2)
    with pytest.raises(AssertionError):  # token 2 is as far from either: the lower cluster has it
        oracle.check_assignment(np.array([[[0, 1, 1]]]), codes, centroids, mask, bits=2)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([0, 1], "took a key"),
        ([3, 1], "not ascending"),
        ([1, 1], "not ascending"),
        ([1, 2], "valid"),
        ([1, -1], "valid"),
    ],
)
def test_check_top_keys_can_fail(wrong: list[int], why: str) -> None:
    scores, mask = np.array([[[[0.0, 2.0, 9.0, 1.0]]]]), np.array([[True, True, False, True]])
    oracle.check_top_keys(np.array([[[[1, 3]]]]), scores, mask, 2, tolerance=1e-6)
    with pytest.raises(AssertionError, match=why):
        oracle.check_top_keys(np.array([[[wrong]]]), scores, mask, 2, tolerance=1e-6)


def test_assert_close_can_fail() -> None:
    exact, eps = np.ones(3), torch.finfo(torch.float32).eps
    assert_close("near", torch.ones(3) + 3 * eps, exact, torch.ones(3))
    with pytest.raises(AssertionError, match="far: error"):
        assert_close("far", torch.ones(3) + 6 * eps, exact, torch.ones(3))
    with pytest.raises(AssertionError, match="error nan"):
        assert_close("nan", torch.tensor([1, 1, torch.nan]), exact)
    with pytest.raises(AssertionError, match="infinities"):
        assert_close("inf", torch.ones(1), np.array([-np.inf]))
    with pytest.raises(AssertionError, match="shape"):
        assert_close("shape", torch.ones(2), exact)
    with pytest.raises(AssertionError, match="gradient"):
        assert_close("gradient", torch.full((3,), 1.4), exact, torch.full((3,), 1.1), gradient=True)
    assert_close("gradient", torch.full((3,), 1.29), exact, torch.full((3,), 1.1), gradient=True)


def test_assert_same_bits_can_fail() -> None:
    nan = torch.tensor([torch.nan])
    assert_same_bits("nan", nan, nan.clone())
    with pytest.raises(AssertionError, match="bits"):
        assert_same_bits("zero", torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.usefixtures("poisoned_memory")
def test_unwritten_memory_reads_as_garbage() -> None:
    assert torch.empty(5, dtype=torch.bfloat16).isnan().all()
    assert (torch.empty(5, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    pointer = library.malloc(ctypes.c_size_t(100_000))
    written = ctypes.string_at(pointer, 100_000)
    library.free(ctypes.c_void_p(pointer))
    assert set(written) == {0x7F}


def test_no_network() -> None:
    with socket.socket() as connection, pytest.raises(RuntimeError, match="without a network"):
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="without a network"):
        socket.getaddrinfo("huggingface.co", 443)
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
