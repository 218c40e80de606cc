"""The array boundary: strides, memory orders, dtypes, kinds of array, empty batches, and `out`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from inspect import isfunction
from types import MappingProxyType
from typing import Any, NamedTuple

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch
from fakes import general_backends

import fastconv as fc
from fastconv import arrays, epilogue, testing

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def integers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    """Small integers, whose sums of products are exact in every dtype here, half types included."""
    return np.random.default_rng([seed, *shape]).integers(-2, 3, shape).astype(dtype)


class Op(NamedTuple):
    """A call of an op: its array arguments by name, and the others."""

    name: str
    arrays: dict[str, Any]
    arguments: Mapping[str, Any] = MappingProxyType({})

    def __call__(self, **changes: Any) -> Any:
        return getattr(fc, self.name)(**{**self.arrays, **self.arguments, **changes})

    def vjp(self, **changes: Any) -> Any:
        return fc.vjp(getattr(fc, self.name), **{**self.arrays, **self.arguments, **changes})

    def mapped(self, change: Callable[[Any], Any], *names: str) -> Any:
        """Return the call with its arrays (or some of them) changed."""
        return self._replace(arrays={n: change(a) if n in names or not names else a for n, a in self.arrays.items()})


X1, X2, X3 = integers(2, 4, 8), integers(2, 4, 7, 8), integers(2, 4, 5, 6, 5)
# A call of every op whose data and options keep all arithmetic exact: integers, divisors that are powers of two.
INDICES = np.random.default_rng(0).permuted(np.arange(2 * 4 * 56).reshape(2, 4, 7, 8) % 224, axis=-1)
OPS = [
    Op("conv1d", {"input": X1, "weight": integers(6, 4, 3), "bias": integers(6)}, {"padding": 1}),
    Op(
        "conv2d",
        {"input": X2, "weight": integers(6, 2, 3, 2), "bias": integers(6), "residual": integers(2, 6, 3, 4)},
        {"stride": 2, "groups": 2, "activation": "relu"},
    ),
    Op("conv3d", {"input": X3, "weight": integers(3, 4, 2, 3, 2)}, {"padding": ((1, 0),) * 3}),
    Op("conv_transpose1d", {"input": X1, "weight": integers(4, 3, 2)}, {"stride": 2}),
    Op(
        "conv_transpose2d",
        {"input": X2, "weight": integers(4, 3, 3, 2), "bias": integers(3), "residual": integers(2, 3, 14, 16)},
        {"stride": 2, "padding": (1, 0), "output_padding": (1, 0)},
    ),
    Op("conv_transpose3d", {"input": X3, "weight": integers(4, 2, 2, 2, 2)}),
    Op(
        "locally_connected2d",
        {"input": X2, "weight": integers(3, 3, 5, 4, 3, 3), "bias": integers(3, 3, 5)},
        {"stride": 2},
    ),
    Op("linear", {"input": integers(2, 3, 5), "weight": integers(4, 5), "bias": integers(4)}),
    Op("unfold", {"input": X2}, {"kernel_size": (3, 2), "padding": 1}),
    Op("fold", {"input": integers(2, 12, 42)}, {"output_size": (7, 8), "kernel_size": 2}),
    Op("max_pool1d", {"input": X1}, {"kernel_size": 2}),
    Op("max_pool2d", {"input": X2}, {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}),
    Op("max_pool3d", {"input": X3}, {"kernel_size": 2}),
    Op("avg_pool1d", {"input": X1}, {"kernel_size": 2}),
    Op("avg_pool2d", {"input": X2}, {"kernel_size": 2, "stride": 1, "padding": 1}),
    Op("avg_pool3d", {"input": X3}, {"kernel_size": 2}),
    Op("lp_pool1d", {"input": abs(X1)}, {"norm_type": 1, "kernel_size": 2}),
    Op("lp_pool2d", {"input": abs(X2)}, {"norm_type": 1, "kernel_size": 2}),
    Op("lp_pool3d", {"input": abs(X3)}, {"norm_type": 1, "kernel_size": 2}),
    Op("adaptive_avg_pool1d", {"input": X1}, {"output_size": 4}),
    Op("adaptive_avg_pool2d", {"input": X2}, {"output_size": (None, 4)}),
    Op("adaptive_avg_pool3d", {"input": X3}, {"output_size": (5, 3, 5)}),
    Op("adaptive_max_pool1d", {"input": X1}, {"output_size": 4, "return_indices": True}),
    Op("adaptive_max_pool2d", {"input": X2}, {"output_size": (3, 4)}),
    Op("adaptive_max_pool3d", {"input": X3}, {"output_size": 2}),
    Op("max_unpool1d", {"input": X1, "indices": np.arange(64).reshape(X1.shape) % 16}, {"kernel_size": 2}),
    Op("max_unpool2d", {"input": X2, "indices": INDICES}, {"kernel_size": 2}),
    Op("max_unpool3d", {"input": X3, "indices": np.arange(1200).reshape(X3.shape)}, {"kernel_size": 2}),
]
EVERY_OP = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
EVERY_BACKEND = pytest.mark.parametrize("backend", general_backends())


def on_backends(ops: list[Op]) -> Any:
    """Return a mark for every op on every backend that solves it."""
    return pytest.mark.parametrize(
        ("op", "backend"),
        [
            pytest.param(op, backend, id=f"{op.name}-{backend}")
            for op in ops
            for backend in general_backends()
            if refusals(op, backend) is None
        ],
    )


def refusals(op: Op, backend: str) -> str | None:
    choice = fc.explain(getattr(fc, op.name), **op.arrays, **op.arguments, backend=backend)
    return None if choice.winner else "; ".join(c.refusal for c in choice.candidates if c.refusal)


def test_every_op_is_here():
    ops = {name for name in fc.__all__ if isfunction(getattr(fc, name)) and hasattr(getattr(fc, name), "lower")}
    assert {op.name for op in OPS} == ops


def test_only_unpooling_is_refused_and_only_by_im2col():
    refused = {(op.name, backend) for op in OPS for backend in general_backends() if refusals(op, backend)}
    assert refused == {(f"max_unpool{n}d", "im2col") for n in (1, 2, 3)}


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same(result: Any, expected: Any) -> None:
    for a, b in zip(parts(result), parts(expected), strict=True):
        assert a is b is None or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def channels_last(a: Any) -> Any:
    """Return an array of the same values with its axis 1 last in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def is_channels_last(a: Any) -> bool:
    return np.moveaxis(a, 1, -1).flags.c_contiguous and not a.flags.c_contiguous


# --------------------------------------------------------------------------------------------------- strides


def unaligned(a: Any) -> Any:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned or a.dtype.itemsize == 1
    return view


def sliced(a: Any) -> Any:
    """A part of a larger array along every axis."""
    large = np.zeros(tuple(s + 3 for s in a.shape), a.dtype)
    view = large[tuple(slice(1, 1 + s) for s in a.shape)]
    view[...] = a
    return view


def transposed(a: Any) -> Any:
    """The last two axes swapped in memory."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2) if a.ndim > 1 else a


STRIDES = {
    "fortran": np.asfortranarray,
    "reversed with gaps, read-only": testing.read_only_view,
    "sliced": sliced,
    "transposed": transposed,
    "unaligned": unaligned,
}


@on_backends(OPS)
@pytest.mark.parametrize("strides", STRIDES)
def test_strides_change_nothing(op, backend, strides):
    """Integer data: forward and gradient give the same bits, however the arrays lie in memory."""
    changed = op.mapped(STRIDES[strides])
    kept = {name: array.copy() for name, array in changed.arrays.items()}
    expected, pullback = op.vjp(backend=backend)
    result, changed_pullback = changed.vjp(backend=backend)
    assert_same(result, expected)
    dy = integers(*parts(expected)[0].shape, seed=1)
    assert_same(changed_pullback(STRIDES[strides](dy)), pullback(dy))
    for name, array in changed.arrays.items():
        assert np.array_equal(array, kept[name]), f"{name} was written to"


@EVERY_BACKEND
def test_broadcast_arrays(backend):
    """Strides of zero: every element is the same memory."""
    x, w, b = integers(1, 4, 1, 8), integers(1, 4, 3, 1), integers(1)
    broad = np.broadcast_to(x, (3, 4, 7, 8)), np.broadcast_to(w, (6, 4, 3, 3)), np.broadcast_to(b, (6,))
    y, pullback = fc.vjp(fc.conv2d, *broad, padding=1, backend=backend)
    expected, expected_pullback = fc.vjp(fc.conv2d, *(a.copy() for a in broad), padding=1, backend=backend)
    assert_same(y, expected)
    dy = np.broadcast_to(integers(1, 6, 1, 1), y.shape)
    assert_same(pullback(dy), expected_pullback(dy.copy()))
    assert_same(fc.max_pool2d(broad[0], 2, backend=backend), fc.max_pool2d(broad[0].copy(), 2, backend=backend))


# ---------------------------------------------------------------------------------------------- memory orders

MAPS = [op for op in OPS if op.name not in ("linear", "unfold", "fold")]


@on_backends(MAPS)
def test_channels_last_in_channels_last_out(op, backend):
    maps = [name for name in op.arrays if name in ("input", "indices", "residual")]
    expected, pullback = op.vjp(backend=backend)
    result, changed_pullback = op.mapped(channels_last, *maps).vjp(backend=backend)
    assert_same(result, expected)
    for part in parts(result):
        assert is_channels_last(part)
    dy = integers(*parts(expected)[0].shape, seed=1)
    gradients, changed_gradients = pullback(dy), changed_pullback(channels_last(dy))
    assert is_channels_last(changed_gradients[0])
    assert_same(changed_gradients, gradients)


@pytest.mark.parametrize("op", MAPS, ids=lambda op: op.name)
@pytest.mark.parametrize("order", [np.ascontiguousarray, channels_last])
def test_unbatched_is_a_batch_of_one(op, order):
    maps = [name for name in op.arrays if name in ("input", "indices", "residual")]
    batch = op.mapped(lambda a: order(a[:1]), *maps)
    single = batch.mapped(lambda a: a[0], *maps)
    expected, pullback = batch.vjp()
    result, single_pullback = single.vjp()
    assert_same(result, tuple(part[0] for part in parts(expected)) if isinstance(expected, tuple) else expected[0])
    for part, whole in zip(parts(result), parts(expected), strict=True):
        assert part.strides == whole.strides[1:]
    dy = integers(*parts(expected)[0].shape, seed=1)
    gradients, single_gradients = pullback(dy), single_pullback(dy[0])
    for name, one, many in zip(op.arrays, single_gradients, gradients, strict=False):
        assert_same(one, many[0] if name in maps and many is not None else many)


@pytest.mark.parametrize("op", [op for op in OPS if op.name in ("unfold", "fold")], ids=lambda op: op.name)
def test_unbatched_columns(op):
    assert_same(op.mapped(lambda a: a[0])(), op()[0])


@pytest.mark.parametrize(
    ("shape", "strides", "layout"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1), "channels_first"),
        ((2, 3, 4, 5), (60, 1, 15, 3), "channels_last"),
        ((2, 1, 4, 5), (20, 20, 5, 1), "channels_first"),
        ((2, 1, 4, 5), (20, 1, 5, 1), "channels_first"),
        ((2, 3, 1, 1), (3, 1, 1, 1), "channels_first"),
        ((2, 3, 4, 5), (120, 1, 30, 6), "channels_last"),
        ((2, 3, 4), (12, 1, 3), "channels_last"),
        ((2, 3), (3, 1), "channels_first"),
    ],
)
def test_which_memory_order_strides_are(shape, strides, layout):
    a = np.lib.stride_tricks.as_strided(np.zeros(240, np.float32), shape, tuple(4 * s for s in strides))
    assert arrays.layout_of(a) == layout


# ---------------------------------------------------------------------------------------------------- dtypes


@on_backends(OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_in_dtype_out(op, backend, dtype):
    changed = op.mapped(lambda a: a if a.dtype == np.int64 else a.astype(DTYPES[dtype]))
    result, pullback = changed.vjp(backend=backend)
    y, *indices = parts(result)
    assert y.dtype == DTYPES[dtype]
    assert all(a.dtype == np.int64 for a in indices)
    gradients = [g for g in pullback(y) if g is not None]
    assert [g.dtype for g in gradients] == [DTYPES[dtype]] * len(gradients)
    assert_same(y.astype(np.float64), parts(op())[0])


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_summed_in_float32(backend, dtype):
    """In either half type one and a hundredth of its precision is one again; the sum of many is not."""
    terms = 4096
    x = np.ones((1, terms, 1, 1), DTYPES[dtype])
    x[0, 1:] = ml_dtypes.finfo(DTYPES[dtype]).eps / 8
    expected = 1 + (terms - 1) * float(ml_dtypes.finfo(DTYPES[dtype]).eps) / 8
    y = fc.conv2d(x, np.ones((1, terms, 1, 1), DTYPES[dtype]), backend=backend)
    assert y.item() == DTYPES[dtype](expected)


# ------------------------------------------------------------------------------------------------ empty batches


@EVERY_OP
@pytest.mark.parametrize("order", [np.ascontiguousarray, channels_last])
def test_empty_batch(op, order):
    per_image = [name for name in op.arrays if name in ("input", "indices", "residual")]
    empty = op.mapped(lambda a: order(a[:0]) if a.ndim > 2 else a[:0], *per_image)
    full, empty_result = parts(op()), parts(empty())
    for part, whole in zip(empty_result, full, strict=True):
        assert part.shape == (0, *whole.shape[1:])
        assert part.dtype == whole.dtype
    result, pullback = empty.vjp()
    assert parts(result)[0].shape == empty_result[0].shape
    gradients = pullback(empty_result[0])
    names = list(op.arrays)
    if "weight" in names and "bias" not in names:
        names.insert(2, "bias")
    for name, gradient in zip(names, gradients, strict=True):
        if name == "indices" or name not in op.arrays:
            assert gradient is None
        else:
            assert gradient.shape == empty.arrays[name].shape
            assert not gradient.any()  # a sum over no images


def test_empty_batch_of_the_grad_functions():
    x, w = np.ones((0, 3, 6, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
    dy = np.ones((0, 4, 4, 4), np.float32)
    assert fc.grad.conv2d_input(x.shape, w, dy).shape == x.shape
    dw = fc.grad.conv2d_weight(x, w.shape, dy)
    assert dw.shape == w.shape
    assert not dw.any()


def test_empty_batch_still_has_to_fit():
    with pytest.raises(ValueError, match="weight: a kernel of 7"):
        fc.conv2d(np.ones((0, 3, 6, 6), np.float32), np.ones((4, 3, 7, 7), np.float32))


# ---------------------------------------------------------------------------------------------------------- out


@on_backends(OPS)
@pytest.mark.parametrize("order", [np.empty_like, channels_last, sliced, unaligned, np.asfortranarray])
def test_out_is_filled_and_returned(op, backend, order):
    expected, *indices = parts(op(backend=backend))
    out = order(np.full_like(expected, np.nan)) if expected.ndim > 2 else np.full_like(expected, np.nan)
    result = op(out=out, backend=backend)
    assert parts(result)[0] is out
    assert_same(result, (expected, *indices) if indices else expected)


@EVERY_BACKEND
def test_out_may_lie_over_an_input(backend):
    x, w = integers(2, 3, 6, 6), integers(3, 3, 3, 3)
    expected = fc.conv2d(x, w, padding=1, backend=backend)
    buffer = np.zeros((3, 3, 6, 6), np.float32)
    buffer[:2] = x
    for start in (0, 1):  # the same place, and an image further on
        buffer[:2] = x
        out = buffer[start : start + 2]
        assert fc.conv2d(buffer[:2], w, padding=1, out=out, backend=backend) is out
        assert np.array_equal(out, expected)
    buffer[:2] = x
    mirrored = buffer[1::-1, :, ::-1]
    fc.conv2d(buffer[:2], w, padding=1, out=mirrored, backend=backend)
    assert np.array_equal(mirrored, expected)
    residual = integers(2, 3, 6, 6, seed=1)
    expected = fc.conv2d(x, w, padding=1, residual=residual, backend=backend)
    assert np.array_equal(fc.conv2d(x, w, padding=1, residual=residual, out=residual, backend=backend), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "relu6", "sigmoid", "tanh"])
def test_activations_in_place_of_elements_that_lie_apart(activation, dtype):
    values = np.random.default_rng(0).standard_normal((5, 9)).astype(dtype)
    expected = values.copy()
    epilogue.apply(activation, expected)
    for step in range(1, 18):
        found = np.zeros((5, 9 * step), dtype)[:, ::step]
        found[...] = values
        epilogue.apply(activation, found)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@EVERY_BACKEND
def test_pool_over_its_input(backend):
    x = integers(2, 3, 6, 6)
    expected = fc.max_pool2d(x, 3, 1, 1, backend=backend)
    assert fc.max_pool2d(x, 3, 1, 1, out=x, backend=backend) is x
    assert np.array_equal(x, expected)


def test_out_of_an_unbatched_call():
    x, w, out = integers(3, 6, 6), integers(4, 3, 3, 3), np.empty((4, 4, 4), np.float32)
    assert fc.conv2d(x, w, out=out) is out
    assert np.array_equal(out, fc.conv2d(x, w))
    columns = np.empty((2, 3, 4), np.float32).transpose(1, 0, 2)  # linear takes any number of leading axes
    x, w = integers(3, 2, 5), integers(4, 5)
    assert fc.linear(x, w, out=columns) is columns
    assert np.array_equal(columns, fc.linear(x, w))


def test_out_of_an_empty_batch():
    out = np.empty((0, 4, 4, 4), np.float32)
    assert fc.conv2d(np.ones((0, 3, 6, 6), np.float32), np.ones((4, 3, 3, 3), np.float32), out=out) is out


# ------------------------------------------------------------------------------------------------ kinds of array


def as_torch(a: Any) -> Any:
    return torch.from_numpy(a)


def as_strict(a: Any) -> Any:
    return array_api_strict.asarray(a)


@EVERY_OP
@pytest.mark.parametrize(("to", "kind"), [(as_torch, torch.Tensor), (as_strict, array_api_strict._array_object.Array)])
def test_kind_in_kind_out(op, to, kind):
    expected, pullback = op.vjp()
    result, foreign_pullback = op.mapped(to).vjp()
    assert all(isinstance(part, kind) for part in parts(result))
    assert_same(tuple(np.from_dlpack(part) for part in parts(result)), parts(expected))
    dy = integers(*parts(expected)[0].shape, seed=1)
    for gradient, wanted in zip(foreign_pullback(to(dy)), pullback(dy), strict=True):
        assert gradient is wanted is None or isinstance(gradient, kind)
        assert wanted is None or np.array_equal(np.from_dlpack(gradient), wanted)


def test_torch_tensors_are_not_copied():
    x, w = torch.ones(1, 3, 6, 6), torch.ones(4, 3, 3, 3)
    array, kind = arrays.read("input", x)
    assert array.ctypes.data == x.data_ptr()
    assert kind.give_back(array).data_ptr() == x.data_ptr()
    out = torch.empty(1, 4, 4, 4)
    place = out.data_ptr()
    assert fc.conv2d(x, w, out=out) is out
    assert out.data_ptr() == place
    assert torch.equal(out, torch.full_like(out, 27))


def test_torch_channels_last_stays_so():
    x = torch.from_numpy(X2).to(memory_format=torch.channels_last)
    y = fc.conv2d(x, torch.ones(3, 4, 3, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_torch_bfloat16():
    x = torch.from_numpy(X2).bfloat16()
    w, out = torch.ones(3, 4, 2, 2).bfloat16(), torch.zeros(2, 3, 6, 7).bfloat16()
    y, pullback = fc.vjp(fc.conv2d, x, w)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), torch.nn.functional.conv2d(x.float(), w.float()))
    dx, dw, db = pullback(y)
    assert (dx.dtype, dw.dtype, db) == (torch.bfloat16, torch.bfloat16, None)
    assert fc.conv2d(x, w, out=out) is out
    assert torch.equal(out, y)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1, 3, 6, 6, requires_grad=True),
        torch.ones(1, 3, 6, 6, device="meta"),
        torch.ones(1, 3, 6, 6).to_sparse(),
        torch.ones(1, 3, 6, 6, dtype=torch.complex64).conj(),
    ],
    ids=["requires_grad", "meta", "sparse", "conjugated"],
)
def test_tensor_that_cannot_be_exported(tensor):
    with pytest.raises(TypeError, match="input: this torch Tensor cannot be read through DLPack: "):
        fc.conv2d(tensor, torch.ones(4, 3, 3, 3))


class Image(torch.Tensor):
    """A class of somebody's own, in a module that makes no arrays."""


def test_a_subclass_of_tensor_is_a_tensor():
    x, w = torch.ones(1, 3, 6, 6).as_subclass(Image), torch.ones(4, 3, 3, 3)
    for y, expected in (
        (fc.conv2d(x, w), torch.full((1, 4, 4, 4), 27.0)),
        (fc.max_pool2d(x, 2), torch.ones(1, 3, 3, 3)),
        (fc.conv2d(w, x[:, :, :3, :3]), torch.full((4, 1, 1, 1), 27.0)),
    ):
        assert isinstance(y, torch.Tensor) and torch.equal(y, expected)


class Foreign:
    """An array of some library on some device, which has nothing to export but an error."""

    dtype = np.dtype(np.float32)

    def __init__(self, device, error=None):
        self.device, self.error = device, error

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **how):
        raise self.error


class Unknown(Foreign):
    def __dlpack__(self, **how):
        return np.ones((1, 3, 6, 6), np.float32).__dlpack__()


def test_what_no_result_could_be_made_as_is_refused_at_once():
    with pytest.raises(TypeError, match=r"^input: this .* has no from_dlpack, to make a result of the same kind"):
        fc.max_pool2d(Unknown(1), 2)


def test_device_that_is_neither_cpu_nor_cuda():
    with pytest.raises(TypeError, match=r"^input: this \w+ Foreign .*: DLPack device type 8 is neither CPU nor CUDA$"):
        fc.conv2d(Foreign(8), integers(1, 1, 1, 1))


def test_cuda_array_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(TypeError, match=r"^input: is in GPU memory, for which CuPy is needed"):
        fc.conv2d(Foreign(2), integers(1, 1, 1, 1))


@pytest.mark.parametrize("error", [BufferError, RuntimeError])
def test_refused_export_is_a_bad_argument_and_a_failure_is_not(error):
    with pytest.raises(TypeError, match=r"^input: this .* cannot be read through DLPack: busy"):
        fc.conv2d(Foreign(1, error("busy")), integers(1, 1, 1, 1))
    with pytest.raises(ZeroDivisionError):
        fc.conv2d(Foreign(1, ZeroDivisionError()), integers(1, 1, 1, 1))


def test_half_numpy_half_torch():
    x, w = X2, integers(3, 4, 3, 3)
    with pytest.raises(TypeError, match="weight: is a torch array on cpu, but input is a NumPy array on cpu"):
        fc.conv2d(x, torch.from_numpy(w))
    with pytest.raises(TypeError, match="out: is a torch array on cpu, but input is a NumPy array on cpu"):
        fc.conv2d(x, w, out=torch.empty(2, 3, 5, 6))
    with pytest.raises(TypeError, match="indices: is a NumPy array on cpu, but input is a torch array on cpu"):
        fc.max_unpool2d(torch.from_numpy(x), np.zeros(x.shape, np.int64), 2)


class Tagged(np.ndarray):
    """A subclass that says nothing about what arithmetic means."""


def test_numpy_subclasses(tmp_path):
    w = integers(3, 4, 3, 3)
    expected = fc.conv2d(X2, w)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X2.shape)
    mapped[...] = X2
    for x in (mapped, X2.view(Tagged)):
        y = fc.conv2d(x, w)
        assert type(y) is np.ndarray
        assert np.array_equal(y, expected)
    for masked in (np.ma.masked_array(X2), np.ma.masked_invalid(X2)):
        with pytest.raises(TypeError, match=r"input: expected an array .* got MaskedArray"):
            fc.conv2d(masked, w)
        with pytest.raises(TypeError, match=r"out: expected an array .* got MaskedArray"):
            fc.conv2d(X2, w, out=np.ma.masked_array(expected))


def test_out_in_a_file(tmp_path):
    w = integers(3, 4, 3, 3)
    expected = fc.conv2d(X2, w)
    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=expected.shape)
    assert fc.conv2d(X2, w, out=out) is out
    out.flush()
    assert np.array_equal(np.fromfile(tmp_path / "y", np.float32).reshape(expected.shape), expected)
