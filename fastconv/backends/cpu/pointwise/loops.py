"""1x1 convolution of maps whose pixels lie together: lanes are pixels, so that nothing is turned round.

A matrix product in place: the weight (output by input channels) times the map (input channels by pixels).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I64, Emitter

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xg xc                  | the input and its strides: image, group, channel
    y yn yk                     | the output and its strides: image, channel
    w wblock blocks             | the packed weight, a block of output channels, how many blocks a group has
    nc oc pixels                | input and output channels of a group, pixels of a map
    bias residual activation    | addresses, 0 for none; the residual lies like y
    groups bands band           | a unit of work: image, group, band of tiles
"""
FIELDS = tuple(name for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split())
JOB = np.dtype([(name, np.int64) for name in FIELDS])


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, vectors, lanes, bits, fused, x, xc, nc, w, y, yk, nk, count, bias, residual, activation):
    """Compute ``rows`` output channels by ``vectors * lanes`` pixels, of which ``nk`` and ``count`` exist."""
    literals = (rows, vectors, lanes, bits, fused)
    if not all(isinstance(a, types.IntegerLiteral) for a in literals):
        return None
    shape = [a.literal_value for a in literals]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit(builder, *shape, *args[len(literals) :])
        return context.get_dummy_value()

    return types.void(*literals, *(types.int64,) * 11), codegen


def _emit(
    builder: Any, rows: int, vectors: int, lanes: int, bits: int, fused: int,
    x: Any, xc: Any, nc: Any, w: Any, y: Any, yk: Any, nk: Any, count: Any, bias: Any, residual: Any, activation: Any,
) -> None:  # fmt: skip
    e = Emitter(builder, bits, lanes, bool(fused))
    width = lanes * e.bytes
    masks = [e.first(builder.sub(count, I64(v * lanes))) for v in range(vectors)]
    is_whole = builder.icmp_signed(">=", count, I64(vectors * lanes))

    def exists(row: int) -> Any:
        return builder.icmp_signed("<", I64(row), nk)

    def bias_of(row: int) -> Any:
        # A row that does not exist reads the last one's.
        last = builder.select(exists(row), I64(row), builder.sub(nk, I64(1)))
        return e.load_splat(e.at(bias, e.times(last, e.bytes)))

    def product(load: Any) -> list[Any]:
        def channel(_: Any, values: list[Any]) -> list[Any]:
            source, weight, *total = values
            pixels = [load(v, e.at(source, v * width)) for v in range(vectors)]
            # The next tile's: what lies a channel apart no processor foresees.
            for v in range(vectors):
                e.prefetch(e.at(source, (vectors + v) * width))
            for r in range(rows):
                factor = e.load_splat(e.at(weight, r * e.bytes))
                for v, value in enumerate(pixels):
                    total[r * vectors + v] = e.fma(factor, value, total[r * vectors + v])
            return [e.at(source, xc), e.at(weight, rows * e.bytes), *total]

        start = e.unless_zero(bias, [e.zero] * rows, lambda _: [bias_of(r) for r in range(rows)])
        return e.loop(nc, [x, w, *(value for value in start for _ in range(vectors))], channel)[2:]

    def finish(sums: list[Any], store: Any, load: Any) -> None:
        def add(values: list[Any]) -> list[Any]:
            # A row that does not exist reads the first one's.
            starts = [e.at(residual, builder.select(exists(r), e.times(yk, r), I64(0))) for r in range(rows)]
            loaded = [load(v, e.at(start, v * width)) for start in starts for v in range(vectors)]
            return [builder.fadd(a, b) for a, b in zip(values, loaded, strict=True)]

        sums = e.unless_zero(residual, sums, add)
        sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
        for r in range(rows):
            with builder.if_then(exists(r), likely=True):
                for v in range(vectors):
                    store(v, sums[r * vectors + v], e.at(y, e.times(yk, r), v * width))

    with builder.if_else(is_whole, likely=True) as (whole, part):
        with whole:
            finish(product(lambda v, a: e.load(a)), lambda v, s, a: e.store(s, a), lambda v, a: e.load(a))
        with part:

            def load(v: int, address: Any) -> Any:
                return e.load_masked(address, masks[v])

            finish(product(load), lambda v, s, a: e.store_masked(s, a, masks[v]), load)


@cache
def loops(rows: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled loops for a tile's shape: ``run(job, start, stop, worker)`` does a range of units."""
    size = bits // 8
    step = vectors * lanes
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        for unit in range(start, stop):
            band, rest = unit % job.bands, unit // job.bands
            group, image = rest % job.groups, rest // job.groups
            x = job.x + image * job.xn + group * job.xg
            first = group * job.oc
            y = image * job.yn + first * job.yk
            for block in range(job.blocks):
                k = block * rows
                w = job.w + (group * job.blocks + block) * job.wblock
                bias = job.bias + (first + k) * size if job.bias else 0
                for pixel in range(band * job.band, min((band + 1) * job.band, job.pixels), step):
                    at = y + k * job.yk + pixel * size
                    residual = job.residual + at if job.residual else 0
                    _tile(
                        rows, vectors, lanes, bits, fused,
                        x + pixel * size, job.xc, job.nc, w, job.y + at, job.yk,
                        job.oc - k, job.pixels - pixel, bias, residual, job.activation,
                    )  # fmt: skip

    return run
