"""Clustered attention's operators: plain PyTorch everywhere, compiled C++ and CUDA where they were built. Imports torch only."""

from cuda_ops import reference
