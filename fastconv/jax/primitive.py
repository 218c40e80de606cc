"""The primitive: a fastconv problem as an operation of JAX's, with what its transformations need.

A primitive of its own rather than `jax.custom_vjp`: convolutions are bilinear, so they have derivatives of either mode
and of any order, and a batch of them is a larger convolution.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import mlir

from fastconv import dispatch
from fastconv.algorithm import AnyProblem
from fastconv.jax import handler
from fastconv.jax.stored import Stored
from fastconv.options import Options
from fastconv.record import Operand

run_p = Primitive("fastconv")
run_p.multiple_results = True


def run(problem: AnyProblem, options: Options, *inputs: Any, stored: Stored | None = None) -> list[Any]:
    """Return the outputs of a problem, traced or computed; `fastconv.algorithm` has the table of inputs.

    A weight among the inputs comes as it is ``stored``, if that is given.
    """
    if problem.n == 0:
        return [jnp.zeros(o.shape, handler.dtype_in_jax(o)) for o in problem.outputs]
    if options.backend or options.algorithm or options.strict or options.deterministic:
        dispatch.plan_for(problem, options)  # nothing may be allowed: to say so now, JAX can still do without
    return list(run_p.bind(*inputs, problem=problem, options=options, stored=stored))


@run_p.def_impl
def _now(*inputs: Any, **parameters: Any) -> Any:
    return _compiled(*inputs, **parameters)


@partial(jax.jit, static_argnames=("problem", "options", "stored"))
def _compiled(*inputs: Any, **parameters: Any) -> list[Any]:
    return list(run_p.bind(*inputs, **parameters))


@run_p.def_abstract_eval
def _abstract(*inputs: Any, problem: AnyProblem, options: Options, stored: Stored | None) -> list[Any]:
    for array, operand in zip(inputs, problem.inputs, strict=True):
        expected, shape = handler.dtype_in_jax(operand), operand.shape
        if stored is not None and operand.name == "w":
            shape = stored.shape(shape)
        if array.shape != shape or array.dtype != expected:
            raise TypeError(f"{operand.name}: expected {expected}{list(shape)}, got {array}")
    return [_aval(operand) for operand in problem.outputs]


def _aval(operand: Operand) -> Any:
    return jax.core.ShapedArray(operand.shape, handler.dtype_in_jax(operand))


def _lower(ctx: Any, *inputs: Any, problem: AnyProblem, options: Options, stored: Stored | None) -> Any:
    text = handler.describe(problem, options, stored)
    handler.prepare(text)
    call = _call if handler.register() else _call_back
    through = partial(_through, call, problem, text, stored is not None)
    return mlir.lower_fun(through, multiple_results=True)(ctx, *inputs)


mlir.register_lowering(run_p, _lower, platform="cpu")


def _through(call: Any, problem: AnyProblem, text: str, is_stored: bool, *inputs: Any) -> list[Any]:
    """Call with arrays whose last axis is innermost in memory, whatever the problem's order is.

    XLA drops transposes that come to nothing, but it copies where a call asks for memory in another order.
    """
    orders = [handler.order_in_memory(o, problem.layout) for o in (*problem.inputs, *problem.outputs)]
    given = [
        x if is_stored and o.name == "w" else x.transpose(order)
        for x, o, order in zip(inputs, problem.inputs, orders, strict=False)
    ]
    wanted = [
        jax.ShapeDtypeStruct([o.shape[axis] for axis in order], handler.dtype_in_jax(o))
        for o, order in zip(problem.outputs, orders[len(inputs) :], strict=True)
    ]
    outputs = call(text, wanted, *given)
    return [y.transpose(np.argsort(order)) for y, order in zip(outputs, orders[len(inputs) :], strict=True)]


def _call(text: str, wanted: Any, *inputs: Any) -> Any:
    return jax.ffi.ffi_call(handler.TARGET, wanted)(*inputs, problem=text)


def _call_back(text: str, wanted: Any, *inputs: Any) -> Any:
    """Compute through a callback of JAX's: the road where XLA's interface is not known.

    `jax.pure_callback` will not do: it makes JAX arrays of what it hands over, and to read these can wait for a thread
    that waits for the callback.
    """
    return buffer_callback(partial(_compute, text), wanted)(*inputs)


def _compute(text: str, context: Any, outputs: Any, *inputs: Any) -> None:
    given = [np.ascontiguousarray(buffer) for buffer in inputs]
    made = [np.empty(buffer.shape, buffer.dtype) for buffer in outputs]
    handler.compute(text.encode(), [a.ctypes.data for a in given], [a.ctypes.data for a in made])
    for array, buffer in zip(made, outputs, strict=True):
        np.asarray(buffer)[...] = array
