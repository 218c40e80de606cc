"""What the dispatcher asks of convolution in small groups."""

from __future__ import annotations

import math

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.grouped import run, wgrad
from fastconv.backends.cuda.grouped.wgrad import WgradWork
from fastconv.backends.cuda.grouped.work import Work
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import ConvProblem

_MOST = 2**31
# Channels of a group: a matrix product fills its tiles with more.
_MOST_CHANNELS = 32


class Grouped(CudaAlgorithm):
    """Groups of a few channels, on CUDA cores: a block has several of them, and no tile is padded with others."""

    name = "grouped"

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction not in ("fprop", "dgrad"):
            return "solves convolutions and the gradients of their inputs only"
        reason = _not_small_groups(problem)
        if reason is None and not _work(problem).fits:
            return "a window and its weights do not fit into shared memory"
        return reason

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).seconds

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        return run.prepare(_work(problem), strides, alignment)


class GroupedWgrad(CudaAlgorithm):
    """The weight gradient of groups of a few channels: tiles of both arrays shared, sums in registers."""

    name = "grouped_wgrad"

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "wgrad":
            return "solves gradients of weights only"
        reason = _not_small_groups(problem)
        if reason is not None:
            return reason
        if math.prod(problem.w_shape) >= _MOST:
            return "more than 2^31 weights"
        if not _wgrad_work(problem).fits:
            return "a window does not fit into shared memory"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _wgrad_work(problem).partial_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _wgrad_work(problem).seconds

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        return wgrad.prepare(_wgrad_work(problem), strides, alignment)


def _not_small_groups(problem: ConvProblem) -> str | None:
    """Return why a problem is none of those that these kernels are for."""
    if problem.is_local:
        return "shares weights between positions, which a locally connected layer does not"
    if problem.ndim not in (1, 2):
        return f"computes in one and two dimensions, not in {problem.ndim}"
    channels = max(problem.ic, problem.oc) // problem.groups
    if channels > _MOST_CHANNELS:
        return f"takes at most {_MOST_CHANNELS} channels a group, not {channels}"
    if problem.padding_mode != "zeros":
        return f"pads with zeros, not in padding_mode {problem.padding_mode!r}"
    if problem.groups > launching.MOST_ROWS:
        return f"more than {launching.MOST_ROWS} groups"
    positions = max(math.prod(problem.input_size), math.prod(problem.output_size))
    if problem.n * positions >= _MOST:
        return "more than 2^31 positions"
    return None


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, launching.launcher().properties())


def _wgrad_work(problem: AnyProblem) -> WgradWork:
    assert isinstance(problem, ConvProblem)
    return WgradWork(problem, launching.launcher().properties(), current().max_workspace)
