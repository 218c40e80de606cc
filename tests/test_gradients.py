"""Gradients: adjoint to what they are gradients of, equal to differences, and again differentiable."""

from __future__ import annotations

from inspect import isfunction
from typing import Any

import numpy as np
import pytest
import torch

import fastconv as fc
from fastconv import registry, testing
from fastconv.algorithm import EPSILON, ERROR_CONSTANT
from fastconv.notation import format_problem


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def integers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(np.float64)


# ------------------------------------------------------------------------------------------------- adjoints


def plain(problem: fc.ConvProblem, direction: str) -> Any:
    return problem.replace(direction=direction, activation=None, residual=False, bias="none")


CONVOLUTIONS = [p for p in testing.problems() if isinstance(p, fc.ConvProblem) and p.direction == "fprop"]
LINEAR_WINDOWS = [
    p for p in testing.problems() if getattr(p, "kind", None) in ("unfold", "max_unpool") and p.direction == "fprop"
]


def accepted(problems: list[Any], directions: tuple[str, ...]) -> list[Any]:
    """Return a test parameter for every algorithm and every problem that it solves in all directions."""
    return [
        pytest.param(algorithm, problem, id=f"{algorithm.key}-{format_problem(problem)}")
        for algorithm in registry.algorithms()
        for problem in problems
        if all(algorithm.refuses(problem.replace(direction=d)) is None for d in directions)
    ]


def inner(a: Any, b: Any) -> float:
    return float(np.vdot(a.astype(np.float64), b.astype(np.float64)))


@pytest.mark.parametrize(("algorithm", "problem"), accepted(CONVOLUTIONS, ("fprop", "dgrad", "wgrad")))
def test_convolution_is_adjoint_to_its_gradients(algorithm, problem):
    forward, dgrad, wgrad = (plain(problem, direction) for direction in ("fprop", "dgrad", "wgrad"))
    x, w = testing.integer_inputs(forward)
    dy, _ = testing.integer_inputs(dgrad, seed=1)
    (y,) = testing.run(algorithm, forward, (x, w))
    (dx,) = testing.run(algorithm, dgrad, (dy, w))
    (dw,) = testing.run(algorithm, wgrad, (x, dy))
    products = [inner(y, dy), inner(x, dx), inner(w, dw)]
    if algorithm.strict:
        assert products[0] == products[1] == products[2] != 0
    else:
        size = inner(testing.exact(forward, (x, w)).magnitude, abs(dy))
        bound = max(algorithm.error_bound(p) for p in (forward, dgrad, wgrad))
        assert max(products) - min(products) <= 2 * bound * size


@pytest.mark.parametrize(("algorithm", "problem"), accepted(LINEAR_WINDOWS, ("fprop", "dgrad")))
def test_linear_window_is_adjoint_to_its_gradient(algorithm, problem):
    x, *indices = testing.integer_inputs(problem)
    backward = problem.replace(direction="dgrad")
    dy, *_ = testing.integer_inputs(backward, seed=1)
    (y,) = testing.run(algorithm, problem, (x, *indices))
    (dx,) = testing.run(algorithm, backward, (dy, *indices))
    assert inner(y, dy) == inner(x, dx) != 0


# ---------------------------------------------------------------------------------------------- differences

X1, X2, X3 = normal(2, 4, 11), normal(2, 4, 7, 8), normal(1, 4, 5, 6, 5)
W1, W2, W3 = normal(6, 4, 3), normal(6, 4, 3, 3), normal(6, 4, 2, 3, 2)
BIAS = normal(6)
MAP = {"input": X2, "weight": W2}

# op, array arguments, other arguments: every op, and every option that a gradient passes through.
DIFFERENTIABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("conv1d", {"input": X1, "weight": W1, "bias": BIAS}, {"stride": 2, "padding": 2}),
    ("conv2d", {**MAP, "bias": BIAS}, {}),
    ("conv2d", {"input": X2[0], "weight": W2, "bias": BIAS}, {"padding": "same", "stride": 2}),
    ("conv2d", {"input": X2, "weight": W2[:, :2], "bias": BIAS}, {"groups": 2, "dilation": (2, 1)}),
    ("conv2d", MAP, {"padding": ((2, 0), (1, 3)), "stride": (2, 3)}),
    *(
        ("conv2d", {**MAP, "bias": BIAS}, {"padding": ((2, 1), (0, 2)), "stride": 2, "padding_mode": mode})
        for mode in ("reflect", "replicate", "circular")
    ),
    *(
        ("conv2d", {**MAP, "bias": BIAS, "residual": normal(2, 6, 7, 8)}, {"padding": 1, "activation": activation})
        for activation in (None, "relu", "leaky_relu", "relu6", "sigmoid", "tanh")
    ),
    ("conv3d", {"input": X3, "weight": W3, "bias": BIAS}, {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
    ("conv_transpose1d", {"input": X1, "weight": normal(4, 3, 3)}, {"stride": 3, "output_padding": 2}),
    (
        "conv_transpose2d",
        {"input": X2, "weight": normal(4, 3, 3, 2), "bias": normal(6), "residual": normal(2, 6, 14, 17)},
        {"stride": 2, "padding": 1, "output_padding": (1, 1), "groups": 2, "dilation": (1, 3), "activation": "tanh"},
    ),
    ("conv_transpose2d", {"input": X2, "weight": normal(4, 3, 2, 2)}, {"output_padding": (1, 0), "dilation": 2}),
    ("conv_transpose2d", {"input": X2, "weight": normal(4, 3, 3, 3)}, {"stride": 2, "padding": "same"}),
    ("conv_transpose3d", {"input": X3, "weight": normal(4, 3, 2, 2, 2), "bias": normal(3)}, {"stride": 2}),
    (
        "locally_connected2d",
        {"input": X2, "weight": normal(3, 4, 6, 4, 3, 2), "bias": BIAS, "residual": normal(2, 6, 3, 4)},
        {"stride": 2, "padding": ((0, 0), (1, 0)), "activation": "sigmoid"},
    ),
    ("locally_connected2d", {"input": X2, "weight": normal(5, 6, 6, 4, 3, 3), "bias": normal(5, 6, 6)}, {}),
    ("linear", {"input": normal(2, 3, 4), "weight": normal(5, 4), "bias": normal(5)}, {"activation": "tanh"}),
    ("unfold", {"input": X2}, {"kernel_size": (3, 2), "stride": 2, "padding": ((1, 0), (0, 1))}),
    ("fold", {"input": normal(2, 12, 12)}, {"output_size": (7, 8), "kernel_size": (3, 2), "stride": 2}),
    ("max_pool1d", {"input": X1}, {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max_pool2d", {"input": X2}, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool2d", {"input": X2}, {"kernel_size": (2, 3), "stride": 1, "dilation": 2}),
    ("max_pool3d", {"input": X3}, {"kernel_size": 2, "stride": 1}),
    ("avg_pool1d", {"input": X1}, {"kernel_size": 4, "divisor_override": 3}),
    ("avg_pool2d", {"input": X2}, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool2d", {"input": X2}, {"kernel_size": 3, "padding": ((1, 0), (0, 1)), "count_include_pad": False}),
    ("avg_pool3d", {"input": X3}, {"kernel_size": 2}),
    ("lp_pool1d", {"input": abs(X1) + 1}, {"norm_type": 3, "kernel_size": 3}),
    ("lp_pool2d", {"input": X2}, {"norm_type": 2, "kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("lp_pool3d", {"input": abs(X3) + 1}, {"norm_type": 1.5, "kernel_size": 2}),
    ("adaptive_avg_pool1d", {"input": X1}, {"output_size": 4}),
    ("adaptive_avg_pool2d", {"input": X2}, {"output_size": (3, None)}),
    ("adaptive_avg_pool3d", {"input": X3}, {"output_size": 2}),
    ("adaptive_max_pool1d", {"input": X1}, {"output_size": 4}),
    ("adaptive_max_pool2d", {"input": X2}, {"output_size": (3, 5)}),
    ("adaptive_max_pool3d", {"input": X3}, {"output_size": 2}),
    ("max_unpool1d", {"input": X1, "indices": np.arange(2 * 4 * 11).reshape(2, 4, 11) % 22}, {"kernel_size": 2}),
    ("max_unpool2d", {"input": X2, "indices": np.arange(2 * 4 * 56).reshape(X2.shape) % 224}, {"kernel_size": 2}),
    ("max_unpool3d", {"input": X3, "indices": np.arange(4 * 150).reshape(X3.shape)}, {"kernel_size": 2}),
]


def labels(cases: list[tuple[str, Any, dict[str, Any]]]) -> list[str]:
    return [f"{op}-{','.join(f'{k}={v}' for k, v in rest.items())}" for op, _, rest in cases]


@pytest.mark.parametrize(("op", "arrays", "arguments"), DIFFERENTIABLE, ids=labels(DIFFERENTIABLE))
def test_gradient_is_the_limit_of_differences(op, arrays, arguments):
    """Along a random direction, a central difference of width h is off by h^2 and by the roundings over h."""
    function = getattr(fc, op)
    y, pullback = fc.vjp(function, **arrays, **arguments)
    dy = normal(*y.shape, seed=1)
    gradients = [g for g in pullback(dy) if g is not None]
    names = [name for name in arrays if name != "indices"]
    width = EPSILON["float64"] ** (1 / 3)
    for name, gradient in zip(names, gradients, strict=True):
        a = arrays[name]
        along = normal(*a.shape, seed=2)

        def moved(by: float, name: str = name, along: Any = along, a: Any = a) -> Any:
            return function(**{**arrays, name: a + by * along}, **arguments)

        ahead, behind = moved(width), moved(-width)
        difference = inner(ahead - behind, dy) / (2 * width)
        size = inner(abs(ahead) + abs(behind), abs(dy)) + inner(abs(gradient), abs(along))
        assert inner(gradient, along) == pytest.approx(difference, rel=0, abs=ERROR_CONSTANT * width**2 * size), name
        assert gradient.any(), name


def test_every_op_is_differentiated():
    families = {op for op, _, _ in DIFFERENTIABLE}
    ops = {name for name in fc.__all__ if isfunction(getattr(fc, name)) and hasattr(getattr(fc, name), "lower")}
    assert families == ops


# ---------------------------------------------------------------------------------- grad, torch.nn.grad, again

SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
VARIANTS = [
    {},
    {"stride": 2},
    {"padding": 1, "stride": 3},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "stride": 2, "padding": 1},
]


def operands(ndim: int, groups: int = 1, **arguments: Any) -> tuple[Any, Any, Any]:
    x, w = integers(2, 4, *SIZES[ndim]), integers(6, 4 // groups, *(3, 2, 2)[:ndim])
    y = getattr(fc, f"conv{ndim}d")(x, w, groups=groups, **arguments)
    return x, w, integers(*y.shape, seed=1)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("ndim", SIZES)
def test_grad_functions_as_torch_nn_grad(ndim, arguments):
    x, w, dy = operands(ndim, **arguments)
    by_input, by_weight = (getattr(fc.grad, f"conv{ndim}d_{name}") for name in ("input", "weight"))
    torch_input, torch_weight = (getattr(torch.nn.grad, f"conv{ndim}d_{name}") for name in ("input", "weight"))
    tx, tw, tdy = map(torch.from_numpy, (x, w, dy))
    assert np.array_equal(by_input(x.shape, w, dy, **arguments), torch_input(tx.shape, tw, tdy, **arguments))
    assert np.array_equal(by_weight(x, w.shape, dy, **arguments), torch_weight(tx, tw.shape, tdy, **arguments))


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("ndim", SIZES)
def test_grad_functions_add_another_gradient(ndim, arguments):
    x, w, dy = operands(ndim, **arguments)
    function = getattr(fc.grad, f"conv{ndim}d_input")
    other = integers(*x.shape, seed=2)
    expected = function(x.shape, w, dy, **arguments) + other
    before = other.copy()
    assert np.array_equal(function(x.shape, w, dy, residual=other, **arguments), expected)
    assert np.array_equal(other, before)
    assert np.array_equal(function(x.shape, w, dy, residual=other, out=other, **arguments), expected)
    _, pullback = fc.vjp(function, x.shape, w, dy, residual=other, **arguments)
    assert np.array_equal(pullback(expected)[-1], expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_grad_functions_are_what_vjp_computes(mode):
    x, w = integers(2, 4, 9, 8), integers(6, 4, 3, 2)
    arguments = {"stride": 2, "padding": ((1, 2), (0, 1)), "padding_mode": mode}
    y, pullback = fc.vjp(fc.conv2d, x, w, **arguments)
    dy = integers(*y.shape, seed=1)
    dx, dw, db = pullback(dy)
    assert db is None
    assert np.array_equal(fc.grad.conv2d_input(x.shape, w, dy, **arguments), dx)
    assert np.array_equal(fc.grad.conv2d_weight(x, w.shape, dy, **arguments), dw)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("ndim", SIZES)
def test_second_derivatives_as_pytorch(ndim, arguments):
    x, w, dy = operands(ndim, **arguments)
    tx, tw, tdy = (torch.from_numpy(a).requires_grad_() for a in (x, w, dy))
    ty = getattr(torch.nn.functional, f"conv{ndim}d")(tx, tw, **arguments)
    tdx, tdw = torch.autograd.grad(ty, (tx, tw), tdy, create_graph=True)

    dx, pullback = fc.vjp(getattr(fc.grad, f"conv{ndim}d_input"), x.shape, w, dy, **arguments)
    t = integers(*dx.shape, seed=2)
    for got, wanted in zip(
        pullback(t), torch.autograd.grad(tdx, (tw, tdy), torch.from_numpy(t), retain_graph=True), strict=True
    ):
        assert np.array_equal(got, wanted)

    dw, pullback = fc.vjp(getattr(fc.grad, f"conv{ndim}d_weight"), x, w.shape, dy, **arguments)
    t = integers(*dw.shape, seed=2)
    for got, wanted in zip(
        pullback(t), torch.autograd.grad(tdw, (tx, tdy), torch.from_numpy(t), retain_graph=True), strict=True
    ):
        assert np.array_equal(got, wanted)


# ------------------------------------------------------------------------------------------------ the pullback


def test_pullback_gives_one_gradient_an_argument_in_order():
    x, w, b = integers(2, 3, 6, 6), integers(4, 3, 3, 3), integers(4)
    residual = integers(2, 4, 4, 4)
    y, pullback = fc.vjp(fc.conv2d, x, w, b, residual=residual)
    dy = integers(*y.shape, seed=1)
    gradients = pullback(dy)
    assert [g.shape for g in gradients] == [x.shape, w.shape, b.shape, residual.shape]
    assert np.array_equal(gradients[2], dy.sum((0, 2, 3)))
    assert np.array_equal(gradients[3], dy)
    assert not np.shares_memory(gradients[3], dy)


def test_pullback_gives_none_for_what_was_none_and_for_indices():
    x, w = integers(2, 3, 6, 6), integers(4, 3, 3, 3)
    y, pullback = fc.vjp(fc.conv2d, x, w)
    assert [g is None for g in pullback(y)] == [False, False, True]
    (y, indices), pullback = fc.vjp(fc.max_pool2d, x, 2, return_indices=True)
    assert [g.shape for g in pullback(y)] == [x.shape]
    z, pullback = fc.vjp(fc.max_unpool2d, y, indices, 2)
    dx, no_gradient = pullback(z)
    assert np.array_equal(dx, y)
    assert no_gradient is None


@pytest.mark.parametrize(("size", "kept"), [(181, np.int16), (182, np.int32)])
def test_indices_that_nobody_sees_are_narrow(size, kept):
    x = np.random.default_rng(0).permutation(size * size).reshape(1, 1, size, size).astype(np.float32)
    y, pullback = fc.vjp(fc.max_pool2d, x, 3, 2, 1)
    assert {a.dtype for a in pullback._saved.values()} == {np.dtype(kept)}
    (_, indices), wide = fc.vjp(fc.max_pool2d, x, 3, 2, 1, return_indices=True)
    assert indices.dtype == np.int64
    dy = np.random.default_rng(1).standard_normal(y.shape, np.float32)
    np.testing.assert_array_equal(pullback(dy)[0], wide(dy)[0])


def test_pullback_computes_only_what_is_asked_for():
    x, w, b = integers(2, 3, 6, 6), integers(4, 3, 3, 3), integers(4)
    y, pullback = fc.vjp(fc.conv2d, x, w, b)
    dx, dw, db = pullback(y)
    only = pullback(y, wrt=("weight", "bias"))
    assert only[0] is None
    assert np.array_equal(only[1], dw)
    assert np.array_equal(only[2], db)
    assert pullback(y, wrt=()) == (None, None, None)
    assert np.array_equal(pullback(y, wrt=["input"])[0], dx)


def test_pullback_can_be_called_again():
    x, w = integers(2, 3, 6, 6), integers(4, 3, 3, 3)
    y, pullback = fc.vjp(fc.conv2d, x, w, activation="tanh")
    first, second = pullback(y), pullback(2 * y)
    assert np.array_equal(2 * first[0], second[0])


def test_vjp_uses_the_backend_that_was_asked_for():
    x, w = integers(2, 3, 6, 6), integers(4, 3, 3, 3)
    y, pullback = fc.vjp(fc.conv2d, x, w, backend="reference")
    with fc.options(backend="naive"):  # the options at the time of the call hold, not those of the pullback
        dx, dw, _ = pullback(y)
    assert np.array_equal(dx, fc.grad.conv2d_input(x.shape, w, y, backend="reference"))
    assert np.array_equal(dw, fc.grad.conv2d_weight(x, w.shape, y, backend="reference"))


@pytest.mark.parametrize(
    ("grad_output", "options", "error", "message"),
    [
        (np.ones((2, 4, 4, 3)), {}, ValueError, "grad_output: expected the output's shape"),
        (np.ones((2, 4, 4)), {}, ValueError, "grad_output: expected the output's shape"),
        (np.ones((2, 4, 4, 4), np.float32), {}, TypeError, "grad_output: expected dtype float64"),
        (np.ones((2, 4, 4, 4), int), {}, TypeError, "grad_output: expected dtype float64"),
        (np.ones((2, 4, 4, 4)).astype(">f8"), {}, TypeError, "grad_output: expected dtype float64"),
        (torch.ones((2, 4, 4, 4), dtype=torch.float64), {}, TypeError, "grad_output: is a torch array"),
        (1.0, {}, TypeError, "grad_output: expected an array"),
        (None, {}, TypeError, "grad_output: expected an array"),
        (np.ones((2, 4, 4, 4)), {"wrt": ("residual",)}, ValueError, "wrt: expected names among input, weight, bias"),
        (np.ones((2, 4, 4, 4)), {"wrt": "weigth"}, ValueError, "wrt: "),
    ],
)
def test_pullback_refuses_other_gradients(grad_output, options, error, message):
    _, pullback = fc.vjp(fc.conv2d, integers(2, 3, 6, 6), integers(4, 3, 3, 3))
    with pytest.raises(error, match=message):
        pullback(grad_output, **options)


def test_vjp_refuses_what_is_no_op():
    with pytest.raises(TypeError, match="function: expected one of fastconv's ops"):
        fc.vjp(np.sum, np.ones(3))


def test_vjp_refuses_out_over_what_the_gradient_needs():
    x, w = integers(2, 3, 6, 6), integers(3, 3, 3, 3)
    with pytest.raises(ValueError, match="out: lies over input"):
        fc.vjp(fc.conv2d, x, w, padding=1, out=x)
    with pytest.raises(ValueError, match="out: lies over input"):
        fc.vjp(fc.lp_pool2d, x, 2, 1, out=x)


def test_vjp_writes_into_out_elsewhere():
    x, w, out = integers(2, 3, 6, 6), integers(3, 3, 3, 3), np.empty((2, 3, 6, 6))
    y, pullback = fc.vjp(fc.conv2d, x, w, padding=1, out=out)
    assert y is out
    assert np.array_equal(pullback(y)[0], fc.grad.conv2d_input(x.shape, w, y, padding=1))
    residual = integers(2, 3, 6, 6)
    expected = fc.conv2d(x, w, padding=1, residual=residual)
    y, pullback = fc.vjp(fc.conv2d, x, w, padding=1, residual=residual, out=residual)  # no gradient needs it
    assert y is residual
    assert np.array_equal(y, expected)
