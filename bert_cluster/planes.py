"""The random hash planes: frozen, so that the same seed means the same decisions on every machine and in every version."""

import numpy
import torch
from torch import Tensor


def random_planes(bits: int, head_size: int, seed: int = 0) -> Tensor:
    """P normals of random planes through the origin, N(0, 1) in every coordinate.

    Drawn in float64 from ``numpy.random.RandomState``, whose stream never changes, and kept in float32.

    Args:
        bits: P.
        head_size: D.
        seed: 0 to 2**32 - 1.

    Returns:
        (P, D) float32.
    """
    normals = numpy.random.RandomState(seed).standard_normal((bits, head_size))
    return torch.from_numpy(normals.astype(numpy.float32))
