"""What tests, tuning and benchmarks share: shape sets, exact fills, the reference, and one error bound.

An algorithm is right if it equals the reference on small integers, where arithmetic is exact, and stays
within ``c * (|x| conv |w|) + eps * |y|`` of it on random data, where c is its `Algorithm.error_bound`.
A backend of one's own is checked by `check_algorithm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastconv import arrays, registry
from fastconv.algorithm import EPSILON, ERROR_CONSTANT, Algorithm, AnyProblem
from fastconv.machine import free_bytes
from fastconv.notation import format_problem, parse_problem
from fastconv.problem import INDEX_DTYPES, ConvProblem, Operand, PoolProblem

# One problem a line: every family of problems, at sizes small enough to run everywhere, odd enough to hurt.
CONV_SHAPES = """
    conv2d n2 c3 i7 oc4 k3
    conv2d n1 c1 i4 oc1 k3 p1
    conv2d n2 c4 ih9 iw11 oc6 kh3 kw5 sh2 sw1 ph1:2 pw0:3 bias relu
    conv2d n1 c5 i8 oc7 k1 bias
    conv2d n3 c8 i6 oc8 k1 s2 g4
    conv2d n2 c6 i9 oc6 k3 p1 g6 bias leaky_relu
    conv2d n1 c3 ih9 iw21 oc3 k3 s2 p1 g3 residual
    conv2d n1 c4 i6 oc130 k3 p1 g2 bias
    conv2d n2 c10 i4 oc70 k1 g2 bias
    conv2d n2 c4 i10 oc8 k3 s2 psame g4
    conv2d n1 c3 i23 oc4 k11 s4 p2 relu6
    conv2d n2 c3 i12 oc5 k3 d3 p2:3
    conv2d n1 c16 i7 oc33 k3 p1 bias residual relu
    conv2d n2 c16 i5 oc10 k5 bias
    conv2d n1 c24 i7 oc10 k2 bias
    conv2d n2 c16 i8 oc18 k4 s2 p1
    conv2d n2 c12 i13 oc20 k8 s2 p3
    conv2d n1 c16 ih5 iw17 oc18 kh1 kw4 sh1 sw2 pw1 bias
    conv2d n1 c16 ih17 iw5 oc18 kh4 kw1 sh2 sw1 ph1
    conv2d n1 c12 i9 oc20 k5 p2 bias
    conv2d n1 c3 ih5 iw17 oc3 kh1 kw7 pw3 sigmoid
    conv2d n1 c3 ih17 iw5 oc3 kh7 kw1 ph3 tanh residual
    conv2d n1 c8 ih4 iw13 oc18 kh1 kw3 pw1 bias
    conv2d n2 c8 ih13 iw3 oc18 kh3 kw1 ph1 residual
    conv2d n1 c6 ih3 iw10 oc17 kh1 kw5 pw2 channels_last
    conv2d n1 c12 ih11 iw4 oc16 kh5 kw1 ph2:1 g2
    conv2d n2 c3 i8 oc4 k3 p2 reflect
    conv2d n2 c3 i8 oc4 k4 s2 ph3:1 pw0:2 d2 replicate bias
    conv2d n2 c4 i6 oc4 k3 p3:2 g2 circular
    conv2d n2 c3 i9 oc4 k3 p1 channels_last
    conv2d n2 c8 i9 oc8 k3 p1 s2 g2 channels_last bias residual relu
    conv2d n2 c4 i6 oc5 k1 channels_last
    conv2d n2 c37 i5 oc3 k1 channels_last bias residual relu
    conv2d n2 c3 i7 oc4 k3 p1:-1 s1 d2
    conv1d n2 c3 i19 oc5 k4 s2 p1 bias
    conv1d n1 c4 i33 oc4 k2 d8 g2 p8:0
    conv1d n2 c6 i11 oc6 k3 p1 g6 channels_last
    conv1d n2 c17 i23 oc6 k7 p3 relu
    conv3d n1 c2 id4 ih5 iw6 oc3 kd2 kh3 kw3 s2 p1 bias
    conv3d n2 c4 i5 oc4 k3 p1 g2 d2 circular
    conv3d n1 c3 i4 oc2 k3 p1 channels_last
    conv3d n1 c16 id3 ih6 iw7 oc9 kd2 kh3 kw3 ph1 pw1
    linear n5 c17 oc9 bias
    linear n1 c64 oc3 relu
    locally_connected2d n2 c3 ih6 iw7 oc4 k3 p1 s2 bias
    locally_connected2d n3 c2 i5 oc3 k2 bias_per_position residual relu
    locally_connected2d n2 c2 i5 oc3 k3 p1 reflect d2
""".strip().splitlines()

POOL_SHAPES = """
    max_pool2d n2 c3 i8 k2
    max_pool2d n2 c5 ih9 iw10 k3 s2 p1 ceil
    max_pool2d n1 c3 i12 kh3 kw2 s1 d2 ph1 channels_last
    max_pool1d n2 c3 i13 k3 s2 p1
    max_pool3d n1 c2 id5 ih6 iw7 k3 s2 p1 ceil
    avg_pool2d n2 c3 i8 k2
    avg_pool2d n2 c4 ih9 iw10 k3 s2 p1 ceil exclude_pad
    avg_pool2d n1 c3 i11 k3 s2 p0:1 ceil channels_last
    avg_pool2d n2 c3 i7 k3 s1 p1 div5
    avg_pool1d n2 c3 i10 k4 s3 p2
    avg_pool3d n1 c2 i6 k3 s2 p1
    lp_pool2d n2 c3 i8 k2 norm2
    lp_pool2d n1 c3 i9 k3 s2 ceil norm4 channels_last
    lp_pool1d n2 c3 i10 k3 s2 norm2
    lp_pool3d n1 c2 i5 k2 norm2
    adaptive_avg_pool2d n2 c3 i7 o1
    adaptive_avg_pool2d n2 c3 ih7 iw9 oh3 ow4 channels_last
    adaptive_avg_pool1d n2 c3 i8 o4
    adaptive_avg_pool3d n1 c2 i5 o2
    adaptive_max_pool2d n2 c3 ih6 iw9 oh3 ow3
    adaptive_max_pool2d n2 c3 i7 oh2 ow5
    adaptive_max_pool1d n2 c3 i7 o9
    adaptive_max_pool3d n1 c2 i5 o2
    max_unpool2d n2 c3 i4 o8
    max_unpool1d n2 c3 i4 o9 channels_last
    max_unpool3d n1 c2 i2 o5
    unfold n2 c3 i7 k3 s2 p1
    unfold n2 c2 ih8 iw9 kh3 kw2 d2 channels_last
    unfold n1 c2 iw11 kw3 p1:2
    unfold n1 c2 i4 kd2 kh2 kw2
""".strip().splitlines()


def problems(dtype: str = "float32") -> Iterator[AnyProblem]:
    """Yield every problem of the shape sets in every direction."""
    for text in CONV_SHAPES:
        problem = parse_problem(text).replace(dtype=dtype)
        yield problem
        for direction in ("dgrad", "wgrad", "bgrad"):
            if direction == "bgrad" and problem.bias == "none":
                continue
            plain = problem.replace(direction=direction, activation=None, residual=False, bias="none")
            yield plain.replace(bias=problem.bias) if direction == "bgrad" else plain
        if not problem.is_local and problem.padding_mode == "zeros" and problem.bias != "none":
            yield problem.replace(direction="dgrad")  # a transposed convolution with its epilogue
    for text in POOL_SHAPES:
        pool = parse_problem(text).replace(dtype=dtype)
        yield pool
        if pool.is_max:
            yield pool.replace(return_indices=True)
            yield pool.replace(return_indices=True, index_dtype="int16")
            yield pool.replace(direction="dgrad", index_dtype="int16")
        yield pool.replace(direction="dgrad")


def is_exact(problem: AnyProblem) -> bool:
    """Whether integer data has an integer result, so that every plain sum must give the same bits."""
    if isinstance(problem, PoolProblem):
        return problem.is_max or problem.kind in ("max_unpool", "unfold")
    return problem.activation in (None, "relu", "relu6")


# Arrays of float64 as large as the results: the reference's and their magnitudes, and temporaries of a comparison.
_COMPARING = 8


class UntestableError(ValueError):
    """Nothing can be drawn that would show whether an algorithm solves the problem."""


class TooLargeError(UntestableError):
    """The problem does not fit into this machine's memory."""


def random_inputs(problem: AnyProblem, seed: int = 0) -> tuple[Any, ...]:
    """Return normally distributed inputs for a problem, in its dtype and memory order.

    Raises
    ------
    TooLargeError
        If what is free of this machine's memory does not hold the problem, and what checking it takes.
    """
    rng = np.random.default_rng(seed)
    return _inputs(problem, rng, lambda shape: rng.standard_normal(shape))


def integer_inputs(problem: AnyProblem, seed: int = 0) -> tuple[Any, ...]:
    """Return inputs of integers from -4 to 4, whose sums of products are exact in every accumulator.

    Raises
    ------
    TooLargeError
        As `random_inputs`.
    """
    rng = np.random.default_rng(seed)
    return _inputs(problem, rng, lambda shape: rng.integers(-4, 5, shape).astype(np.float64))


def _inputs(problem: AnyProblem, rng: Any, draw: Any) -> tuple[Any, ...]:
    read, written = (sum(math.prod(o.shape) for o in operands) for operands in (problem.inputs, problem.outputs))
    # In float64 too: what is drawn, its absolute values; results, sums of these, and what comparing them takes.
    needed, free = problem.bytes + 8 * (2 * read + _COMPARING * written), free_bytes()
    if needed > free:
        raise TooLargeError(
            f"problem: {format_problem(problem)} takes {needed} bytes to draw and to check, {int(free)} are free"
        )
    made: dict[str, Any] = {}
    for operand in problem.inputs:
        if operand.dtype in INDEX_DTYPES:
            assert isinstance(problem, PoolProblem)
            values = _indices(problem, rng)
        elif operand.name == "y":
            values = _reference(problem.replace(direction="fprop", dtype="float64"), (made["x"].astype(np.float64),))[0]
        else:
            values = draw(operand.shape)
        made[operand.name] = laid_out(operand, problem.layout, values)
    return tuple(made.values())


def laid_out(operand: Operand, layout: str, values: Any) -> Any:
    """Return an array for an operand, in its dtype and memory order, with the given values."""
    array = arrays.empty(operand, layout, np.empty(0, arrays.dtype_named(operand.dtype)))
    array[...] = values
    return array


def _indices(problem: PoolProblem, rng: Any) -> NDArray[Any]:
    if problem.kind == "max_unpool":  # distinct within a plane, as a pool without overlap gives them
        plane, kept = math.prod(problem.output_size), math.prod(problem.input_size)
        if kept > plane:
            raise UntestableError(
                f"problem: {format_problem(problem)} puts {kept} elements in {plane} places, and which of those that "
                f"meet stays there is not defined"
            )
        rows = [rng.permutation(plane)[:kept] for _ in range(problem.n * problem.c)]
        return np.array(rows).reshape(problem.x_shape)
    x = rng.standard_normal(problem.x_shape)
    forward = problem.replace(direction="fprop", return_indices=True, dtype="float64")
    indices: NDArray[Any] = _reference(forward, (x,))[1]
    return indices


def run(algorithm: Algorithm, problem: AnyProblem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Solve a problem by one algorithm and return its outputs, which start out as NaN (indices as -2)."""
    outputs = tuple(laid_out(o, problem.layout, -2 if o.dtype in INDEX_DTYPES else np.nan) for o in problem.outputs)
    plan = algorithm.plan(problem)
    plan.run(plan.packed(inputs), outputs)
    return outputs


class Exact(NamedTuple):
    """The reference's answer in float64, and per element the sum of absolute values behind it."""

    results: tuple[Any, ...]
    magnitude: Any


def exact(problem: AnyProblem, inputs: tuple[Any, ...]) -> Exact:
    """Return what the reference gives in float64 for these inputs."""
    wide = tuple(a if a.dtype.name in INDEX_DTYPES else a.astype(np.float64) for a in inputs)
    results = _reference(problem.replace(dtype="float64"), wide)
    plain = problem.replace(dtype="float64")
    if isinstance(problem, ConvProblem):
        plain = plain.replace(activation=None)
    magnitude = np.abs(_reference(plain, tuple(np.abs(a) for a in wide))[0])
    return Exact(results, magnitude)


def _reference(problem: AnyProblem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    key = "reference/windows" if isinstance(problem, PoolProblem) else "reference/einsum"
    return run(registry.find(key), problem, inputs)


def compare(problem: AnyProblem, outputs: tuple[Any, ...], expected: Exact, bound: float) -> float:
    """Check outputs as `largest_error` does, against a reference that has something to show.

    Returns
    -------
    float
        The largest error, as a share of what is allowed at its element.

    Raises
    ------
    AssertionError
        If the outputs are wrong, or the reference is zero everywhere.
    """
    what = format_problem(problem)
    assert expected.results[0].any(), f"{what}: the reference is zero everywhere, so nothing would be shown"
    return largest_error(problem, outputs, expected, bound)


def largest_error(problem: AnyProblem, outputs: tuple[Any, ...], expected: Exact, bound: float) -> float:
    """Check outputs against the reference within an error bound.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    outputs : tuple of array
    expected : Exact
        From `exact`, with the same inputs.
    bound : float
        The algorithm's `error_bound`.

    Returns
    -------
    float
        The largest error, as a share of what is allowed at its element.

    Raises
    ------
    AssertionError
        If an element is out of bounds, or NaN and infinity stand elsewhere than in the reference. The message gives
        the first such element.
    """
    result, reference = outputs[0].astype(np.float64), expected.results[0]
    what = format_problem(problem)
    rounding = EPSILON[problem.dtype] + ERROR_CONSTANT * EPSILON[problem.accumulator]
    smallest = float(np.finfo(np.float32).tiny) if problem.dtype != "float16" else 2.0**-24
    finite = np.isfinite(reference)
    with np.errstate(invalid="ignore"):
        allowed = bound * expected.magnitude + rounding * np.abs(reference) + smallest
        share = np.abs(result - reference) / allowed
        good = np.where(finite, share <= 1, _same_special(result, reference))
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        raise AssertionError(
            f"{what}: {int((~good).sum())} of {good.size} elements are off; the first at {where}: "
            f"got {result[where]!r}, expected {reference[where]!r} within {allowed[where]:.3g}"
        )
    for output, indices in zip(outputs[1:], expected.results[1:], strict=True):
        assert np.array_equal(output, indices), f"{what}: the indices differ"
    return float(share[finite].max(initial=0.0))


def _same_special(result: Any, reference: Any) -> Any:
    return np.where(np.isnan(reference), np.isnan(result), result == reference)


def check_problem(algorithm: Algorithm, problem: AnyProblem) -> None:
    """Check one algorithm on one problem: integers exactly, random data within bounds, strides, repeatability.

    Raises
    ------
    AssertionError
        If a result is wrong; the message names the problem.
    """
    what = f"{algorithm.key} on {format_problem(problem)}"
    if is_exact(problem) and algorithm.strict:
        integers = integer_inputs(problem)
        reference = exact(problem, integers)
        for output, wanted in zip(run(algorithm, problem, integers), reference.results, strict=True):
            assert np.array_equal(output, wanted.astype(output.dtype)), f"{what}: integer data, result not exact"
    inputs = random_inputs(problem, seed=1)
    reference = exact(problem, inputs)
    outputs = run(algorithm, problem, inputs)
    compare(problem, outputs, reference, algorithm.error_bound(problem))
    again = run(algorithm, problem, tuple(read_only_view(a) for a in inputs))
    compare(problem, again, reference, algorithm.error_bound(problem))
    if algorithm.deterministic:
        for first, second in zip(outputs, run(algorithm, problem, inputs), strict=True):
            assert np.array_equal(first, second, equal_nan=True), f"{what}: a second run differs"


def read_only_view(array: Any) -> Any:
    """Return the same values with awkward strides: every axis reversed in memory, with gaps, read-only."""
    spread = np.zeros(tuple(2 * s + 1 for s in array.shape), array.dtype)
    view = spread[tuple(slice(2 * s - 1, None, -2) if s else slice(0) for s in array.shape)]
    view[...] = array
    view.flags.writeable = False
    return view


def check_algorithm(algorithm: Algorithm, among: Iterable[AnyProblem] | None = None) -> int:
    """Check an algorithm on every problem that it accepts.

    Parameters
    ----------
    algorithm : Algorithm
    among : iterable of problems, optional
        By default the shape sets in float32 and float64, every direction.

    Returns
    -------
    int
        How many problems it accepted.

    Raises
    ------
    AssertionError
        If a result is wrong, or if the algorithm refuses every problem.
    """
    if among is None:
        among = (p for dtype in ("float32", "float64") for p in problems(dtype))
    accepted = 0
    for problem in among:
        if algorithm.refuses(problem) is None:
            check_problem(algorithm, problem)
            accepted += 1
    assert accepted, f"{algorithm.key} refuses every problem"
    return accepted
