"""Vectors on their way into a slab of padded input and out of the sums: copied, split by phase, turned."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def put(typingctx, lanes, bits, partial, source, target, count):
    """Store a whole vector: elements from an address, and zeros after the first ``count`` if ``partial``."""
    shape = literals(lanes, bits, partial)
    if shape is None:
        return None
    width, element, is_partial = shape

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, count = args[3:]
        e = Emitter(builder, element, width)
        e.store(e.load_masked(source, e.first(count) if is_partial else None), target)
        return context.get_dummy_value()

    return types.void(lanes, bits, partial, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def put_split(typingctx, lanes, bits, partial, source, even, odd, count):
    """Store two whole vectors: every second element from an address, and those between; see `put`."""
    shape = literals(lanes, bits, partial)
    if shape is None:
        return None
    width, element, is_partial = shape

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, even, odd, count = args[3:]
        e = Emitter(builder, element, width)
        masks = [e.first(e.at(count, -v * width)) if is_partial else None for v in range(2)]
        low, high = (e.load_masked(e.at(source, v * width * e.bytes), masks[v]) for v in range(2))
        for first, target in enumerate((even, odd)):
            e.store(e.shuffle(low, high, range(first, 2 * width, 2)), target)
        return context.get_dummy_value()

    return types.void(lanes, bits, partial, *(types.int64,) * 4), codegen


@intrinsic(prefer_literal=True)
def put_turned(typingctx, lanes, bits, partial, source, zeros, indices, step, stride, target, to_line, count):
    """Store lines of a channel each from vectors of channels.

    Of ``lanes`` pixels, ``indices`` is the address of the first one's number in the source (negative: read ``zeros``
    instead) and ``step`` the bytes to the next one's; pixels lie ``stride`` bytes apart. There are ``count`` channels
    if ``partial``, otherwise ``lanes``. Channels' lines lie ``to_line`` bytes apart.
    """
    shape = literals(lanes, bits, partial)
    if shape is None:
        return None
    width, element, is_partial = shape

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, zeros, indices, step, stride, target, to_line, count = args[3:]
        e = Emitter(builder, element, width)
        mask = e.first(count) if is_partial else None

        def pixel(i: int) -> Any:
            index = e.load_integer(e.at(indices, e.times(step, i)))
            outside = builder.icmp_signed("<", index, I64(0))
            return e.load_masked(builder.select(outside, zeros, e.at(source, builder.mul(index, stride))), mask)

        for c, line in enumerate(e.transpose([pixel(i) for i in range(width)])):
            if not is_partial:
                e.store(line, e.at(target, e.times(to_line, c)))
                continue
            with builder.if_then(builder.icmp_signed("<", I64(c), count)):
                e.store(line, e.at(target, e.times(to_line, c)))
        return context.get_dummy_value()

    return types.void(lanes, bits, partial, *(types.int64,) * 8), codegen


def _finish(e: Emitter, value: Any, residual: Any, activation: Any, mask: Any) -> Any:
    """Add what lies at an address, and apply the activation; 0 for none."""

    def add(values: list[Any]) -> list[Any]:
        return [e.builder.fadd(values[0], e.load_masked(residual, mask))]

    values = e.unless_zero(residual, [value], add)
    return e.unless_zero(activation, values, lambda s: activate(e, s, activation))[0]


@intrinsic(prefer_literal=True)
def take(typingctx, lanes, bits, partial, source, target, residual, activation, count):
    """Store the first ``count`` sums, or all if not ``partial``, with residual and activation (addresses or 0)."""
    shape = literals(lanes, bits, partial)
    if shape is None:
        return None
    width, element, is_partial = shape

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, residual, activation, count = args[3:]
        e = Emitter(builder, element, width)
        mask = e.first(count) if is_partial else None
        e.store_masked(_finish(e, e.load(source), residual, activation, mask), target, mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, partial, *(types.int64,) * 5), codegen


@intrinsic(prefer_literal=True)
def take_turned(typingctx, lanes, bits, partial, source, to_line, target, stride, residual, activation, pixels, count):
    """Store vectors of channels from lines of a channel each.

    ``lanes`` lines are read, ``to_line`` bytes apart. The first ``pixels`` of them are stored ``stride`` bytes apart,
    with ``count`` channels each if ``partial``. ``residual`` lies as the target; see `take`.
    """
    shape = literals(lanes, bits, partial)
    if shape is None:
        return None
    width, element, is_partial = shape

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, to_line, target, stride, residual, activation, pixels, count = args[3:]
        e = Emitter(builder, element, width)
        mask = e.first(count) if is_partial else None
        lines = [e.load(e.at(source, e.times(to_line, c))) for c in range(width)]
        for i, value in enumerate(e.transpose(lines)):
            with builder.if_then(builder.icmp_signed("<", I64(i), pixels)):
                offset = e.times(stride, i)
                there = builder.icmp_signed("!=", residual, I64(0))
                more = builder.select(there, e.at(residual, offset), I64(0))
                e.store_masked(_finish(e, value, more, activation, mask), e.at(target, offset), mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, partial, *(types.int64,) * 8), codegen
