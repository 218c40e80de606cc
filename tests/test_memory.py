"""How much memory a convolution takes at its peak, seen from outside: the resident set of a process of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fresh import python

from fastconv.notation import parse_problem
from fastconv.problem import DTYPES

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")

MIB = 1 << 20

# Beyond the workspace there are BLAS's packing buffers, where this problem's blocks touch more of them than the
# warm-up did, and pages that the allocator keeps and the kernel counts late. No array measured here is this small.
BESIDES = 6 * MIB

MEASURE = """
import json
import numpy as np
import fastconv as fc
from fastconv.call import execute
from fastconv.notation import parse_problem
from fastconv.options import current

def resident(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

def inputs(problem):
    # Written to, so that all of it is resident.
    return tuple(np.full(a.shape, 0 if a.dtype == "int64" else 1, a.dtype) for a in problem.inputs)

np.ones((1024, 512), np.float32) @ np.ones((512, 1024), np.float32)
with fc.options(backend="im2col", **{options!r}):
    execute(small := parse_problem({small!r}), inputs(small), current())
    given = inputs(problem := parse_problem({text!r}))
    before, peak_before = resident("VmRSS"), resident("VmHWM")
    outputs = execute(problem, given, current())
    print(json.dumps([before, peak_before, resident("VmHWM")]))
"""


def bytes_of(operands) -> int:
    size = {**DTYPES, "int64": 8}
    return sum(math.prod(a.shape) * size[a.dtype] for a in operands)


def beyond_the_arrays(text: str, **options) -> int:
    """Return how far the peak of a run through im2col is above inputs and outputs."""
    problem = parse_problem(text)
    small = text.replace(f"i{problem.iw}", "i8")
    assert small != text
    code = MEASURE.format(text=text, small=small, options=options)
    # One thread of BLAS, whose buffers are as many as its threads, and which fights over a busy machine's cores.
    before, peak_before, peak = json.loads(python(code, OPENBLAS_NUM_THREADS="1").stdout)
    # What came before must not hide the peak, and the outputs must show in it, or nothing would be measured.
    assert peak_before - before < MIB
    assert peak - before >= bytes_of(problem.outputs) - MIB
    return peak - before - bytes_of(problem.outputs)


@pytest.mark.slow
def test_a_large_image_takes_its_input_its_output_and_100_mb():
    """Whole, the column matrix would take 9.7 GB."""
    assert beyond_the_arrays("conv2d n1 c64 i2048 oc64 k3 p1") < 100_000_000


@pytest.mark.parametrize("limit", [1 * MIB, 8 * MIB])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d n1 c32 i512 oc32 k3 p1",
        "conv2d:dgrad n1 c32 i512 oc32 k3 p1",
        "conv2d:wgrad n1 c32 i512 oc32 k3 p1",
        "conv2d n1 c32 i512 oc32 k3 p1 channels_last",
        "conv2d n1 c64 i512 oc64 k3 p1 g64 reflect",
        "conv2d n1 c64 i512 oc32 k1 f16",
        "max_pool2d n1 c32 i512 k3 s1 p1",
        "avg_pool2d:dgrad n1 c32 i512 k3 s1 p1",
    ],
)
def test_workspace_is_kept_within_its_limit(text, limit):
    columns = 9 * bytes_of(parse_problem(text).inputs[:1])
    assert columns > 8 * (limit + BESIDES)
    assert beyond_the_arrays(text, max_workspace=limit) <= limit + BESIDES
