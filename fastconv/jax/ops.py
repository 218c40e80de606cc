"""fastconv's ops on JAX arrays: the arguments are read by the same lowerings, the problem goes to the primitive."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastconv import columns, ops, pooling
from fastconv.call import lowering_of
from fastconv.jax.primitive import run

_ARRAYS = ("input", "weight", "bias", "residual", "indices")


def _op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the op of JAX arrays that an op of NumPy arrays stands for."""
    signature = inspect.signature(function)
    lower = lowering_of(function)

    @functools.wraps(function)
    def on_jax(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        if arguments.get("out") is not None:
            raise TypeError("out: a JAX array cannot be written to")
        given = {name: jnp.asarray(arguments[name]) for name in _ARRAYS if arguments.get(name) is not None}
        call = lower(**arguments | {name: _stand_in(name, array) for name, array in given.items()})
        shaped = [
            given[name].reshape(operand.shape) for name, operand in zip(call.inputs, call.problem.inputs, strict=True)
        ]
        if "indices" in given:
            shaped[-1] = shaped[-1].astype(jnp.int32)
        outputs = [array.reshape(call.shape) for array in run(call.problem, call.options, *shaped)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    vars(on_jax).pop("lower")  # fastconv.vjp and the like take arrays that are there
    on_jax.__module__ = "fastconv.jax"
    return on_jax


def _stand_in(name: str, array: jax.Array) -> Any:
    """Return a NumPy array of a JAX array's form and of no size in memory: nobody reads it."""
    if name == "indices":
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"indices: expected integers, got {array.dtype}")
        return np.broadcast_to(np.zeros((), np.int64), array.shape)
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


conv1d, conv2d, conv3d = map(_op, (ops.conv1d, ops.conv2d, ops.conv3d))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(
    _op, (ops.conv_transpose1d, ops.conv_transpose2d, ops.conv_transpose3d)
)
locally_connected2d, linear = _op(ops.locally_connected2d), _op(ops.linear)
unfold, fold = _op(columns.unfold), _op(columns.fold)
max_pool1d, max_pool2d, max_pool3d = map(_op, (pooling.max_pool1d, pooling.max_pool2d, pooling.max_pool3d))
avg_pool1d, avg_pool2d, avg_pool3d = map(_op, (pooling.avg_pool1d, pooling.avg_pool2d, pooling.avg_pool3d))
lp_pool1d, lp_pool2d, lp_pool3d = map(_op, (pooling.lp_pool1d, pooling.lp_pool2d, pooling.lp_pool3d))
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(
    _op, (pooling.adaptive_avg_pool1d, pooling.adaptive_avg_pool2d, pooling.adaptive_avg_pool3d)
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(
    _op, (pooling.adaptive_max_pool1d, pooling.adaptive_max_pool2d, pooling.adaptive_max_pool3d)
)
max_unpool1d, max_unpool2d, max_unpool3d = map(_op, (pooling.max_unpool1d, pooling.max_unpool2d, pooling.max_unpool3d))
