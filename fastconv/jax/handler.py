"""What XLA calls: a handler of its foreign function interface, which finds the plan of a problem and runs it.

The interface is a C one, of call frames: records of pointers whose layout ``xla/ffi/api/c_api.h`` fixes (jaxlib has
it among its headers). The handler is a ctypes callback that reads the frame's words, puts NumPy arrays over
XLA's buffers and runs fastconv's plan on them. A plan is a Python object, so a call takes the interpreter's lock for
some microseconds; kernels release it. No JAX array is made or waited for in here, so nothing can wait for itself.
XLA reaches the handler through `fastconv.jax.gate`, which is closed when the program ends.

What is to be computed travels as text (`fastconv.notation` and the options), not as a number of this process: an
executable that JAX keeps on disk means the same in the next one.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv import arrays, dispatch
from fastconv.algorithm import AnyProblem, Plan
from fastconv.jax import gate
from fastconv.jax.stored import Stored
from fastconv.notation import format_problem, parse_problem
from fastconv.options import Options
from fastconv.record import Operand

TARGET = "fastconv"
"""The handler's name within XLA."""

_MAJOR = 0  # of the interface's versions: layouts of records change with it alone

_Word = ctypes.c_int64
_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

# Which word of a record of XLA's a field is. A frame holds those of its arguments, results and attributes.
_FRAME = _Word * 21
_EXTENSION, _API, _ARGS, _RETS, _ATTRIBUTES = 1, 2, 9, 14, 20
_BUFFER = _Word * 6
_DATA = 3
_TEXT = _Word * 2  # address and length
_METADATA = 3  # of the extension that asks for it
_INVALID_ARGUMENT = 3


class Slot(NamedTuple):
    """Where one array of a problem lies within a buffer of XLA's.

    Attributes
    ----------
    memory : ctypes type
        As many bytes as the buffer has.
    shape : tuple of int
    start : int
        Where in the buffer the first element is, in bytes.
    strides : tuple of int
    dtype : numpy dtype
    wide : numpy dtype or None
        What the problem has instead, if it is another: JAX has no 64 bit integers unless they are switched on.
    """

    memory: Any
    shape: tuple[int, ...]
    start: int
    strides: tuple[int, ...]
    dtype: Any
    wide: Any

    def over(self, address: int) -> Any:
        """Return the array over a buffer."""
        return np.ndarray(self.shape, self.dtype, self.memory.from_address(address), self.start, self.strides)


class Job(NamedTuple):
    """A text, read: the plan, and where its arrays lie."""

    generation: int
    plan: Plan
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    check: Callable[[Any], None] | None


def dtype_in_jax(operand: Operand) -> Any:
    """Return the dtype that an operand has as a JAX array."""
    return np.dtype(np.int32) if operand.dtype == "int64" else arrays.dtype_named(operand.dtype)


def order_in_memory(operand: Operand, layout: str) -> tuple[int, ...]:
    """Return the axes of an operand from the outermost in memory to the innermost."""
    axes = tuple(range(len(operand.shape)))
    return (0, *axes[2:], 1) if operand.spatial and layout == "channels_last" else axes


def describe(problem: AnyProblem, options: Options, stored: Stored | None = None) -> str:
    """Return what is to be computed, as the text that the handler reads."""
    default = asdict(Options())
    changed = {name: value for name, value in asdict(options).items() if value != default[name]}
    text = f"{format_problem(problem)} | {json.dumps(changed)}"
    return text if stored is None else f"{text} | {json.dumps(stored)}"


def _slot(operand: Operand, layout: str, stored: Stored | None) -> Slot:
    turned: Sequence[int] = ()
    order, dtype = order_in_memory(operand, layout), dtype_in_jax(operand)
    if stored is not None and operand.name == "w":
        order, turned = stored.order, stored.turned_axes
    strides, start, size = [0] * len(operand.shape), 0, int(dtype.itemsize)
    for axis in reversed(order):
        strides[axis] = -size if axis in turned else size
        start += (operand.shape[axis] - 1) * size if axis in turned else 0
        size *= operand.shape[axis]
    wide = np.dtype(operand.dtype) if operand.dtype == "int64" else None
    return Slot(ctypes.c_char * size, operand.shape, start, tuple(strides), dtype, wide)


@lru_cache(maxsize=4096)
def _job(text: bytes, generation: int) -> Job:
    words, changed, *rest = text.decode().split(" | ")
    problem, options = parse_problem(words), Options(**json.loads(changed))
    stored = Stored.of(*json.loads(rest[0])) if rest else None
    inputs, outputs = (
        tuple(_slot(operand, problem.layout, stored) for operand in operands)
        for operands in (problem.inputs, problem.outputs)
    )
    limit = int(np.prod(problem.output_size))
    check = None
    if problem.op.startswith("max_unpool"):  # the only op with indices of the user's

        def check(inputs: Any) -> None:
            low, high = inputs[1].min(), inputs[1].max()
            if low < 0 or high >= limit:
                raise ValueError(f"indices: expected values from 0 to {limit - 1}, got {low} to {high}")

    return Job(generation, dispatch.plan_for(problem, options), inputs, outputs, check)


def prepare(text: str) -> None:
    """Make the plan of a text, so that the first call finds it."""
    _job(text.encode(), dispatch.generation())


def compute(text: bytes, inputs: Iterable[int], outputs: Iterable[int]) -> None:
    """Run the plan of a text on buffers, given by their addresses."""
    job = _job(text, dispatch.generation())
    given = [slot.over(address) for slot, address in zip(job.inputs, inputs, strict=True)]
    wanted = [slot.over(address) for slot, address in zip(job.outputs, outputs, strict=True)]
    taken = tuple(a if slot.wide is None else a.astype(slot.wide) for a, slot in zip(given, job.inputs, strict=True))
    made = tuple(
        a if slot.wide is None else np.empty(slot.shape, slot.wide) for a, slot in zip(wanted, job.outputs, strict=True)
    )
    if job.check is not None:
        job.check(taken)
    job.plan.run(taken, made)
    for result, target in zip(made, wanted, strict=True):
        if result is not target:
            target[...] = result


def _addresses(frame: Any, field: int) -> list[int]:
    """Return where the data of a frame's arguments or results are."""
    count = frame[field - 2]
    return [_BUFFER.from_address(b)[_DATA] for b in (_Word * count).from_address(frame[field])] if count else []


_thread = threading.local()


def _keep_thread_state() -> None:
    """Keep what Python knows of this thread of XLA's after the callback, as it is kept for threads of Python's.

    Otherwise it is made anew in every call, and what threads keep for themselves is lost each time, such as scratch
    memory. That is one PyGILState_Ensure too many for each of XLA's threads, which live as long as the process.
    """
    if not hasattr(_thread, "kept"):
        ctypes.pythonapi.PyGILState_Ensure()
        _thread.kept = True


def _handle(address: int) -> int:
    """Handle a call frame; return 0, or the address of an error of XLA's."""
    frame = _FRAME.from_address(address)
    try:
        if _answered_question(frame):
            return 0
        _keep_thread_state()
        text = _TEXT.from_address(_Word.from_address(frame[_ATTRIBUTES]).value)
        compute(ctypes.string_at(*text), _addresses(frame, _ARGS), _addresses(frame, _RETS))
    except BaseException as error:  # noqa: BLE001 - an exception cannot pass through XLA
        return _error(frame[_API], f"{type(error).__name__}: {error}")
    return 0


def _answered_question(frame: Any) -> bool:
    """Whether the frame is no call but XLA's question for the version that this handler speaks; then answer it."""
    extension = frame[_EXTENSION]
    while extension:
        record = (_Word * 4).from_address(extension)
        if record[1] & 0xFFFFFFFF == 1:
            # The minor version is XLA's own: records only grow at their ends.
            _, minor = (ctypes.c_int32 * 2).from_address(frame[_API] + 32)
            version = (ctypes.c_int32 * 2).from_address(record[_METADATA] + 24)
            version[0], version[1] = _MAJOR, minor
            return True
        extension = record[2]
    return False


class _Error(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


def _error(api: int, message: str) -> int:
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Error))(_Word.from_address(api + 48).value)
    size = _Error.code.offset + _Error.code.size
    return int(create(_Error(size, None, message.encode(), _INVALID_ARGUMENT)))


_callback = _Handler(_handle)


def register() -> bool:
    """Register the handler with XLA, once; return False, with a warning, where its interface is not known."""
    with _registering:
        return _registered()


_registering = threading.Lock()


@cache
def _registered() -> bool:
    import jax.ffi

    why = _unknown(jax.ffi)
    if why is not None:
        warnings.warn(f"fastconv.jax goes through jax.experimental.buffer_callback, which copies: {why}", stacklevel=3)
        return False
    handler = ctypes.cast(_callback, ctypes.c_void_p).value
    assert handler is not None
    address = gate.before(handler)
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(address), platform="cpu")
    return True


def _unknown(ffi: Any) -> str | None:
    """Return why the handler cannot be used; None if it can."""
    if ctypes.sizeof(ctypes.c_void_p) != ctypes.sizeof(_Word):
        return "addresses are not of 64 bits"
    header = Path(ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        found = re.search(r"#define XLA_FFI_API_MAJOR (\d+)", header.read_text())
    except OSError:
        found = None
    if found is None or int(found[1]) != _MAJOR:
        return f"jaxlib's foreign function interface is not of version {_MAJOR} ({header})"
    return None
