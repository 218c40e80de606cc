"""Indices of maxima as they are stored: signed integers of 2, 4 or 8 bytes, -1 for none."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.backends.cpu import half
from fastconv.backends.cpu.simd import I32, I64, Emitter


def index_type(e: Emitter) -> Any:
    """Return the type of an index in vectors: an integer as wide as elements are computed."""
    return ir.IntType(8 * e.wide.bytes)


def resized(e: Emitter, value: Any, kind: Any) -> Any:
    """Return a signed integer, or a vector of these, as integers of another type."""
    old, new = (t.element if isinstance(t, ir.VectorType) else t for t in (value.type, kind))
    target = ir.VectorType(new, value.type.count) if isinstance(value.type, ir.VectorType) else new
    if old.width == new.width:
        return value
    return (e.builder.trunc if old.width > new.width else e.builder.sext)(value, target)


def narrowed(e: Emitter, value: Any) -> Any:
    """Return a 64-bit integer, or a vector of these, as indices are in vectors."""
    return resized(e, value, index_type(e))


class Indices:
    """Emits loads and stores of indices of so many bytes."""

    def __init__(self, e: Emitter, size: int) -> None:
        self.e, self.b, self.bytes = e, e.builder, size
        self.stored = ir.VectorType(ir.IntType(8 * size), e.lanes)

    def load_one(self, address: Any) -> Any:
        """Return an index as a 64-bit integer."""
        loaded = self.b.load(self.b.inttoptr(address, self.stored.element.as_pointer()))
        loaded.align = self.bytes
        return resized(self.e, loaded, I64)

    def load(self, address: Any, mask: Any) -> Any:
        """Return a vector of indices, -1 outside the mask."""
        return narrowed(self.e, self._either(mask, self._load, lambda: self._load_under(address, mask), address))

    def store(self, index: Any, address: Any, mask: Any) -> None:
        """Store a vector of indices where the mask is."""
        value = resized(self.e, index, self.stored)

        def whole(address: Any) -> None:
            self.b.store(value, self._pointer(address)).align = self.bytes

        def part() -> None:
            pointer = self._pointer(address)
            function = self._masked("store", ir.VoidType(), [self.stored, pointer.type, I32, mask.type])
            self.b.call(function, [value, pointer, I32(self.bytes), mask])

        self._either(mask, whole, part, address)

    def _either(self, mask: Any, whole: Any, part: Any, address: Any) -> Any:
        """Emit what is done with all lanes, or with those of the mask."""
        if mask is None:
            return whole(address)
        if self.bytes > 2 or half.has_masks():
            return part()
        # One lane after the other, where there are no masks for these: only where it must be.
        with self.b.if_else(self.e.is_whole(mask), likely=True) as (every, some):
            with every:
                first, after_first = whole(address), self.b.block
            with some:
                second, after_second = part(), self.b.block
        if first is None:
            return None
        value = self.b.phi(self.stored)
        value.add_incoming(first, after_first)
        value.add_incoming(second, after_second)
        return value

    def _load(self, address: Any) -> Any:
        loaded = self.b.load(self._pointer(address))
        loaded.align = self.bytes
        return loaded

    def _load_under(self, address: Any, mask: Any) -> Any:
        pointer, none = self._pointer(address), ir.Constant(self.stored, [-1] * self.e.lanes)
        function = self._masked("load", self.stored, [pointer.type, I32, mask.type, self.stored])
        return self.b.call(function, [pointer, I32(self.bytes), mask, none])

    def _pointer(self, address: Any) -> Any:
        return self.b.inttoptr(address, self.stored.as_pointer())

    def _masked(self, name: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, arguments)
        name = f"llvm.masked.{name}.v{self.e.lanes}i{8 * self.bytes}.p0"
        return cgutils.get_or_insert_function(self.b.module, kind, name)
