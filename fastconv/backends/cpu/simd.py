"""Vector code from Python: an emitter of LLVM instructions.

Loops that LLVM is hoped to vectorise do not reach a processor's peak; instructions emitted one by one do
(the idea of LIBXSMM and oneDNN). `Emitter` speaks in whole vectors; the kernels built with it are ordinary
Numba intrinsics, compiled in a tenth of a second and cached on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastconv.backends.cpu import half
from fastconv.backends.cpu.formats import computed, size_of

I64 = ir.IntType(64)
I32 = ir.IntType(32)


def literals(*arguments: Any) -> list[int] | None:
    """Return the values of an intrinsic's arguments; None, which makes Numba try literals, if one is not a literal."""
    if not all(isinstance(argument, types.IntegerLiteral) for argument in arguments):
        return None
    return [argument.literal_value for argument in arguments]


@cache
def _listed(lanes: tuple[int, ...]) -> Any:
    """Return a constant list of lanes: kernels have the same ones a thousand times, and each is long to write."""
    return ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))


class Emitter:
    """Emits instructions on vectors of one element type.

    Addresses are 64-bit integers, in bytes. In memory the elements have a format of their own (`formats`), which is
    converted whenever they are loaded and stored.
    """

    def __init__(self, builder: Any, format: int, lanes: int, fma: bool = True) -> None:
        self.builder = builder
        bits = computed(format)
        self.format, self.has_fma = format, fma
        self.scalar = {32: ir.FloatType(), 64: ir.DoubleType()}[bits]
        self.bytes = size_of(format)
        self.lanes = lanes
        self.vector = ir.VectorType(self.scalar, lanes)
        self._is_half = computed(format) != format
        self._stored = ir.VectorType(half.STORED, lanes) if self._is_half else self.vector
        self._fma = None
        if fma:
            kind = ir.FunctionType(self.vector, [self.vector] * 3)
            self._fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{bits}")

    @property
    def zero(self) -> Any:
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def at(self, base: Any, *terms: Any) -> Any:
        """Return an address: the sum of a base and integers or values."""
        for term in terms:
            if isinstance(term, int):
                if term == 0:
                    continue
                term = I64(term)
            base = self.builder.add(base, term)
        return base

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, I64(factor)) if factor else I64(0)

    def smaller(self, a: Any, b: Any) -> Any:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def opaque(self, value: Any) -> Any:
        """Return an integer as one of which the compiler does not know how it came about."""
        return self.builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], False)

    def rolled(self) -> None:
        """Keep the compiler from repeating the body of a loop of a number of rounds that it does not know."""
        nothing = self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)
        nothing.attributes.add("convergent")

    @property
    def wide(self) -> Emitter:
        """The same on elements that are stored as they are computed."""
        return Emitter(self.builder, computed(self.format), self.lanes, self.has_fma) if self._is_half else self

    def _read(self, stored: Any) -> Any:
        return half.widen(self.builder, self.format, stored) if self._is_half else stored

    def _written(self, value: Any) -> Any:
        return half.narrow(self.builder, self.format, value) if self._is_half else value

    def load(self, address: Any) -> Any:
        loaded = self.builder.load(self.builder.inttoptr(address, self._stored.as_pointer()))
        loaded.align = self.bytes
        return self._read(loaded)

    def store(self, value: Any, address: Any) -> None:
        value = self._written(value)
        stored = self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()))
        stored.align = self.bytes

    def load_few(self, address: Any, count: int) -> Any:
        """Return a shorter vector, of elements that are stored as they are computed."""
        pointer = self.builder.inttoptr(address, ir.VectorType(self.scalar, count).as_pointer())
        loaded = self.builder.load(pointer)
        loaded.align = self.bytes
        return loaded

    def load_integer(self, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, I64.as_pointer()))

    def _load_element(self, address: Any) -> Any:
        loaded = self.builder.load(self.builder.inttoptr(address, self._stored.element.as_pointer()))
        loaded.align = self.bytes
        return loaded

    def load_scalar(self, address: Any) -> Any:
        if self._is_half:
            return self.builder.extract_element(self.load_splat(address), I32(0))
        return self._load_element(address)

    def room(self, count: int) -> Any:
        """Return the address of memory on the stack for so many vectors."""
        place = cgutils.alloca_once(self.builder, ir.ArrayType(self._stored, count))
        return self.builder.ptrtoint(place, I64)

    def prefetch(self, address: Any, write: bool = False, level: int = 1) -> None:
        """Ask for the memory at an address, which need not exist, to be brought near: to be written, to a cache."""
        b = self.builder
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        b.call(function, [b.inttoptr(address, pointer), I32(int(write)), I32(4 - level), I32(1)])

    def splat(self, value: Any) -> Any:
        """Return a vector of one value, a scalar of any type."""
        undefined = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, value, I32(0))
        return self.shuffle(one, undefined, [0] * self.lanes)

    def load_splat(self, address: Any) -> Any:
        return self._read(self.splat(self._load_element(address)))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        if self._fma is None:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        return self.builder.call(self._fma, [a, b, c])

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Return the lanes of two vectors one behind the other that are listed, however long they and the list are."""
        return self.builder.shuffle_vector(a, b, _listed(tuple(lanes)))

    def first(self, count: Any) -> Any:
        """Return a mask of the lanes below a count, which is a value or an integer."""
        if isinstance(count, int):
            return ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), [lane < count for lane in range(self.lanes)])
        lane = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", lane, self.splat(count))

    def _masked(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        suffix = f"v{self.lanes}{'i' if self._is_half else 'f'}{self.bytes * 8}"
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.{name}.{suffix}.p0")

    def load_masked(self, address: Any, mask: Any, otherwise: Any = None) -> Any:
        """Return a vector whose lanes outside the mask are zero, or those of a constant; their memory is not touched.

        No mask: all lanes.
        """
        if mask is None:
            return self.load(address)
        if otherwise is None:
            otherwise = ir.Constant(self._stored, [0 if self._is_half else 0.0] * self.lanes)
        else:
            otherwise = self._written(otherwise)
        if self._is_half and not isinstance(mask, ir.Constant) and not half.has_masks():
            return self._load_whole_or_part(address, mask, otherwise)
        return self._load_under(address, mask, otherwise)

    def _load_under(self, address: Any, mask: Any, otherwise: Any) -> Any:
        pointer = self.builder.inttoptr(address, self._stored.as_pointer())
        kinds = [pointer.type, I32, ir.VectorType(ir.IntType(1), self.lanes), self._stored]
        function = self._masked("load", self._stored, kinds)
        return self._read(self.builder.call(function, [pointer, I32(self.bytes), mask, otherwise]))

    def is_whole(self, mask: Any) -> Any:
        """Return whether all lanes are in a mask."""
        lanes = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("==", self.builder.bitcast(mask, lanes), lanes((1 << self.lanes) - 1))

    def _load_whole_or_part(self, address: Any, mask: Any, otherwise: Any) -> Any:
        b = self.builder
        with b.if_else(self.is_whole(mask), likely=True) as (whole, part):
            with whole:
                all_lanes, after_all = self.load(address), b.block
            with part:
                some_lanes, after_some = self._load_under(address, mask, otherwise), b.block
        value = b.phi(self.vector)
        value.add_incoming(all_lanes, after_all)
        value.add_incoming(some_lanes, after_some)
        return value

    def store_masked(self, value: Any, address: Any, mask: Any) -> None:
        if mask is None:
            self.store(value, address)
        elif self._is_half and isinstance(mask, ir.Constant):
            self._store_first(value, address, sum(lane.constant for lane in mask.constant))
        elif self._is_half and not half.has_masks():
            with self.builder.if_else(self.is_whole(mask), likely=True) as (whole, part):
                with whole:
                    self.store(value, address)
                with part:
                    self._store_under(value, address, mask)
        else:
            self._store_under(value, address, mask)

    def _store_under(self, value: Any, address: Any, mask: Any) -> None:
        pointer = self.builder.inttoptr(address, self._stored.as_pointer())
        kinds = [self._stored, pointer.type, I32, ir.VectorType(ir.IntType(1), self.lanes)]
        function = self._masked("store", ir.VoidType(), kinds)
        self.builder.call(function, [self._written(value), pointer, I32(self.bytes), mask])

    def _store_first(self, value: Any, address: Any, count: int) -> None:
        """Store the first lanes in pieces: LLVM 22 stores 32 bits for one narrowed lane behind a constant mask."""
        done = 0
        while done < count:
            size = 1 << ((count - done).bit_length() - 1)
            self.store_part(value, address, done, size)
            done += size

    def store_part(self, value: Any, address: Any, first: int, count: int) -> None:
        """Store ``count`` lanes from lane ``first`` on, each where a whole vector at the address would have it."""
        written = self._written(value)
        part = self.shuffle(written, written, range(first, first + count))
        pointer = self.builder.inttoptr(self.at(address, first * self.bytes), part.type.as_pointer())
        self.builder.store(part, pointer).align = self.bytes

    def transpose(self, rows: Sequence[Any]) -> list[Any]:
        """Transpose a square of vectors in registers: log2(lanes) rounds of two-input shuffles."""
        result = list(rows)
        step = 1
        while step < self.lanes:
            for i in range(self.lanes):
                if i & step:
                    continue
                a, b = result[i], result[i + step]
                low = [lane if not lane & step else self.lanes + lane - step for lane in range(self.lanes)]
                high = [lane + step if not lane & step else self.lanes + lane for lane in range(self.lanes)]
                result[i], result[i + step] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            step *= 2
        return result

    def any_nan(self, vector: Any) -> Any:
        """Return 1 if a lane is not a number, otherwise 0."""
        lanes = ir.IntType(self.lanes)
        found = self.builder.bitcast(self.builder.fcmp_unordered("uno", vector, vector), lanes)
        return self.builder.zext(self.builder.icmp_unsigned("!=", found, lanes(0)), I64)

    def sums(self, vectors: Sequence[Any]) -> Any:
        """Return a vector of the sums of the lanes of at most as many vectors as it has lanes, halved step by step."""
        result, half = list(vectors), self.lanes // 2
        while half:
            # Every vector holds runs of partial sums of several: their halves are added, two vectors' side by side.
            result += [self.zero] * (len(result) % 2)
            low = [lane for lane in range(2 * self.lanes) if not lane & half]
            high = [lane + half for lane in low]
            pairs = zip(result[::2], result[1::2], strict=True)
            result = [self.builder.fadd(self.shuffle(a, b, low), self.shuffle(a, b, high)) for a, b in pairs]
            half //= 2
        return result[0]

    def unless_zero(
        self, condition: Any, values: Sequence[Any], change: Callable[[list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Return values, changed if an integer is not zero: a branch that is emitted once."""
        b = self.builder
        before, changed, after = b.block, b.append_basic_block("changed"), b.append_basic_block("either")
        b.cbranch(b.icmp_signed("!=", condition, I64(0)), changed, after)
        b.position_at_end(changed)
        new = change(list(values))
        end = b.block
        b.branch(after)
        b.position_at_end(after)
        result = []
        for old, value in zip(values, new, strict=True):
            phi = b.phi(self.vector)
            phi.add_incoming(old, before)
            phi.add_incoming(value, end)
            result.append(phi)
        return result

    def loop(self, count: Any, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]) -> list[Any]:
        """Emit a loop of at least one round; ``body(index, values)`` returns the values of the next round."""
        b = self.builder
        before = b.block
        block = b.append_basic_block("loop")
        after = b.append_basic_block("after")
        b.branch(block)
        b.position_at_end(block)
        index = b.phi(I64)
        values = [b.phi(v.type) for v in carried]
        index.add_incoming(I64(0), before)
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        new = list(body(index, list(values)))
        following = b.add(index, I64(1))
        end = b.block
        index.add_incoming(following, end)
        for phi, value in zip(values, new, strict=True):
            phi.add_incoming(value, end)
        b.cbranch(b.icmp_signed("<", following, count), block, after)
        b.position_at_end(after)
        return new
