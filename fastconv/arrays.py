"""The array boundary: what is accepted as an array, and how a result becomes the same kind again.

NumPy arrays pass as they are, CuPy arrays too; whatever else speaks DLPack (PyTorch, JAX, ...) is viewed
without a copy and handed back as its own kind. CuPy is imported only if CUDA memory turns up.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastconv.problem import DTYPES, Operand
from fastconv.sizes import Sizes

Array: TypeAlias = Any
"""An array of any accepted kind."""

_DLPACK_CPU = 1
_DLPACK_CUDA = 2
# What the libraries raise for an array that they cannot export: BufferError by the standard, and others before it.
_NOT_EXPORTED = (BufferError, RuntimeError, TypeError, ValueError)


_HERE = nullcontext()


class Kind(NamedTuple):
    """A kind of array: its name for messages, where it lives, the module that turns a result into it, and which GPU."""

    name: str
    device: str
    module: str | None = None
    gpu: int | None = None

    def give_back(self, array: Any) -> Any:
        """Return a NumPy or CuPy array as this kind, without a copy."""
        if self.module is None:
            return array
        namespace = importlib.import_module(self.module)
        if array.dtype.name == "bfloat16":
            return namespace.from_dlpack(array.view(np.int16)).view(namespace.bfloat16)
        return namespace.from_dlpack(array)


NUMPY = Kind("NumPy", "cpu")
CUPY = Kind("CuPy", "cuda")


def read(name: str, value: Any) -> tuple[Any, Kind]:
    """Return the NumPy or CuPy array behind a value, and the value's kind.

    Raises
    ------
    TypeError
        If the value is no array, or lives where fastconv cannot read it.
    """
    if type(value) is np.ndarray:
        return value, NUMPY
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value.view(np.ndarray), NUMPY
    # Asked of the type: an array itself would make up all that its interface says.
    if type(value).__module__.partition(".")[0] == "cupy" and hasattr(type(value), "__cuda_array_interface__"):
        return value, CUPY._replace(gpu=value.device.id)
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return _from_dlpack(name, value)
    raise TypeError(f"{name}: expected an array (NumPy, CuPy or one that speaks DLPack), got {type(value).__name__}")


def read_as(name: str, value: Any, kind: Kind, model: str) -> Any:
    """Return the array behind a value that must be of the kind of the argument called ``model``."""
    array, its_kind = read(name, value)
    if its_kind.name != kind.name or its_kind.device != kind.device:
        raise TypeError(
            f"{name}: is a {its_kind.name} array on {its_kind.device}, "
            f"but {model} is a {kind.name} array on {kind.device}"
        )
    if its_kind.gpu != kind.gpu:
        raise ValueError(f"{name}: is on GPU {its_kind.gpu}, but {model} is on GPU {kind.gpu}")
    return array


def _from_dlpack(name: str, value: Any) -> tuple[Any, Kind]:
    namespace = value.__array_namespace__() if hasattr(value, "__array_namespace__") else _namespace_of(value)
    library = getattr(namespace, "__name__", type(value).__module__).partition(".")[0]
    # NumPy does not import bfloat16 through DLPack, so it travels as integers of the same width.
    narrow = namespace is not None and str(value.dtype).rpartition(".")[2] == "bfloat16"
    refusal = f"{name}: this {library} {type(value).__name__} cannot be read through DLPack: "
    try:
        device = int(value.__dlpack_device__()[0])
    except _NOT_EXPORTED as error:
        raise TypeError(f"{refusal}{error}") from error
    if device not in (_DLPACK_CPU, _DLPACK_CUDA):
        raise TypeError(f"{refusal}DLPack device type {device} is neither CPU nor CUDA")
    reader = np if device == _DLPACK_CPU else _cupy(name)
    try:
        array = reader.from_dlpack(value.view(namespace.int16) if narrow else value)
    except _NOT_EXPORTED as error:
        raise TypeError(f"{refusal}{error}") from error
    if namespace is None:
        raise TypeError(f"{refusal}{library} has no from_dlpack, to make a result of the same kind")
    if narrow:
        array = array.view(_bfloat16(name))
    if device == _DLPACK_CPU:
        return array, Kind(library, "cpu", namespace.__name__)
    return array, Kind(library, "cuda", namespace.__name__, array.device.id)


def _namespace_of(value: Any) -> Any:
    """Return the module that makes arrays such as a value, or such as its base class is; None if none is known."""
    modules = (sys.modules.get(kind.__module__.partition(".")[0]) for kind in type(value).__mro__)
    return next((module for module in modules if hasattr(module, "from_dlpack")), None)


def _cupy(name: str) -> Any:
    try:
        import cupy
    except ImportError:
        raise TypeError(
            f"{name}: is in GPU memory, for which CuPy is needed: pip install 'fastconv[cuda12]' or 'fastconv[cuda13]'"
        ) from None
    return cupy


def _bfloat16(name: str) -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"{name}: is bfloat16, for which ml_dtypes is needed: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def dtype_named(name: str) -> Any:
    """Return the NumPy dtype of a name such as ``float32`` or ``bfloat16``."""
    return _bfloat16("dtype") if name == "bfloat16" else np.dtype(name)


@cache
def _name_of(dtype: Any) -> str:
    """Return a dtype's name, which NumPy works out anew whenever it is asked."""
    return str(dtype.name)


def float_dtype(name: str, array: Any) -> str:
    """Return the dtype's name if fastconv computes in it.

    Raises
    ------
    TypeError
        If it is none of float32, float64, float16, bfloat16, or not in this machine's byte order.
    """
    dtype = _name_of(array.dtype)
    if dtype not in DTYPES or not array.dtype.isnative:
        raise TypeError(f"{name}: expected dtype {', '.join(DTYPES)}, got {array.dtype}")
    return dtype


def check_dtype(name: str, array: Any, expected: str) -> None:
    """Check that an array is of one dtype, in this machine's byte order.

    Raises
    ------
    TypeError
        If it is not.
    """
    if _name_of(array.dtype) != expected or not array.dtype.isnative:
        raise TypeError(f"{name}: expected dtype {expected}, got {array.dtype}")


def layout_of(array: Any) -> str:
    """Return in which memory order a map (N, C, spatial) is: ``channels_first`` or ``channels_last``.

    An array that is contiguous in neither order counts as channels-last if its channels lie next to each other.
    """
    if array.flags.c_contiguous or array.ndim < 3:
        return "channels_first"
    inside = array.shape[1] > 1 and abs(array.strides[1]) == array.itemsize
    return "channels_last" if inside and max(array.shape[2:]) > 1 else "channels_first"


def shaped(array: Any, shape: Sizes) -> Any:
    """Return an array in a shape: itself if that is its own, by which `fastconv.repeat` knows it again."""
    return array if array.shape == shape else array.reshape(shape)


def empty(operand: Operand, layout: str, like: Any) -> Any:
    """Return an uninitialised array for an operand, where ``like`` is, in the layout if it is a map."""
    if isinstance(like, np.ndarray):
        return _empty(np, operand, layout, like)
    with at(like):
        return _empty(sys.modules["cupy"], operand, layout, like)


def _empty(module: Any, operand: Operand, layout: str, like: Any) -> Any:
    dtype = like.dtype if _name_of(like.dtype) == operand.dtype else dtype_named(operand.dtype)
    if operand.spatial and layout == "channels_last":
        n, c, *spatial = operand.shape
        return np.moveaxis(module.empty((n, *spatial, c), dtype), -1, 1)
    return module.empty(operand.shape, dtype)


def gpu_of(array: Any) -> int | None:
    """Return on which GPU a NumPy or CuPy array is."""
    return None if isinstance(array, np.ndarray) else int(array.device.id)


def at(array: Any) -> AbstractContextManager[Any]:
    """Return a context in which an array's GPU, if it is on one, is the current one."""
    context: AbstractContextManager[Any] = _HERE if isinstance(array, np.ndarray) else array.device
    return context


def may_overlap(a: Any, b: Any) -> bool:
    """Whether two arrays might share memory; never a false no."""
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    return bool(sys.modules["cupy"].may_share_memory(a, b))
