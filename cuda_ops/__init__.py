"""Clustered attention's operators: plain PyTorch everywhere, compiled where it was built. Imports torch only."""

from cuda_ops import autograd as _autograd
from cuda_ops import fakes as _fakes
from cuda_ops import reference as _reference
from cuda_ops import reference_backward as _reference_backward
