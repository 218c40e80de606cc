"""Fully connected layers of few rows, which wait for their weight: fastconv reads it faster, where it lies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from fastconv import ops
from fastconv.torch import asked
from fastconv.torch.counting import computed
from fastconv.torch.tensors import PLAIN, Tensor, array, eager, optional_array, run, tensor

_THEIRS = functional.linear

# PyTorch's call takes less time beside a smaller weight, and its matrix product is as fast for more rows.
_LEAST_WEIGHT = 1 << 20
_MOST_ROWS = 16


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear`; by fastconv where that is faster, and no gradient is recorded."""
    if torch.compiler.is_compiling() or not _is_ours(input, weight, bias):
        return _THEIRS(input, weight, bias)
    try:
        result = tensor(run(ops.linear, array(input), array(weight), optional_array(bias)))
    except (TypeError, ValueError):  # PyTorch's error is what the caller is to see
        return _THEIRS(input, weight, bias)
    computed["linear"] += 1
    return result


def _is_ours(input: Any, weight: Any, bias: Any) -> bool:
    if type(input) not in PLAIN or type(weight) not in PLAIN or not (bias is None or type(bias) in PLAIN):
        return False
    if input.dtype not in asked.dtypes:
        return False
    # Sizes are no numbers while something looks on, and rows of several lengths have none.
    if not eager() or input.is_nested or weight.numel() < _LEAST_WEIGHT:
        return False
    # A weight that was transposed is another product, in which PyTorch is as fast.
    if not weight.is_contiguous() or not 0 < math.prod(input.shape[:-1]) <= _MOST_ROWS:
        return False
    given = (input, weight) if bias is None else (input, weight, bias)
    if any(not t.is_cpu or t.dtype != input.dtype for t in given):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
