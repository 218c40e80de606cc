"""Every algorithm on every problem of the shape sets; and proof that what checks them lets no mistake through."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from cuda_emulation import emulated
from fakes import Fake, general_backends, reference_key, registered

import fastconv as fc
from fastconv import Algorithm, ConvProblem, Plan, registry, testing
from fastconv.machine import machine
from fastconv.notation import format_problem, parse_problem
from fastconv.problem import DTYPES

ALGORITHMS = {a.key: a for a in registry.algorithms()}
PROBLEMS = {format_problem(p): p for dtype in DTYPES for p in testing.problems(dtype)}
SINGLE = {text: p for text, p in PROBLEMS.items() if p.dtype == "float32"}
ACCEPTED = [(key, text) for key, a in ALGORITHMS.items() for text, p in PROBLEMS.items() if a.refuses(p) is None]


# ------------------------------------------------------------------------------- every algorithm that there is


@pytest.mark.parametrize(("key", "text"), ACCEPTED)
def test_algorithm(key, text):
    testing.check_problem(ALGORITHMS[key], PROBLEMS[text])


@functools.cache
def candidates(text, limit):
    """Return what each algorithm says of a problem, if it may use so much scratch memory."""
    with fc.options(max_workspace=limit):
        return {c.algorithm: c for c in fc.explain(SINGLE[text]).candidates}


@pytest.mark.parametrize("limit", [1 << 10, 1 << 12, 1 << 14])
@pytest.mark.parametrize("key", ALGORITHMS)
def test_algorithm_in_little_workspace(key, limit):
    """Slices of other sizes give the same results; what does not fit even so is refused with its size.

    Only for those that solve what nothing else may does the limit not hold.
    """
    algorithm = ALGORITHMS[key]
    kind = {text: p for text, p in SINGLE.items() if algorithm.refuses(p) is None}
    with fc.options(max_workspace=limit):
        for text, problem in kind.items():
            candidate = candidates(text, limit)[key]
            if candidate.refusal is None:
                assert algorithm.fallback or candidate.workspace <= limit
                testing.check_problem(algorithm, problem)
            else:
                assert not algorithm.fallback
                assert "max_workspace allows" in candidate.refusal


@pytest.mark.parametrize("key", ALGORITHMS)
def test_algorithm_on_prepacked_weights(key):
    algorithm = ALGORITHMS[key]
    packable = [p for p in SINGLE.values() if any(operand.name == "w" for operand in p.inputs)]
    assert packable
    for problem in (p.replace(prepacked=True) for p in packable):
        if algorithm.refuses(problem) is None:
            testing.check_problem(algorithm, problem)


@pytest.mark.parametrize("key", ALGORITHMS)
def test_refusals_are_reasons(key):
    algorithm = ALGORITHMS[key]
    with emulated():  # in the place of a GPU
        answers = {algorithm.refuses(p.replace(device=algorithm.device)) for p in PROBLEMS.values()}
    assert None in answers
    for reason in answers - {None}:
        assert len(reason.split()) > 1


def test_general_backends():
    assert general_backends()[:3] == ["reference", "naive", "im2col"]


@pytest.mark.parametrize("backend", ["reference", "naive"])
def test_backends_that_refuse_nothing(backend):
    members = [a for a in ALGORITHMS.values() if a.backend == backend]
    for text, problem in PROBLEMS.items():
        assert any(a.refuses(problem) is None for a in members), text


@pytest.mark.parametrize("key", ALGORITHMS)
def test_answers_are_finite_and_positive(key):
    algorithm = ALGORITHMS[key]
    for text, problem in PROBLEMS.items():
        if algorithm.refuses(problem) is None:
            seconds, bound = algorithm.predict(problem, machine()), algorithm.error_bound(problem)
            assert 0 < seconds < math.inf, text
            assert 0 < bound < 1, text
            assert 0 <= algorithm.workspace_bytes(problem) < 1 << 40, text
            assert isinstance(algorithm.workspace_bytes(problem), int), text


@pytest.mark.parametrize("key", ALGORITHMS)
def test_predictions_grow_with_the_problem(key):
    """A thousand times the work must be expected to take longer, or predictions rank nothing."""
    algorithm = ALGORITHMS[key]
    for text in ("conv2d c32 i{} oc32 k3 p1", "max_pool2d c32 i{} k2"):
        small, large = (parse_problem(text.format(size)) for size in (8, 256))
        if algorithm.refuses(large) is None:
            assert algorithm.predict(large, machine()) > 10 * algorithm.predict(small, machine())


def test_the_reference_is_expected_to_be_the_slowest():
    """It must not be chosen where anything else can be."""
    for text, problem in SINGLE.items():
        with fc.options(max_workspace=1 << 30):
            usable = [c for c in fc.explain(problem).candidates if c.refusal is None]
        assert len(usable) > 1
        assert usable[-1].algorithm.startswith("reference/"), text


def test_keys_are_unique_words():
    for algorithm in registry.algorithms():
        assert algorithm.key == f"{algorithm.backend}/{algorithm.name}"
        assert algorithm.key.count("/") == 1
        assert registry.find(algorithm.key) is algorithm
    assert len(ALGORITHMS) == len(registry.algorithms())


def test_plans_know_their_problem():
    problem = parse_problem("conv2d c1 i4 oc1 k3")
    for algorithm in (a for a in ALGORITHMS.values() if a.refuses(problem) is None):
        plan = algorithm.plan(problem)
        assert (plan.problem, plan.algorithm) == (problem, algorithm)
        assert repr(plan) == f"Plan({algorithm.key})"


# ------------------------------------------------------------------------------------- what checks the checks


class Mistaken(Algorithm):
    """The reference with a mistake in what it solves, for convolutions in ``fprop`` alone."""

    name, backend = "mistaken", "test"

    def __init__(self, mistake):
        self.mistake = mistake

    def refuses(self, problem):
        if not isinstance(problem, ConvProblem) or problem.direction != "fprop":
            return "solves forward convolutions only"
        return None

    def predict(self, problem, machine):
        return 1.0

    def plan(self, problem):
        reference = registry.find(reference_key(problem)).plan(problem)
        return Plan(problem, self, lambda inputs, outputs: self.mistake(problem, reference.run, inputs, outputs))


def solve(problem, inputs, outputs):
    registry.find(reference_key(problem)).plan(problem).run(inputs, outputs)


def no_mistake(problem, run, inputs, outputs):
    run(inputs, outputs)


def one_tap_off(problem, run, inputs, outputs):
    x, w, *rest = inputs
    run((x, np.roll(w, 1, axis=-1), *rest), outputs)


def flipped_filter(problem, run, inputs, outputs):
    x, w, *rest = inputs
    spatial = tuple(range(w.ndim - problem.ndim, w.ndim))
    run((x, np.flip(w, spatial), *rest), outputs)


def transposed_groups(problem, run, inputs, outputs):
    run(inputs, outputs)
    y = outputs[0].reshape(problem.n, problem.groups, -1, *problem.output_size)
    outputs[0][...] = y.swapaxes(1, 2).reshape(outputs[0].shape)


def wrong_border(problem, run, inputs, outputs):
    solve(problem.replace(padding_mode="zeros"), inputs, outputs)


def swapped_padding(problem, run, inputs, outputs):
    swapped = tuple((after, before) for before, after in problem.padding)
    solve(problem.replace(padding=swapped) if min(map(min, swapped), default=0) >= 0 else problem, inputs, outputs)


def forgotten_bias(problem, run, inputs, outputs):
    named = {operand.name: array for operand, array in zip(problem.inputs, inputs, strict=True)}
    named.pop("bias", None)
    solve(problem.replace(bias="none"), tuple(named.values()), outputs)


def forgotten_residual(problem, run, inputs, outputs):
    solve(problem.replace(residual=False), inputs[: len(inputs) - problem.residual], outputs)


def forgotten_activation(problem, run, inputs, outputs):
    solve(problem.replace(activation=None), inputs, outputs)


def first_image_only(problem, run, inputs, outputs):
    run(inputs, outputs)
    outputs[0][...] = outputs[0][:1]


def last_column_unwritten(problem, run, inputs, outputs):
    y = np.empty_like(outputs[0])
    run(inputs, (y,))
    outputs[0][..., :-1] = y[..., :-1]


def memory_order_assumed(problem, run, inputs, outputs):
    x, *rest = inputs
    as_contiguous = x if x.base is None else x.base.ravel()[: x.size].reshape(x.shape)
    run((as_contiguous, *rest), outputs)


def inputs_written(problem, run, inputs, outputs):
    run(inputs, outputs)
    inputs[0][...] += 0


def summed_in_half_precision(problem, run, inputs, outputs):
    run(inputs, outputs)
    outputs[0][...] = outputs[0].astype(np.float16)


def summed_in_single_precision(problem, run, inputs, outputs):
    run(inputs, outputs)
    outputs[0][...] = outputs[0].astype(np.float32)


MISTAKES = [
    one_tap_off,
    flipped_filter,
    transposed_groups,
    wrong_border,
    swapped_padding,
    forgotten_bias,
    forgotten_residual,
    forgotten_activation,
    first_image_only,
    last_column_unwritten,
    memory_order_assumed,
    inputs_written,
    summed_in_half_precision,
    summed_in_single_precision,
]


def test_check_accepts_what_is_right():
    accepted = testing.check_algorithm(Mistaken(no_mistake))
    assert accepted == 2 * len(testing.CONV_SHAPES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_check_finds_mistakes(mistake):
    with pytest.raises((AssertionError, ValueError), match=r"off|not exact|read-only"):
        testing.check_algorithm(Mistaken(mistake))


def test_check_finds_results_that_change_from_run_to_run():
    count = itertools.count()

    def drifting(problem, run, inputs, outputs):
        run(inputs, outputs)
        outputs[0][...] = outputs[0] * (1 + np.finfo(outputs[0].dtype).eps * (next(count) > 0))

    problem = parse_problem("conv2d c3 i7 oc4 k3 sigmoid")  # not an exact one, so that an ulp is allowed
    with pytest.raises(AssertionError, match="a second run differs"):
        testing.check_problem(Mistaken(drifting), problem)
    loose = Mistaken(drifting)
    loose.deterministic = False
    testing.check_problem(loose, problem)


def test_check_finds_indices_that_differ():
    def shifted(problem, outputs):
        outputs[1][...] += 1

    pool = parse_problem("max_pool2d c2 i6 k2 indices")
    testing.check_problem(Fake("right"), pool)
    with pytest.raises(AssertionError, match="fake/wrong on max_pool2d"):
        testing.check_problem(Fake("wrong", spoil=shifted), pool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_check_finds_an_error_just_above_the_bound(dtype):
    problem = parse_problem("conv2d c3 i9 oc4 k3 p1").replace(dtype=dtype)
    inputs = testing.random_inputs(problem)
    expected = testing.exact(problem, inputs)
    bound = registry.find("reference/einsum").error_bound(problem)
    outputs = testing.run(registry.find("reference/einsum"), problem, inputs)
    testing.compare(problem, outputs, expected, bound)
    index = np.unravel_index(abs(expected.results[0]).argmax(), outputs[0].shape)
    unit = testing.EPSILON[dtype] + testing.ERROR_CONSTANT * testing.EPSILON[problem.accumulator]
    outputs[0][index] += 4 * (bound * expected.magnitude[index] + unit * abs(expected.results[0][index]))
    with pytest.raises(AssertionError, match="1 of 324 elements are off"):
        testing.compare(problem, outputs, expected, bound)


def test_compare_wants_specials_where_the_reference_has_them():
    problem = parse_problem("conv2d c1 i4 oc1 k1")
    inputs = testing.random_inputs(problem)
    inputs[0][0, 0, 0] = np.nan, np.inf, -np.inf, 0
    expected = testing.exact(problem, inputs)
    right = testing.run(registry.find("reference/einsum"), problem, inputs)
    testing.compare(problem, right, expected, 0.0)
    for column, wrong in itertools.product(range(3), (0.0, np.inf, -np.inf, np.nan)):
        outputs = (right[0].copy(),)
        same = np.array_equal(outputs[0][0, 0, 0, column], wrong, equal_nan=True)
        outputs[0][0, 0, 0, column] = wrong
        if not same:
            with pytest.raises(AssertionError, match="elements are off"):
                testing.compare(problem, outputs, expected, 0.0)


def test_compare_refuses_a_reference_of_zeros():
    problem = parse_problem("conv2d c1 i4 oc1 k3")
    inputs = tuple(np.zeros_like(a) for a in testing.random_inputs(problem))
    with pytest.raises(AssertionError, match="zero everywhere"):
        testing.compare(problem, (np.zeros(problem.y_shape),), testing.exact(problem, inputs), 1.0)


def test_check_wants_an_algorithm_that_does_something():
    with pytest.raises(AssertionError, match="fake/idle refuses every problem"):
        testing.check_algorithm(Fake("idle", refusal="never does"))


def test_test_data_are_what_they_say():
    for problem in SINGLE.values():
        for inputs in (testing.integer_inputs(problem), testing.random_inputs(problem)):
            for operand, array in zip(problem.inputs, inputs, strict=True):
                assert (array.shape, array.dtype) == (operand.shape, operand.dtype)
                assert np.isfinite(array).all()
                assert array.any()
                awkward = testing.read_only_view(array)
                assert np.array_equal(awkward, array)
                assert not awkward.flags.writeable
                assert array.size == 1 or not awkward.flags.c_contiguous
        for operand, array in zip(problem.inputs, testing.integer_inputs(problem), strict=True):
            assert operand.name == "y" or np.array_equal(array, np.round(array))


# -------------------------------------------------------------------------------------------------- registry


def test_register_replaces_and_unregister_takes_out():
    first, second = Fake("twin"), Fake("twin")
    with registered(first):
        assert registry.find("fake/twin") is first
        assert fc.register(second) is second
        assert registry.find("fake/twin") is second
        assert fc.available_backends()[-1] == "fake"
    with pytest.raises(ValueError, match=r"algorithm: no 'fake/twin'; registered are reference/einsum"):
        registry.find("fake/twin")
    with pytest.raises(ValueError, match="fake/twin"):
        registry.unregister("fake/twin")
    assert "fake" not in fc.available_backends()


@pytest.mark.parametrize("wrong", [Fake, "im2col/gemm", None, object()])
def test_register_wants_an_instance(wrong):
    with pytest.raises(TypeError, match=r"^algorithm: expected an instance of fastconv\.Algorithm"):
        fc.register(wrong)


@pytest.mark.parametrize(("attribute", "value"), [("name", ""), ("name", "a/b"), ("backend", None), ("backend", 3)])
def test_register_wants_names(attribute, value):
    algorithm = Fake("nameless")
    setattr(algorithm, attribute, value)
    with pytest.raises(TypeError, match=rf"^algorithm: Fake\.{attribute}"):
        fc.register(algorithm)


def test_an_algorithm_must_say_how():
    class Silent(Algorithm):
        name, backend = "silent", "test"

    with pytest.raises(TypeError, match="abstract"):
        Silent()
