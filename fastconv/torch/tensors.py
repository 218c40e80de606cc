"""Between tensors and arrays, without a copy; and when that way may be taken."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.autograd import forward_ad

from fastconv import arrays
from fastconv.machine import available_cores
from fastconv.options import Options, applied, current

Tensor: TypeAlias = torch.Tensor

# What is a tensor and nothing more: a subclass may mean anything.
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
# What arrays can hold. Other tensors are PyTorch's.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_include_set = torch._C._dispatch_tls_local_include_set
_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: torch.is_autocast_enabled("cpu"))
_function_mode = torch._C._is_torch_function_mode_enabled


def _key_set(*names: str) -> int:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    for name in names:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return int(keys.raw_repr())


# What every call's dispatch includes, outside and inside of inference mode. Whatever looks on (tracing, vmap of
# either kind, functional transforms, dispatch modes) adds a key of its own, so that nothing can be forgotten here.
_ALWAYS = frozenset({_key_set("BackendSelect", "ADInplaceOrView"), _key_set("BackendSelect")})


def eager() -> bool:
    """Whether nothing but autograd looks at a call: no tracer, transform, mode or autocast is at work.

    A compiler cannot follow this: ask `torch.compiler.is_compiling` before.
    """
    return not (
        _include_set().raw_repr() not in _ALWAYS or _autocast() or _function_mode() or forward_ad._current_level >= 0
    )


def array(tensor: Tensor) -> Any:
    """Return a tensor's memory as an array.

    Raises
    ------
    TypeError
        If it is not in plain memory of the CPU, or of a dtype that NumPy does not have.
    """
    try:
        # To force it detaches, faster than `detach` does; and it would copy from other devices.
        return tensor.numpy(force=True) if tensor.requires_grad and tensor.is_cpu else tensor.numpy()
    except (TypeError, RuntimeError) as error:
        return _other_array(tensor, error)


def _other_array(tensor: Tensor, error: Exception) -> Any:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(f"a {tensor.layout} tensor on {tensor.device}") from error
    if tensor.is_neg():  # a view that says: negate what you read
        return tensor.resolve_neg().numpy()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(arrays.dtype_named("bfloat16"))
    raise TypeError(str(error)) from error


def optional_array(tensor: Tensor | None) -> Any:
    """Return a tensor's memory as an array, None for None."""
    return None if tensor is None else array(tensor)


def tensor(array: Any) -> Tensor:
    """Return an array as a tensor that keeps it alive."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


_CORES = available_cores()


@lru_cache(maxsize=64)
def _limited(options: Options, threads: int) -> Options:
    return options.replace(threads=threads)


def few_threads() -> Options | None:
    """Return the options by which fastconv takes no more threads than PyTorch may; None if it does not anyway."""
    threads = torch.get_num_threads()
    if threads >= _CORES:
        return None
    options = current()
    return _limited(options, threads) if options.threads is None else None


def run(function: Any, *args: Any) -> Any:
    """Call one of fastconv's functions with as many threads as PyTorch may use."""
    options = few_threads()
    if options is None:
        return function(*args)
    with applied(options):
        return function(*args)


def is_channels_last(map: Tensor) -> bool:
    """Whether a map (N, C, spatial) counts as channels-last: what fastconv reads from an array's strides."""
    if map.is_contiguous() or map.dim() < 3:
        return False
    return map.shape[1] > 1 and map.stride(1) == 1 and max(map.shape[2:]) > 1


def empty_map(like: Tensor, shape: Any) -> Tensor:
    """Return an empty map in the memory order that fastconv gives a result for such an input."""
    if not is_channels_last(like):
        return like.new_empty(shape)
    n, c, *spatial = shape
    return like.new_empty((n, *spatial, c)).movedim(-1, 1)
