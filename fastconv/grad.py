"""Gradients: `vjp` for every op, and the names of ``torch.nn.grad`` for those who port code.

A gradient is a problem like any other: of a convolution ``fprop`` with respect to x it is the ``dgrad``
problem, with respect to w the ``wgrad`` problem, and so on round. So whatever computes a direction also
serves as the derivative of another, and derivatives can be taken again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, NamedTuple

from fastconv import arguments, arrays, dispatch, repeat
from fastconv.algorithm import AnyProblem, Plan
from fastconv.arrays import Array
from fastconv.call import Call, execute, lowering_of, named_op
from fastconv.epilogue import activation_gradient
from fastconv.lowering import Common, Read, conv_problem, read_arrays
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.sizes import Sizes

_ARRAY_ARGUMENTS = ("input", "weight", "bias", "residual", "indices", "grad_output")


def vjp(
    function: Callable[..., Array], *args: Any, **kwargs: Any
) -> tuple[Array, Callable[..., tuple[Array | None, ...]]]:
    """Call an op, and return its result with a function that carries gradients back (vector-Jacobian product).

    Parameters
    ----------
    function : one of fastconv's ops
        `conv2d`, `max_pool2d`, ..., or one of `fastconv.grad`, whose derivatives are second derivatives.
    *args, **kwargs
        What the op takes.

    Returns
    -------
    y : array
        What the op returns (with ``return_indices`` the pair).
    pullback : callable
        ``pullback(grad_output)`` returns a tuple with a gradient for each array argument in the order of the
        op's signature, None for one that was None and for indices; the residual's comes last, if there is one.
        ``pullback(grad_output, wrt=("weight", "bias"))`` computes only those and returns None for the others;
        ``wrt`` may be a single name.
        It keeps the arrays it needs, not copies: do not overwrite them before.

    Raises
    ------
    TypeError, ValueError
        What the op raises; also if ``function`` is no op of fastconv, or ``out`` lies over an array that the
        gradient needs. The pullback raises them for a gradient of another kind, dtype or shape than y.

    Examples
    --------
    >>> y, pullback = fastconv.vjp(fastconv.conv2d, x, w, b, stride=2, padding=1)
    >>> dx, dw, db = pullback(dy)
    """
    lower = lowering_of(function)
    form = repeat.form((vjp, lower), args, kwargs)
    known = None if form is None else repeat.find(form)
    if known is not None:
        return known.run(args, kwargs)  # type: ignore[no-any-return]
    call = lower(*args, **kwargs)
    hidden_indices = isinstance(call.problem, PoolProblem) and call.problem.is_max and not call.problem.return_indices
    if hidden_indices:
        call = _keeping_indices(call)
    _check_out(call)
    outputs = call.compute()
    y = call.finish(outputs[:1] if hidden_indices else outputs)
    names = tuple(n for n in _array_arguments(function) if n in call.inputs or n != "residual")
    rule = _Rule(call, names)
    if form is not None:
        call.remember(form, lower, args, kwargs, lambda again: _Known(again, rule, hidden_indices))
    return y, _Pullback(rule, tuple(call.inputs.values()), outputs)


def _keeping_indices(call: Call) -> Call:
    """Return a max pool's call that also writes indices, as narrow as may be: what nobody else sees should be small."""
    call = call.with_problem(return_indices=True)
    assert isinstance(call.problem, PoolProblem)
    # The kernels of a GPU know one kind.
    return call.with_problem(index_dtype=call.problem.index_dtypes[-1]) if call.problem.device == "cpu" else call


class _Known(NamedTuple):
    """A call of `vjp` that is made again."""

    again: repeat.Repeat
    rule: _Rule
    hidden_indices: bool

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, _Pullback]:
        inputs, outputs = self.again(args, kwargs)
        y = outputs[0] if self.hidden_indices or len(outputs) == 1 else outputs
        return y, _Pullback(self.rule, inputs, outputs)


@lru_cache(maxsize=128)
def _array_arguments(function: Any) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name in _ARRAY_ARGUMENTS)


def _check_out(call: Call) -> None:
    if call.out is None:
        return
    out = arrays.read("out", call.out)[0]
    kept = _kept(call.problem)
    for (name, array), operand in zip(call.inputs.items(), call.problem.inputs, strict=True):
        if operand.name in kept and arrays.may_overlap(out, array):
            raise ValueError(f"out: lies over {name}, which the gradient needs")


class _Rule:
    """What is known of a derivative before there are arrays."""

    def __init__(self, call: Call, names: tuple[str, ...]) -> None:
        self.problem = problem = call.problem
        roles = [operand.name for operand in (*problem.inputs, *problem.outputs)]
        self.role_of = dict(zip(call.inputs, roles, strict=False))
        self.kept = [(role, roles.index(role)) for role in _kept(problem)]
        self.names, self.shapes, self.shape = names, call.shapes, call.shape
        self.kind, self.options = call.kind, call.options
        # Of what generation of choices these are, and by role what was worked out: together, as threads swap both.
        self._derivatives: tuple[int, dict[str, tuple[_Derivative, Plan | None]]] = dispatch.generation(), {}

    def derivative(self, role: str) -> tuple[_Derivative, Plan | None]:
        """Return how the gradient for an input is computed, and by which plan; none if the batch is empty."""
        generation, kept = self._derivatives
        if generation != dispatch.generation():
            _, kept = self._derivatives = dispatch.generation(), {}
        known = kept.get(role)
        if known is None:
            derivative = _derivative(self.problem, role)
            problem = derivative.problem
            plan = dispatch.plan_for(problem, self.options, self.kind.gpu) if problem.n else None
            known = kept[role] = derivative, plan
        return known


class _Pullback:
    """Carries a gradient from an op's result to its arguments; keeps what that needs and no more."""

    def __init__(self, rule: _Rule, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        given = inputs + outputs
        self._rule = rule
        self._saved = {role: given[index] for role, index in rule.kept}

    def __call__(self, grad_output: Array, wrt: str | Collection[str] | None = None) -> tuple[Array | None, ...]:
        rule = self._rule
        wanted = rule.names if wrt is None else _wanted(wrt, rule.names)
        grad = arrays.read_as("grad_output", grad_output, rule.kind, "input")
        expected = rule.problem.outputs[0]
        if grad.shape != rule.shape:
            raise ValueError(f"grad_output: expected the output's shape {rule.shape}, got {grad.shape}")
        arrays.check_dtype("grad_output", grad, expected.dtype)
        with arrays.at(grad):
            grad = arrays.shaped(grad, expected.shape)
            if isinstance(rule.problem, ConvProblem):
                grad = activation_gradient(rule.problem.activation, grad, self._saved.get(expected.name))
            return tuple([self._gradient(name, grad) if name in wanted else None for name in rule.names])

    def _gradient(self, name: str, grad: Any) -> Any:
        rule = self._rule
        role = rule.role_of.get(name)
        if role is None or role == "indices":
            return None
        if role == "residual":
            result = grad.copy()  # the caller may change what it is given
        else:
            derivative, plan = rule.derivative(role)
            inputs = tuple([grad if kept is None else self._saved[kept] for kept in derivative.roles])
            (result,) = execute(derivative.problem, inputs, rule.options, derivative.outputs(grad), plan)
        return rule.kind.give_back(arrays.shaped(result, rule.shapes[name]))


def _wanted(wrt: Any, names: tuple[str, ...]) -> Collection[str]:
    """Return the arguments whose gradients are asked for."""
    wanted = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(wanted, Collection):
        raise TypeError(f"wrt: expected a name or several, got {wrt!r}")
    for name in wanted:
        if name not in names:
            raise ValueError(f"wrt: expected names among {', '.join(names)}, got {name!r}")
    return wanted


def _kept(problem: AnyProblem) -> tuple[str, ...]:
    """Return the roles of the arrays that the derivatives of a problem need."""
    if isinstance(problem, PoolProblem):
        if problem.direction == "dgrad":
            return ()
        if problem.is_max or problem.kind == "max_unpool":
            return ("indices",)
        return ("x", "y") if problem.kind == "lp_pool" else ()
    factors = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[problem.direction]
    return factors if problem.activation is None else (*factors, problem.outputs[0].name)


class _Derivative(NamedTuple):
    """How the gradient for one input is computed."""

    problem: AnyProblem
    #: Of what was kept, that problem's inputs; None for the gradient that is carried back.
    roles: tuple[str | None, ...]
    #: Makes its outputs, like an array.
    outputs: Callable[[Any], tuple[Any, ...]]


# To work this out takes longer than to differentiate a small layer.
@lru_cache(maxsize=4096)
def _derivative(problem: AnyProblem, role: str) -> _Derivative:
    derivative = _derivative_problem(problem, role)
    roles: tuple[str | None, ...]
    if isinstance(problem, PoolProblem):
        roles = None, *_kept(problem)
    elif role == "bias":
        roles = (None,)
    else:
        # The sum of x * w * dy over all windows is linear in each: leave one out, and the rest is its gradient.
        carried = {"fprop": "dy", "dgrad": "x", "wgrad": "w"}[problem.direction]
        roles = tuple(None if operand.name == carried else operand.name for operand in derivative.inputs)
    return _Derivative(derivative, roles, repeat.new_outputs(derivative))


def _derivative_problem(problem: AnyProblem, role: str) -> AnyProblem:
    if isinstance(problem, PoolProblem):
        back = {"fprop": "dgrad", "dgrad": "fprop"}[problem.direction]
        pool: PoolProblem = problem.replace(direction=back, return_indices=False)
        return pool
    if role == "bias":
        return _bias_problem(problem)
    direction = {"x": "dgrad", "w": "wgrad", "dy": "fprop"}[role]
    conv: ConvProblem = problem.replace(
        direction=direction, bias="none", activation=None, residual=False, prepacked=False
    )
    return conv


def _bias_problem(problem: ConvProblem) -> ConvProblem:
    if problem.direction == "fprop":
        bgrad: ConvProblem = problem.replace(direction="bgrad", activation=None, residual=False, prepacked=False)
        return bgrad
    # The bias of a transposed convolution lies along dx: the sum is that of a 1x1 convolution with such an output.
    ndim, channels = problem.ndim, problem.ic
    summed: ConvProblem = problem.replace(
        direction="bgrad",
        ic=channels,
        oc=channels,
        groups=1,
        kernel_size=(1,) * ndim,
        stride=(1,) * ndim,
        dilation=(1,) * ndim,
        padding=((0, 0),) * ndim,
        activation=None,
        residual=False,
        prepacked=False,
    )
    return summed


def _gradient_problem(
    ndim: int,
    direction: str,
    shapes: dict[str, Sizes],
    read: Read,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
) -> ConvProblem:
    (_, x_shape), (weight_name, w_shape) = shapes.items()
    for name, shape in shapes.items():
        if len(shape) != ndim + 2:
            raise ValueError(f"{name}: expected {ndim + 2} sizes, got {shape}")
    grad_output = read.arrays["grad_output"]
    problem = conv_problem(
        f"conv{ndim}d",
        direction,
        x_shape,
        w_shape[0],
        w_shape[2:],
        arguments.hashable("stride", stride),
        arguments.hashable("padding", padding),
        arguments.hashable("dilation", dilation),
        arguments.integer("groups", groups, 1),
        padding_mode=arguments.word("padding_mode", padding_mode),
        dtype=read.dtype,
        layout=arrays.layout_of(grad_output),
        device=read.kind.device,
        residual="residual" in read.arrays,
    )
    if w_shape != problem.w_shape:
        raise ValueError(f"{weight_name}: expected shape {problem.w_shape} with {groups} groups, got {w_shape}")
    if grad_output.shape != problem.y_shape:
        raise ValueError(f"grad_output: expected shape {problem.y_shape}, got {grad_output.shape}")
    return problem


def _make_input(ndim: int) -> Callable[..., Array]:
    def conv_input(
        input_size: Any,
        weight: Array,
        grad_output: Array,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        residual: Array | None = None,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        read = read_arrays(weight=weight, grad_output=grad_output, residual=residual)
        w, dy, *added = read.arrays.values()
        shapes = {"input_size": arguments.shape("input_size", input_size), "weight": w.shape}
        problem = _gradient_problem(ndim, "dgrad", shapes, read, stride, padding, dilation, groups, padding_mode)
        inputs = {"grad_output": dy, "weight": w}
        for array in added:
            if array.shape != problem.x_shape:
                raise ValueError(f"residual: expected the input's shape {problem.x_shape}, got {array.shape}")
            inputs["residual"] = array
        return Common(out, backend, algorithm).call(problem, inputs, read, problem.x_shape)

    return named_op(conv_input, f"conv{ndim}d_input", _INPUT_DOC, ndim)


def _make_weight(ndim: int) -> Callable[..., Array]:
    def conv_weight(
        input: Array,
        weight_size: Any,
        grad_output: Array,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        read = read_arrays(input=input, grad_output=grad_output)
        x = read.arrays["input"]
        shapes = {"input": x.shape, "weight_size": arguments.shape("weight_size", weight_size)}
        problem = _gradient_problem(ndim, "wgrad", shapes, read, stride, padding, dilation, groups, padding_mode)
        return Common(out, backend, algorithm).call(problem, read.arrays, read, problem.w_shape)

    return named_op(conv_weight, f"conv{ndim}d_weight", _WEIGHT_DOC, ndim)


_REST_DOC = """
    grad_output : array, shape (N, K, output)
    stride, padding, dilation, groups, padding_mode, out, backend, algorithm
        As in `conv{ndim}d`.{more}

    Returns
    -------
    array, shape {result}

    Raises
    ------
    TypeError, ValueError
        As in `conv{ndim}d`."""

_INPUT_DOC = """Return the gradient of `conv{ndim}d` with respect to its input.

    Parameters
    ----------
    input_size : tuple of int
        The input's whole shape, (N, C, {axes}).
    weight : array, shape (K, C / groups, {kernel})""" + _REST_DOC.replace("{result}", "``input_size``").replace(
    "{more}",
    """
    residual : array, shape (N, C, {axes}), optional
        Another gradient of the same input, which is added.""",
)

_WEIGHT_DOC = """Return the gradient of `conv{ndim}d` with respect to its weight.

    Parameters
    ----------
    input : array, shape (N, C, {axes})
    weight_size : tuple of int
        The weight's whole shape, (K, C / groups, {kernel}).""" + _REST_DOC.replace(
    "{result}", "``weight_size``"
).replace("{more}", "")

conv1d_input, conv2d_input, conv3d_input = map(_make_input, (1, 2, 3))
conv1d_weight, conv2d_weight, conv3d_weight = map(_make_weight, (1, 2, 3))
