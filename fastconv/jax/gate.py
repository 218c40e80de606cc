"""The gate before the handler: native code that XLA calls, and that lets no call through once the program ends.

A handler in Python waits for the interpreter's lock. When the interpreter is gone that wait has no end, and the process
neither, since JAX waits for the call. So calls are counted before they ask for the lock, and at exit the gate is
closed and waited at until none is behind it: what XLA calls then has an error for an answer, made without Python.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

_PATIENCE = 30.0  # seconds given to computations that are under way when the program ends
_PAUSE = 0.002
_CANCELLED = 1
_CREATE_ERROR = 6  # which word of XLA's table of functions has that


def before(handler: int) -> int:
    """Return the address of what XLA is to call in place of the handler at an address; close it when the program ends.

    That is done before JAX takes down what would wait for calls: functions run at exit in the reverse of their order.
    """
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(_code(handler)), machine)
    engine.finalize_object()
    enter, close = map(engine.get_function_address, ("enter", "close"))
    engine.detach()  # the code stays as long as the process: XLA may call when nothing of Python is left
    atexit.register(_end, ctypes.CFUNCTYPE(ctypes.c_int64)(close), os.getpid())
    return int(enter)


def _code(handler: int) -> str:
    """Return the two functions: ``enter``, which XLA calls with a frame, and ``close``."""
    from llvmlite import ir

    word, sequential = ir.IntType(64), "seq_cst"
    function = ir.FunctionType(word, [word])
    module = ir.Module("gate")
    inside, closed = (ir.GlobalVariable(module, word, name) for name in ("inside", "closed"))
    for variable in (inside, closed):
        variable.initializer = word(0)

    enter = ir.Function(module, function, "enter")
    build = ir.IRBuilder(enter.append_basic_block())
    build.atomic_rmw("add", inside, word(1), sequential)
    is_open = build.icmp_signed("==", build.load_atomic(closed, sequential, 8), word(0))
    with build.if_else(is_open) as (then, otherwise):
        with then:
            done = build.call(build.inttoptr(word(handler), function.as_pointer()), enter.args)
            after_open = build.block
        with otherwise:
            refused = _refusal(build, enter.args[0])
            after_closed = build.block
    answer = build.phi(word)
    answer.add_incoming(done, after_open)
    answer.add_incoming(refused, after_closed)
    build.atomic_rmw("sub", inside, word(1), sequential)
    build.ret(answer)

    build = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, []), "close").append_basic_block())
    build.atomic_rmw("xchg", closed, word(1), sequential)
    build.ret(build.load_atomic(inside, sequential, 8))
    return str(module)


def _refusal(build: Any, frame: Any) -> Any:
    """Emit the making of an error of XLA's: its record is size, extension, message and code."""
    from llvmlite import ir

    word = ir.IntType(64)

    def at(address: Any, place: int) -> Any:
        return build.load(build.inttoptr(build.add(address, word(8 * place)), word.as_pointer()))

    text = bytearray(b"fastconv: the program has ended\0")
    message = ir.GlobalVariable(build.module, ir.ArrayType(ir.IntType(8), len(text)), "message")
    message.initializer, message.global_constant = ir.Constant(message.value_type, text), True
    record = build.alloca(ir.ArrayType(word, 4))
    fields = (word(28), word(0), build.ptrtoint(message, word), word(_CANCELLED))
    for place, value in enumerate(fields):
        build.store(value, build.gep(record, [word(0), word(place)]))
    create = ir.FunctionType(word, [word]).as_pointer()
    return build.call(build.inttoptr(at(at(frame, 2), _CREATE_ERROR), create), [build.ptrtoint(record, word)])


def _end(close: Callable[[], int], process: int) -> None:
    """Wait for what is under way, and close the gate; ``close`` says how many calls are behind it."""
    if os.getpid() != process:  # a forked child has none of the threads that calls are made on
        return
    try:
        _wait()
    finally:
        while close():
            time.sleep(_PAUSE)


def _wait() -> None:
    """Wait for side effects, as JAX does, and for the arrays that the program has: what runs at exit may read them."""
    import jax

    jax.effects_barrier()
    deadline = time.monotonic() + _PATIENCE
    while not all(a.is_deleted() or a.is_ready() for a in jax.live_arrays()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
