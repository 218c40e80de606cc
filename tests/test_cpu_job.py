"""Starting jobs: native code looks at how arrays lie, whatever the run before was given."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv import registry, testing
from fastconv.backends.cpu import job
from fastconv.notation import parse_problem


def misaligned(array):
    room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    return filled(room.reshape(array.shape), array)


def filled(target, array):
    target[...] = array
    return target


# Of the same shape and values, other than C order on aligned memory.
LIES = {
    "reversed": lambda a: filled(np.empty_like(a)[::-1], a),
    "apart": lambda a: filled(np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)[..., ::2], a),
    "turned": lambda a: filled(np.empty(a.shape[::-1], a.dtype).T, a),
    "misaligned": misaligned,
}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("direct", "conv2d n2 c5 ih7 iw9 oc18 k3 p1 bias residual"),
        ("direct", "conv2d n2 c5 ih7 iw9 oc18 k3 p1 bias tanh"),
        ("grouped", "conv2d n2 c6 ih7 iw9 oc6 k3 p1 g2 bias residual"),
        ("depthwise", "conv2d n2 c6 ih7 iw9 oc6 k3 p1 g6 bias residual"),
        ("depthwise_walked", "conv2d n2 c5 ih7 iw9 oc5 k3 p1 g5 bias residual"),
        ("gemv", "linear n3 c17 oc9 bias residual"),
        ("gemv_batch", "linear n17 c19 oc9 bias residual"),
        ("wgrad", "conv2d:wgrad n2 c5 ih7 iw9 oc18 k3 p1"),
        ("gemv_wgrad", "linear:wgrad n3 c17 oc9"),
        ("bias_gradient", "conv2d:bgrad n2 c5 ih7 iw9 oc18 k3 p1 bias"),
    ],
)
def test_one_plan_takes_arrays_that_lie_otherwise_than_before(key, text):
    problem, algorithm = parse_problem(text), registry.find(f"numba/{key}")
    plan, inputs = algorithm.plan(problem), testing.random_inputs(problem)
    expected = testing.exact(problem, inputs)

    def check(given, y):
        y[...] = np.nan
        plan.run(given, (y,))
        testing.compare(problem, (y,), expected, algorithm.error_bound(problem))

    y = np.empty(problem.outputs[0].shape, inputs[0].dtype)
    for lie in LIES.values():
        for place in range(len(inputs)):
            check(inputs, y)
            check((*inputs[:place], lie(inputs[place]), *inputs[place + 1 :]), y)
        check(inputs, y)
        check(inputs, lie(y))


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_start_does_nothing_if_an_array_lies_otherwise(lie):
    problem = parse_problem("linear n3 c17 oc9 bias residual")
    x, w, bias, residual = testing.random_inputs(problem)
    y = np.empty((3, 9), np.float32)
    runner = registry.find("numba/gemv").plan(problem).run.__self__
    runner.run((x, w, bias, residual), (y,))
    given = [x, w, y, bias, residual]
    assert runner._start(*given, 0, 0) == 1
    for place, array in enumerate(given):
        other = lie(array)
        if other.strides == array.strides and other.flags.aligned:
            continue  # a bias has one axis to turn
        y[...] = 0
        assert runner._start(*given[:place], other, *given[place + 1 :], 0, 0) == 0
        assert not y.any()


def test_arrays_of_more_axes_than_a_start_has_words_for():
    array = np.empty((1,) * (job._MOST_AXES + 1), np.float32)
    with pytest.raises(ValueError, match="axes"):
        job.start_of(0, np.zeros(6, np.int64), 1, 1, (array, None, None, None, None))
