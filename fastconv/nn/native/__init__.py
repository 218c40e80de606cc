"""Elementwise kernels in Numba, for NumPy arrays of float32 and float64: what `fastconv.nn.plain` does, in one pass.

The same bits come out for any number of threads.
"""

from fastconv.nn.native.channels import (
    accumulate,
    affine,
    batch_norm,
    batch_norm_gradient,
    bias_gradient,
    concatenate,
    gate,
    gate_gradient,
    prelu,
    prelu_gradient,
)
from fastconv.nn.native.elementwise import activate, activation_gradient, adam, add, dropout, sgd
from fastconv.nn.native.rows import (
    cross_entropy,
    neighbours,
    neighbours_gradient,
    normalise,
    normalise_gradient,
    softmax,
    softmax_gradient,
)

__all__ = [
    "accumulate",
    "activate",
    "activation_gradient",
    "adam",
    "add",
    "affine",
    "batch_norm",
    "batch_norm_gradient",
    "bias_gradient",
    "concatenate",
    "cross_entropy",
    "dropout",
    "gate",
    "gate_gradient",
    "neighbours",
    "neighbours_gradient",
    "normalise",
    "normalise_gradient",
    "prelu",
    "prelu_gradient",
    "sgd",
    "softmax",
    "softmax_gradient",
]
