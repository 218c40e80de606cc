"""Arrays whose elements lie more than 2^31 elements apart, in emulation: every kernel's offsets take 64 bits."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from cuda_emulation import emulated

from fastconv import registry, testing
from fastconv.notation import parse_problem

# Elements from one entry of an axis to the next: too many for 32 bits, and whole vectors of every type.
FAR = 2**31 + 64
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

# By algorithm: problems that take each of its kernels.
PROBLEMS = {
    "cuda/direct": """
        conv2d n2 c3 i5 oc4 k3 p1 bias residual relu
        conv2d:dgrad n2 c3 i5 oc4 k3 p1 s2
        conv2d:dgrad n2 c3 i5 oc4 k3 p1 reflect
        conv2d:wgrad n2 c3 i5 oc4 k3 p1
        locally_connected2d n2 c3 i5 oc4 k3
    """,
    "cuda/bias_gradient": """
        conv2d:bgrad n2 c3 i5 oc4 k3 bias
        conv2d:bgrad n2 c3 i5 oc4 k3 bias channels_last
    """,
    "cuda/tensorcore": """
        conv2d n2 c8 i5 oc8 k3 p1 f16 channels_last bias residual
        conv2d:dgrad n2 c4 i5 oc4 k3 p1 f16
        conv2d:wgrad n2 c8 i5 oc8 k3 p1 f16 channels_last
    """,
    "cuda/winograd4": """
        conv2d n2 c12 i5 oc12 k3 bias residual
        conv2d:dgrad n2 c12 i5 oc12 k3 channels_last
    """,
    "cuda/depthwise": """
        conv2d n2 c8 i5 oc8 k3 p1 g8 bias residual
        conv2d:dgrad n2 c8 i5 oc8 k3 p1 s2 g8 channels_last
        conv2d n2 c8 i5 oc8 k2 g8 channels_last bias residual
        conv2d:wgrad n2 c8 i5 oc8 k3 p1 g8
        conv2d:wgrad n2 c8 i5 oc8 k3 p1 g8 channels_last
    """,
    "cuda/grouped": """
        conv2d n2 c8 i5 oc8 k3 p1 g2 bias residual
        conv2d:dgrad n2 c8 i5 oc8 k3 p1 s2 g2 channels_last
    """,
    "cuda/grouped_wgrad": """
        conv2d:wgrad n2 c8 i5 oc8 k3 p1 g2
        conv2d:wgrad n2 c8 i5 oc8 k3 p1 g2 channels_last
    """,
    "cuda/pool": """
        max_pool2d n2 c4 i7 k3 s2 p1 indices
        max_pool2d n2 c4 i7 k3 s2 p1 channels_last
        avg_pool2d n2 c4 i7 k3 s2 p1
        adaptive_avg_pool2d n2 c4 i7 o1
        adaptive_max_pool2d n2 c4 i7 o1 indices channels_last
    """,
    "cuda/pool_gradient": """
        max_pool2d:dgrad n2 c4 i7 k3 s2 p1
        avg_pool2d:dgrad n2 c4 i7 k3 s2 p1 channels_last
        lp_pool2d:dgrad n2 c4 i7 k2
    """,
    "cuda/unpool": """
        max_unpool2d n2 c3 i3 o6
        max_unpool2d:dgrad n2 c3 i3 o6 channels_last
    """,
    "cuda/unfold": """
        unfold n2 c3 i5 k3 p1
        unfold:dgrad n2 c3 i5 k3 p1 channels_last
    """,
}
CASES = [(key, line.strip()) for key, lines in PROBLEMS.items() for line in lines.strip().splitlines()]


def far_apart(array, axis):
    """Return the same values in memory where the entries of an axis lie far apart; it is there where they are only."""
    if array.ndim <= axis or array.shape[axis] == 1:
        return array
    strides = [FAR * array.itemsize if i == axis else step for i, step in enumerate(array.strides)]
    size = array.itemsize + sum((n - 1) * step for n, step in zip(array.shape, strides, strict=True))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    spread = np.ndarray(array.shape, array.dtype, memory, strides=tuple(strides))
    spread[...] = array
    return spread


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("key", "text"), CASES)
def test_offsets_of_64_bits(key, text, axis):
    problem, algorithm = parse_problem(f"{text} cuda"), registry.find(key)
    inputs = testing.random_inputs(problem)
    outputs = [testing.laid_out(operand, problem.layout, 0) for operand in problem.outputs]
    with emulated():
        assert algorithm.refuses(problem) is None
        plan = algorithm.plan(problem)
        far = [far_apart(array, axis) for array in outputs]
        plan.run(tuple(far_apart(array, axis) for array in inputs), tuple(far))
    testing.compare(problem, tuple(far), testing.exact(problem, inputs), algorithm.error_bound(problem))


def test_every_algorithm_is_among_them():
    assert set(PROBLEMS) == {a.key for a in registry.algorithms() if a.device == "cuda"}
