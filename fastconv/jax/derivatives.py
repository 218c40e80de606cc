"""Derivatives of the primitive, forward (jvp) and backward (transpose).

A plain convolution is a sum of products ``x * w * dy`` that leaves one of the three out, so it is linear in each of
its two inputs, and the transpose with respect to one is the same sum that leaves that one out. Linear pools have their
other direction as transpose. Max and Lp pools are linear at a point: `push_p` is that linear map, from a tangent of x
to one of y, and the pool's ``dgrad`` is its transpose.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from fastconv.epilogue import LEAKY_SLOPE
from fastconv.jax.primitive import run, run_p
from fastconv.jax.stored import Stored
from fastconv.options import Options
from fastconv.problem import ConvProblem, PoolProblem

push_p = Primitive("fastconv_push")
"""A tangent of x through a pool. Its problem is the pool's ``dgrad``; what that needs beside dy comes second."""

# A sum of products leaves out what it computes.
_DIRECTIONS = {"dy": "fprop", "x": "dgrad", "w": "wgrad"}
_ROLES = {direction: role for role, direction in _DIRECTIONS.items()}

# From the output, as in `fastconv.epilogue`.
_SLOPES = {
    "relu": lambda y: ~(y <= 0),
    "leaky_relu": lambda y: jnp.where(y > 0, 1, LEAKY_SLOPE),
    "relu6": lambda y: ~((y <= 0) | (y >= 6)),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero)


def _zero(primal: Any) -> Any:
    """Return the symbolic zero among the tangents of an output."""
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def _sum(terms: list[Any], like: Any) -> Any:
    """Return the sum of an output's tangents; a symbolic zero if there are none."""
    if not terms:
        return _zero(like)
    total, *rest = terms
    for term in rest:
        total = total + term
    return total


def _bends(problem: PoolProblem) -> bool:
    """Whether a pool's forward pass is linear at a point alone."""
    return problem.is_max or problem.kind == "lp_pool"


def _jvp(primals: Any, tangents: Any, *, problem: Any, options: Options, stored: Stored | None) -> tuple[Any, Any]:
    if isinstance(problem, ConvProblem):
        outputs, tangent = _jvp_conv(primals, tangents, problem, options, stored)
    else:
        outputs, tangent = _jvp_pool(primals, tangents, problem, options)
    return outputs, [tangent, *map(_zero, outputs[1:])]


def _jvp_conv(
    primals: Any, tangents: Any, problem: ConvProblem, options: Options, stored: Stored | None
) -> tuple[list[Any], Any]:
    (result,) = run(problem, options, *primals, stored=stored)
    plain = problem.replace(bias="none", activation=None, residual=False)
    terms = []
    for place, (operand, tangent) in enumerate(zip(problem.inputs, tangents, strict=True)):
        if _is_zero(tangent):
            continue
        if operand.name == "residual":
            terms.append(tangent)
        elif operand.name == "bias":
            terms.append(jnp.broadcast_to(_bias_view(problem, tangent), result.shape))
        else:
            factors = list(primals[:2])
            factors[place] = tangent
            terms += run(plain, options, *factors, stored=stored)
    total = _sum(terms, result)
    if problem.activation is None or _is_zero(total):
        return [result], total
    wide = jnp.promote_types(result.dtype, jnp.float32)
    slope = _SLOPES[problem.activation](result.astype(wide))
    return [result], (total.astype(wide) * slope).astype(result.dtype)


def _bias_view(problem: ConvProblem, bias: Any) -> Any:
    """Return a bias shaped so that it broadcasts over the result."""
    if problem.op == "linear":
        return bias
    return jnp.moveaxis(bias, -1, 0) if problem.bias == "position" else bias.reshape(-1, *(1,) * problem.ndim)


def _jvp_pool(primals: Any, tangents: Any, problem: PoolProblem, options: Options) -> tuple[list[Any], Any]:
    saved = primals[1:]
    bends = problem.direction == "fprop" and _bends(problem)
    if bends and problem.is_max:
        asked, problem = problem.return_indices, problem.replace(return_indices=True)
        if not asked:  # nobody sees them: as few bytes as may be
            problem = problem.replace(index_dtype=problem.index_dtypes[-1])
        y, indices = run(problem, options, *primals)
        outputs, saved = ([y, indices] if asked else [y]), (indices,)
    else:
        outputs = run(problem, options, *primals)
        saved = (primals[0], outputs[0]) if bends else saved
    terms = []
    if not _is_zero(tangents[0]):
        if bends:
            backward = problem.replace(direction="dgrad", return_indices=False)
            terms.append(push_p.bind(tangents[0], *saved, problem=backward, options=options))
        else:
            terms += run(problem, options, tangents[0], *saved)
    if problem.kind == "lp_pool" and not bends:
        terms += _along_saved(_lp_dgrad, primals, tangents, problem, options)
    return outputs, _sum(terms, outputs[0])


def _transpose(cotangents: Any, *inputs: Any, problem: Any, options: Options, stored: Stored | None) -> list[Any]:
    (place,) = (i for i, value in enumerate(inputs) if ad.is_undefined_primal(value))
    result: list[Any] = [None] * len(inputs)
    cotangent = cotangents[0]
    if _is_zero(cotangent):
        result[place] = ad.Zero(inputs[place].aval)
    elif isinstance(problem, ConvProblem):
        roles = [operand.name for operand in problem.inputs]
        factors = dict(zip(roles, inputs, strict=True)) | {_ROLES[problem.direction]: cotangent}
        other = problem.replace(direction=_DIRECTIONS[roles[place]])
        given, of_weight = [factors[operand.name] for operand in other.inputs], roles[place] == "w"
        (found,) = run(other, options, *given, stored=None if of_weight else stored)
        result[place] = stored.store(found) if of_weight and stored is not None else found
    elif problem.direction == "dgrad" and _bends(problem):
        result[place] = push_p.bind(cotangent, *inputs[1:], problem=problem, options=options)
    else:
        turned = problem.replace(direction="dgrad" if problem.direction == "fprop" else "fprop")
        (result[place],) = run(turned, options, cotangent, *inputs[1:])
    return result


ad.primitive_jvps[run_p] = _jvp
ad.primitive_transposes[run_p] = _transpose


def _push(tangent: Any, *saved: Any, problem: PoolProblem, options: Options) -> Any:
    """Compute what `push_p` stands for."""
    if problem.kind == "lp_pool":
        x, y = saved
        power = problem.norm_type
        mean = _mean(problem, options, x ** (power - 1) * tangent, "fprop")
        # Of what is not taken there must be a derivative, too.
        root = jnp.where(y == 0, 1, y)
        return jnp.where(y == 0, 0, mean * math.prod(problem.kernel_size) * root ** (1 - power))
    (indices,) = saved
    # To take elements by their indices is what an unpool's gradient does.
    gather = PoolProblem(
        op=f"max_unpool{problem.ndim}d",
        direction="dgrad",
        n=problem.n,
        c=problem.c,
        input_size=problem.output_size,
        output_size=problem.input_size,
        dtype=problem.dtype,
        layout=problem.layout,
    )
    (taken,) = run(gather, options, tangent, jnp.maximum(indices, 0).astype(jnp.int32))
    return jnp.where(indices < 0, 0, taken)  # a window wholly in the padding takes nothing


def _lp_dgrad(dy: Any, x: Any, y: Any, *, problem: PoolProblem, options: Options) -> Any:
    """Compute the ``dgrad`` of an Lp pool from operations that have derivatives by x and y."""
    power = problem.norm_type
    zero = y == 0
    share = dy * math.prod(problem.kernel_size) * jnp.where(zero, 1, y) ** (1 - power)
    return _mean(problem, options, jnp.where(zero, 0, share), "dgrad") * x ** (power - 1)


def _mean(problem: PoolProblem, options: Options, array: Any, direction: str) -> Any:
    """Return the average pool with the windows of an Lp pool, or its gradient."""
    mean = problem.replace(op=f"avg_pool{problem.ndim}d", direction=direction, norm_type=2.0)
    return run(mean, options, array)[0]


def _along_saved(function: Any, primals: Any, tangents: Any, problem: PoolProblem, options: Options) -> list[Any]:
    """Return the derivative of a function of (array, x, y) along tangents of x and y, if there are any."""
    first, *saved = primals
    if all(map(_is_zero, tangents[1:])):
        return []
    given = [jnp.zeros_like(p) if _is_zero(t) else t for p, t in zip(saved, tangents[1:], strict=True)]
    _, tangent = jax.jvp(lambda *saved: function(first, *saved, problem=problem, options=options), saved, given)
    return [tangent]


@push_p.def_abstract_eval
def _push_abstract(tangent: Any, *saved: Any, problem: PoolProblem, options: Options) -> Any:
    return jax.core.ShapedArray(problem.y_shape, tangent.dtype)


def _push_jvp(primals: Any, tangents: Any, *, problem: PoolProblem, options: Options) -> tuple[Any, Any]:
    result = push_p.bind(*primals, problem=problem, options=options)
    terms = []
    if not _is_zero(tangents[0]):
        terms.append(push_p.bind(tangents[0], *primals[1:], problem=problem, options=options))
    if problem.kind == "lp_pool":
        terms += _along_saved(_push, primals, tangents, problem, options)
    return result, _sum(terms, result)


def _push_transpose(cotangent: Any, *inputs: Any, problem: PoolProblem, options: Options) -> list[Any]:
    others = [None] * (len(inputs) - 1)
    if _is_zero(cotangent):
        return [ad.Zero(inputs[0].aval), *others]
    return [*run(problem, options, cotangent, *inputs[1:]), *others]


push_p.def_impl(jax.jit(_push, static_argnames=("problem", "options")))
mlir.register_lowering(push_p, mlir.lower_fun(_push, multiple_results=False))
ad.primitive_jvps[push_p] = _push_jvp
ad.primitive_transposes[push_p] = _push_transpose
