"""The micro-kernel of Winograd's convolution: tiles times output channels at one point, summed in registers.

The direct micro-kernel would do, but for two things that count here: each weight is used for few tiles, so it must be
fetched ahead; and the input lies as it is needed, so that every address is a constant away from two pointers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.memory import word
from fastconv.backends.cpu.simd import Emitter, literals


@intrinsic(prefer_literal=True)
def product_tile(typingctx, tiles, vectors, lanes, bits, fused, v, step, chunks, chunk, w, fetch, ahead, target):
    """Compute ``tiles`` rows of ``vectors`` adjacent vectors at ``target``, all sums starting from zero.

    Literal integers: tiles, vectors, lanes, bits (of an element) and fused (multiply-add exists). Input channels lie
    in ``chunks`` of ``chunk``: those of a tile adjacent at ``v``, the next tile's a vector further, the next chunk's
    ``step`` bytes; the weight at ``w`` is as packed: channel, lane. What will be needed next is fetched from ``fetch``,
    ``ahead`` bytes further for each channel: into the second-level cache, since the first holds no more than the
    input, of which the next chunk is fetched.
    """
    given = (tiles, vectors, lanes, bits, fused)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tiles, vectors, lanes, bits, fused = shape
        v, step, chunks, chunk, w, fetch, ahead, target = args[len(shape) :]
        e = Emitter(builder, bits, lanes, bool(fused))
        width = lanes * e.bytes

        def channel(_: Any, values: list[Any]) -> list[Any]:
            source, weight, fetch, upcoming, *sums = values
            factors = [e.load(e.at(weight, k * width)) for k in range(vectors)]
            for k in range(vectors):
                e.prefetch(e.at(fetch, k * width), level=2)
            e.prefetch(upcoming)
            for t in range(tiles):
                value = e.load_splat(e.at(source, t * width))
                for k, factor in enumerate(factors):
                    sums[t * vectors + k] = e.fma(value, factor, sums[t * vectors + k])
            return [
                e.at(source, e.bytes),
                e.at(weight, vectors * width),
                e.at(fetch, ahead),
                e.at(upcoming, width),
                *sums,
            ]

        def several(_: Any, values: list[Any]) -> list[Any]:
            source, weight, fetch, *sums = values
            following = e.at(source, step)
            _, weight, fetch, _, *sums = e.loop(chunk, [source, weight, fetch, following, *sums], channel)
            return [following, weight, fetch, *sums]

        _, _, _, *sums = e.loop(chunks, [v, w, fetch, *[e.zero] * (tiles * vectors)], several)
        for i, total in enumerate(sums):
            e.store(total, e.at(target, i * width))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 8), codegen


@cache
def products(tiles: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled products at all points of a block of ``total`` tiles, ``tiles`` of them at a time.

    ``spans`` is the address of two numbers for each point: the first chunk that has products there, and how many have.
    A plane is a point's stride in bytes, of ``v``, the weight and the result.
    """
    width = lanes * bits // 8
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 10))
    def run(points, total, spans, chunk, v, v_plane, w, w_plane, target, target_plane):
        if sources == 0:
            return
        # What the next point needs of the weight is fetched evenly during the passes of this one.
        passes = (total + tiles - 1) // tiles
        ahead = vectors * width // passes
        for point in range(points):
            first, chunks = word(spans, 2 * point), word(spans, 2 * point + 1)
            source, weight = v + first * total * width, w + first * chunk * vectors * width
            for q in range(0, total, tiles):
                # The last tiles overlap the ones before: what is computed twice comes out the same.
                tile = min(q, total - tiles)
                fetch = weight + w_plane + q // tiles * ahead * chunks * chunk
                product_tile(
                    tiles, vectors, lanes, bits, fused, source + tile * width, total * width, chunks, chunk,
                    weight, fetch, ahead, target + tile * vectors * width,
                )  # fmt: skip
            v += v_plane
            w += w_plane
            target += target_plane

    return run
