"""The operators behind pools, unfold and fold. Each pool's gradient is an operator of its own, its adjoint.

``padding`` is one number an axis here, as PyTorch's pools have it.
"""

from __future__ import annotations

import math
from copy import copy
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from fastconv import arrays, columns, pooling
from fastconv.call import execute
from fastconv.options import current
from fastconv.problem import INDEX_DTYPES, PoolProblem
from fastconv.sizes import pool_output_size
from fastconv.torch.core import LIBRARY, Core, direct, folded
from fastconv.torch.tensors import Tensor, array, empty_map, run, tensor


class _Kind(NamedTuple):
    """A kind of pool, in one direction; ``fields`` are the names of what its operator is given beside tensors."""

    name: str
    direction: Literal["fprop", "dgrad"]
    fields: tuple[str, ...]


# Of what dtype nobody sees that indices are.
_NARROW = "as narrow as may be"
_SIZED = ("output_size",)
_WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_MAX_POOL, _MAX_POOL_INPUT = _Kind("max_pool", "fprop", _WINDOW), _Kind("max_pool", "dgrad", _WINDOW)
_ADAPTIVE_MAX = _Kind("adaptive_max_pool", "fprop", _SIZED)
_ADAPTIVE_MAX_INPUT = _Kind("adaptive_max_pool", "dgrad", _SIZED)
_MAX_UNPOOL = _Kind("max_unpool", "fprop", _SIZED)
_AVG_POOL_INPUT = _Kind(
    "avg_pool", "dgrad", ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
)
_ADAPTIVE_AVG_INPUT = _Kind("adaptive_avg_pool", "dgrad", _SIZED)


@lru_cache(maxsize=4096)
def _problem(
    kind: _Kind, args: tuple[Any, ...], outer: Any, size: Any, dtype: Any, layout: str, indices: Any
) -> PoolProblem:
    """Return a pool's problem; ``indices`` is their dtype, None if it has none, `_NARROW` for the narrowest."""
    fields = dict(zip(kind.fields, args, strict=True))
    if "padding" in fields:
        fields["padding"] = _padded(fields["padding"])
    if indices is not None and kind.direction == "fprop":
        fields["return_indices"] = True
    n, c = outer
    problem = PoolProblem(
        op=f"{kind.name}{len(size)}d",
        direction=kind.direction,
        n=n,
        c=c,
        input_size=size,
        dtype=dtype.name,
        layout=layout,
        **fields,
    )
    if indices is None:
        return problem
    return problem.replace(index_dtype=problem.index_dtypes[-1] if indices is _NARROW else np.dtype(indices).name)


def _solve(
    kind: _Kind, inputs: tuple[Any, ...], size: Any, args: tuple[Any, ...], indices: Any = None
) -> tuple[Any, ...]:
    """Return the outputs of a pool whose input is of a size; ``indices`` as `_problem` takes it."""
    first = inputs[0]
    plain = tuple([tuple(a) if isinstance(a, (list, torch.Size)) else a for a in args])
    problem = _problem(kind, plain, first.shape[:2], tuple(size), first.dtype, arrays.layout_of(first), indices)
    if kind.direction == "dgrad" and first.shape != problem.y_shape:
        raise ValueError(f"grad_output: expected shape {problem.y_shape}, got {first.shape}")
    outputs: tuple[Any, ...] = run(lambda: execute(problem, inputs, current()))
    return outputs


def _padded(padding: Any) -> Any:
    return tuple((p, p) for p in padding)


def pooled(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> list[Any]:
    """Return a pool's output size."""
    each = zip(size, kernel, stride, dilation, _padded(padding), strict=True)
    return [pool_output_size(i, k, s, d, p, ceil_mode) for i, k, s, d, p in each]


class _Window(Core):
    """An operator on maps that treats every image and channel alike."""

    # Whether autocast computes it in float32: what PyTorch says of its own.
    wide: ClassVar[tuple[int, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        if self.wide:
            LIBRARY.impl(self.name, self.autocast, "AutocastCPU")

    def autocast(self, x: Tensor, *args: Any) -> Any:
        """Compute in float32 where PyTorch does."""
        if x.dim() - 2 in self.wide and x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return self.op(x, *args)

    def vmap(self, info: Any, dims: Any, *args: Any) -> Any:
        size = info.batch_size
        maps = [folded(t, dim, size) for t, dim in zip(args[: self.tensors], dims, strict=False)]
        result = self(*maps, *args[self.tensors :])
        if isinstance(result, tuple):
            return tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in result), (0,) * len(result)
        return result.unflatten(0, (size, result.shape[0] // size)), 0


class _Linear(_Window):
    """A linear operator; `adjoint` takes the gradient of its result, the input's size, and the same arguments."""

    adjoint: _Adjoint

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        x, *ctx.args = inputs
        ctx.size = x.shape[2:]

    def backward(self, ctx: Any, g: Tensor) -> Any:
        return self.adjoint(g, ctx.size, *ctx.args), *(None,) * len(ctx.args)


class _Adjoint(_Window):
    """The adjoint of a linear operator, whose own is the operator again."""

    forward: _Linear

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        _, _, *ctx.args = inputs

    def backward(self, ctx: Any, g: Tensor) -> Any:
        return self.forward(g, *ctx.args), *(None,) * (len(ctx.args) + 1)

    def fake(self, dy: Tensor, size: Any, *args: Any) -> Tensor:
        return empty_map(dy, (*dy.shape[:2], *size))


_AVG = "SymInt[] kernel, SymInt[] stride, SymInt[] padding, bool ceil_mode, bool count_include_pad, SymInt? divisor"


class _AvgPool(_Linear):
    schema = f"avg_pool(Tensor input, {_AVG}) -> Tensor"
    wide = (3,)

    def compute(self, x: Tensor, kernel: Any, stride: Any, padding: Any, *rest: Any) -> Tensor:
        return tensor(run(_AVG_POOL[len(kernel)], array(x), *map(tuple, (kernel, stride, padding)), *rest))

    def fake(self, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, *rest: Any) -> Tensor:
        size = pooled(x.shape[2:], kernel, stride, padding, [1] * len(kernel), ceil_mode)
        return empty_map(x, (*x.shape[:2], *size))


class _AvgPoolInput(_Adjoint):
    schema = f"avg_pool_input(Tensor grad_output, SymInt[] size, {_AVG}) -> Tensor"

    def compute(self, dy: Tensor, size: Any, *args: Any) -> Tensor:
        return tensor(_solve(_AVG_POOL_INPUT, (array(dy),), size, args)[0])


class _AdaptiveAvgPool(_Linear):
    schema = "adaptive_avg_pool(Tensor input, SymInt[] output_size) -> Tensor"
    wide = (3,)

    def compute(self, x: Tensor, output_size: Any) -> Tensor:
        return tensor(run(_ADAPTIVE_AVG_POOL[len(output_size)], array(x), tuple(output_size)))

    def fake(self, x: Tensor, output_size: Any) -> Tensor:
        return empty_map(x, (*x.shape[:2], *output_size))


class _AdaptiveAvgPoolInput(_Adjoint):
    schema = "adaptive_avg_pool_input(Tensor grad_output, SymInt[] size, SymInt[] output_size) -> Tensor"

    def compute(self, dy: Tensor, size: Any, *args: Any) -> Tensor:
        return tensor(_solve(_ADAPTIVE_AVG_INPUT, (array(dy),), size, args)[0])


_COLUMNS = "SymInt[] kernel, SymInt[] dilation, SymInt[] padding, SymInt[] stride"


class _Unfold(_Linear):
    schema = f"unfold(Tensor input, {_COLUMNS}) -> Tensor"

    def compute(self, x: Tensor, *args: Any) -> Tensor:
        return tensor(run(columns.unfold, array(x), *map(tuple, args)))

    def fake(self, x: Tensor, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
        size = pooled(x.shape[2:], kernel, stride, padding, dilation, False)
        return x.new_empty((x.shape[0], x.shape[1] * math.prod(kernel), math.prod(size)))


class _Fold(_Adjoint):
    schema = f"fold(Tensor input, SymInt[] size, {_COLUMNS}) -> Tensor"

    def compute(self, x: Tensor, size: Any, *args: Any) -> Tensor:
        return tensor(run(columns.fold, array(x), tuple(size), *map(tuple, args)))

    def fake(self, x: Tensor, size: Any, kernel: Any, *args: Any) -> Tensor:
        return x.new_empty((x.shape[0], x.shape[1] // math.prod(kernel), *size))


_MAX = "SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode"


class _Max(_Window):
    """A maximum and where it is: what the two max pools have in common."""

    kind: ClassVar[_Kind]
    indices: Any = np.int64

    def values(self) -> _Max:
        """Return the same operator for those who ask for no indices.

        Where autograd alone looks on, its indices are as narrow as the gradient may have them: less to write and read.
        """
        other = copy(self)
        other.indices = _NARROW
        other.direct = direct(other)
        return other

    def compute(self, x: Tensor, *args: Any) -> Any:
        y, indices = _solve(self.kind, (array(x),), x.shape[2:], args, self.indices)
        return tensor(y), tensor(indices)

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        x, *ctx.args = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)  # nobody wants zeros for the indices

    def backward(self, ctx: Any, g: Tensor | None, _: Any) -> Any:
        (indices,) = ctx.saved_tensors
        nothing = (None,) * len(ctx.args)
        return None if g is None else max_pool_input(g, indices, ctx.size, *self.window(*ctx.args)), *nothing

    def window(self, *args: Any) -> Any:
        """Return the window as `max_pool_input` takes it."""
        return args


class _MaxPool(_Max):
    schema = f"max_pool(Tensor input, {_MAX}) -> (Tensor, Tensor)"
    kind = _MAX_POOL

    def fake(self, x: Tensor, *args: Any) -> Any:
        shape = (*x.shape[:2], *pooled(x.shape[2:], *args))
        return empty_map(x, shape), empty_map(x.to(torch.int64), shape)


class _AdaptiveMaxPool(_Max):
    schema = "adaptive_max_pool(Tensor input, SymInt[] output_size) -> (Tensor, Tensor)"
    kind = _ADAPTIVE_MAX

    def fake(self, x: Tensor, output_size: Any) -> Any:
        shape = (*x.shape[:2], *output_size)
        return empty_map(x, shape), empty_map(x.to(torch.int64), shape)

    def window(self, *args: Any) -> Any:
        return (), (), (), (), False


class _MaxPoolInput(_Window):
    """The gradient of a max pool; without a kernel, that of an adaptive one."""

    schema = f"max_pool_input(Tensor grad_output, Tensor indices, SymInt[] size, {_MAX}) -> Tensor"
    tensors = 2

    def compute(self, dy: Tensor, indices: Tensor, size: Any, *args: Any) -> Tensor:
        where = array(indices)
        _check_indices(where, tuple(dy.shape), math.prod(size), -1, tuple(INDEX_DTYPES))
        kind = _MAX_POOL_INPUT
        if not args[0]:
            kind, args = _ADAPTIVE_MAX_INPUT, (dy.shape[2:],)
        return tensor(_solve(kind, (array(dy), where), size, args, where.dtype)[0])

    def fake(self, dy: Tensor, indices: Tensor, size: Any, *args: Any) -> Tensor:
        return empty_map(dy, (*dy.shape[:2], *size))

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    def backward(self, ctx: Any, g: Tensor) -> Any:
        return _taken(g, ctx.saved_tensors[0]), *(None,) * 7


class _MaxUnpool(_Window):
    schema = "max_unpool(Tensor input, Tensor indices, SymInt[] size) -> Tensor"
    tensors = 2
    wide = (2, 3)

    def compute(self, x: Tensor, indices: Tensor, size: Any) -> Tensor:
        where = array(indices)
        # A window and a stride of ones restore the size of the input, give or take nothing: the size is given whole.
        _check_indices(where, tuple(x.shape), math.prod(size), 0, ("int64",))
        return tensor(_solve(_MAX_UNPOOL, (array(x), where), x.shape[2:], (size,))[0])

    def fake(self, x: Tensor, indices: Tensor, size: Any) -> Tensor:
        return empty_map(x, (*x.shape[:2], *size))

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    def backward(self, ctx: Any, g: Tensor) -> Any:
        return _taken(g, ctx.saved_tensors[0]), None, None


def _taken(map: Tensor, indices: Tensor) -> Tensor:
    """Return the elements of a map at indices into its spatial axes; zero where there is none (-1)."""
    taken = map.flatten(2).gather(2, indices.flatten(2).clamp(min=0).long()).view(indices.shape)
    return torch.where(indices < 0, torch.zeros_like(taken), taken)


_UNSIGNED = {size: np.dtype(f"u{size}") for size in INDEX_DTYPES.values()}


def _check_indices(indices: Any, shape: tuple[int, ...], limit: int, least: int, dtypes: tuple[str, ...]) -> None:
    if indices.dtype.name not in dtypes or indices.shape != shape:
        expected = " or ".join(dtypes)
        raise ValueError(f"indices: expected {expected} of shape {shape}, got {indices.dtype} of {indices.shape}")
    # Read as unsigned, what is negative is large: one look at the array.
    if indices.size and not indices.view(_UNSIGNED[indices.itemsize]).max() < limit:
        low, high = int(indices.min()), int(indices.max())
        if low < least or high >= limit:
            raise ValueError(f"indices: expected values from {least} to {limit - 1}, got {low} to {high}")


def _by_ndim(name: str) -> dict[int, Any]:
    return {ndim: getattr(pooling, f"{name}{ndim}d") for ndim in (1, 2, 3)}


_AVG_POOL = _by_ndim("avg_pool")
_ADAPTIVE_AVG_POOL = _by_ndim("adaptive_avg_pool")

avg_pool, avg_pool_input = _AvgPool(), _AvgPoolInput()
adaptive_avg_pool, adaptive_avg_pool_input = _AdaptiveAvgPool(), _AdaptiveAvgPoolInput()
unfold, fold = _Unfold(), _Fold()
for _forward, _backward in (
    (avg_pool, avg_pool_input),
    (adaptive_avg_pool, adaptive_avg_pool_input),
    (unfold, fold),
):
    _forward.adjoint, _backward.forward = _backward, _forward

max_pool, adaptive_max_pool = _MaxPool(), _AdaptiveMaxPool()
max_values, adaptive_max_values = max_pool.values(), adaptive_max_pool.values()
max_pool_input = _MaxPoolInput()
max_unpool = _MaxUnpool()
