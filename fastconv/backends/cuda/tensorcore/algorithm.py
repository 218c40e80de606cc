"""What the dispatcher asks of convolution on tensor cores."""

from __future__ import annotations

import math

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import CudaAlgorithm, Start, Strides, usual_strides
from fastconv.backends.cuda.tensorcore.form import Form
from fastconv.backends.cuda.tensorcore.product import Product
from fastconv.backends.cuda.tensorcore.run import Runner
from fastconv.backends.cuda.tensorcore.work import Work
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import ConvProblem

# With fewer channels a group, tensor cores would mostly multiply padding.
_LEAST_CHANNELS = 3
# Unit roundoff of TF32. Both factors of a product are rounded.
TF32_EPSILON = 2.0**-11
# Their offsets are kept in shared memory.
_MOST_TAPS = 1024
_MOST = 2**31


class Tensorcore(CudaAlgorithm):
    """An implicit matrix product of half types, summed in single precision; of float32 as TF32 if options allow it."""

    name = "tensorcore"

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction == "bgrad":
            return "solves convolutions and the gradients of their inputs and weights only"
        if problem.dtype == "float32" and not current().tf32:
            return "would round float32 to TF32, which options(tf32=True) allows"
        if problem.dtype == "float64":
            return "sums in float32"
        if problem.is_local:
            return "every position has weights of its own: no matrix product to fill a tile with"
        if problem.padding_mode != "zeros":
            return f"pads with zeros only, not padding_mode {problem.padding_mode!r}"
        if min(problem.ic, problem.oc) // problem.groups < _LEAST_CHANNELS:
            return f"fewer than {_LEAST_CHANNELS} channels a group would leave tensor cores to multiply padding"
        return self._too_large(problem)

    def _too_large(self, problem: ConvProblem) -> str | None:
        product = Product(problem)
        if max(map(product.taps, product.phases)) > _MOST_TAPS:
            return f"more than {_MOST_TAPS} kernel positions"
        if _work(problem).images is None:
            return "packing one image takes more scratch memory than max_workspace allows"
        if any(max(product.size(phase, problem.n)) >= _MOST for phase in product.phases):
            return "more than 2^31 positions or taps"
        if product.is_wgrad and math.prod(problem.w_shape) >= _MOST:
            return "more than 2^31 weights"
        if problem.bytes >= 16 * _MOST:
            return "arrays of 32 GiB"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.workspace(work.choice.splits, work.choice.images)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).choice.seconds

    def error_bound(self, problem: AnyProblem) -> float:
        rounding = (2 + TF32_EPSILON) * TF32_EPSILON if problem.dtype == "float32" else 0.0
        return super().error_bound(problem) + rounding

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        form = _form(problem, strides, alignment)
        return Runner(_work_of(form), form).start


def _form(problem: AnyProblem, strides: Strides, alignment: int) -> Form:
    assert isinstance(problem, ConvProblem)
    return Form(Product(problem), strides, alignment)


def _work_of(form: Form) -> Work:
    return Work(form.product, form.packs, launching.launcher().properties(), current().max_workspace)


def _work(problem: AnyProblem) -> Work:
    """Return the work for arrays as fastconv allocates them."""
    return _work_of(_form(problem, usual_strides(problem), 16))
