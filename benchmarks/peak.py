"""The machine's limits, measured: fused multiply-adds a second, and bytes a second from and to memory."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv import tuning
from fastconv.machine import machine

_SECONDS = 1.0
_ITERATIONS = 500_000
_LEAST_BUFFER = 256 << 20
# Accumulators in flight: enough to hide the latency of every FMA unit there is, few enough for the registers.
CHAINS = {64: 24, 32: 12, 16: 24}


class Peak(NamedTuple):
    """What the machine reached.

    Attributes
    ----------
    threads : int
    flops : float
        Float32 operations a second of independent fused multiply-adds on full vectors.
    bandwidth : float
        Bytes a second, read and written, of a copy far larger than the caches.
    """

    threads: int
    flops: float
    bandwidth: float


def measure_peak(threads: int, seconds: float = _SECONDS) -> Peak:
    """Measure the machine's limits on a number of threads, each limit for about ``seconds``."""
    additions = fma_run(machine().vector_bytes)
    additions.run()
    source = np.ones(_buffer_bytes() // 4, np.float32)
    target = np.zeros_like(source)
    parts = [(target[part], source[part]) for part in _parts(source.size, threads)]
    with ThreadPoolExecutor(threads) as pool:
        add: Callable[[], Any] = partial(_all, pool, additions.run, [()] * threads)
        copy: Callable[[], Any] = partial(_all, pool, np.copyto, parts)
        # One after the other: a copy would leave the processor at another clock for the arithmetic.
        taken = {**tuning.measure({"add": add}, seconds), **tuning.measure({"copy": copy}, seconds)}
    return Peak(
        threads,
        flops=additions.flops * threads / taken["add"],
        bandwidth=2 * source.nbytes / taken["copy"],
    )


class FmaRun(NamedTuple):
    """A run of multiply-adds that wait for nothing, and how many operations it is."""

    run: Callable[[], Any]
    flops: int


def fma_run(vector_bytes: int) -> FmaRun:
    """Return what to time for the peak of one core, on vectors of this width."""
    operations = 2 * CHAINS[vector_bytes] * (vector_bytes // 4)
    return FmaRun(partial(fma_kernel(vector_bytes), _ITERATIONS), operations * _ITERATIONS)


def _all(pool: ThreadPoolExecutor, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    for future in [pool.submit(function, *each) for each in arguments]:
        future.result()


def _parts(size: int, count: int) -> list[slice]:
    edges = [size * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _buffer_bytes() -> int:
    """Return the size of a buffer that the last-level cache does not hold, within an eighth of the memory."""
    cached = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if match := re.fullmatch(r"(\d+)K", path.read_text().strip()):
            cached = max(cached, int(match[1]) << 10)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 * _LEAST_BUFFER
    return min(max(_LEAST_BUFFER, cached), memory // 8)


@cache
def fma_kernel(vector_bytes: int) -> Callable[[int], float]:
    """Return ``kernel(iterations)``, which runs chains of vector multiply-adds that wait for nothing but themselves.

    The loop is written in LLVM IR, so that the vectors are as wide as they should be and the chains stay in registers.
    It lets go of the interpreter's lock.
    """
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    chains, lanes = CHAINS[vector_bytes], vector_bytes // 4

    def define(context: Any, iterations: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), lanes)
            integer = arguments[0].type
            fma = builder.module.declare_intrinsic(f"llvm.fma.v{lanes}f32", (), ir.FunctionType(vector, [vector] * 3))
            constants = [ir.Constant(vector, [value] * lanes) for value in (0.999, 0.001)]
            before, body = builder.block, builder.append_basic_block("chains")
            builder.branch(body)
            builder.position_at_end(body)
            counter = builder.phi(integer)
            sums = [builder.phi(vector) for _ in range(chains)]
            added = [builder.call(fma, [total, *constants]) for total in sums]
            next_counter = builder.add(counter, ir.Constant(integer, 1))
            after = builder.append_basic_block("after")
            builder.cbranch(builder.icmp_signed("<", next_counter, arguments[0]), body, after)
            counter.add_incoming(ir.Constant(integer, 0), before)
            counter.add_incoming(next_counter, body)
            # What begins at one stays there, and LLVM would see that and leave the chain out.
            for i, (total, value) in enumerate(zip(sums, added, strict=True), 2):
                total.add_incoming(ir.Constant(vector, [float(i)] * lanes), before)
                total.add_incoming(value, body)
            builder.position_at_end(after)
            result = added[0]
            for value in added[1:]:
                result = builder.fadd(result, value)
            return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

        return types.float32(types.int64), generate

    chained: Any = intrinsic(define)

    def kernel(iterations: int) -> Any:
        return chained(iterations)

    compiled: Callable[[int], float] = njit("float32(int64)", nogil=True)(kernel)
    return compiled
