"""What a window is reduced by, in vectors: the greatest with its index, a sum, or a sum of squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.backends.cpu.formats import FLOAT64
from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.pool.power import raised
from fastconv.backends.cpu.pool.work import FEW
from fastconv.backends.cpu.simd import I64, Emitter

# A norm is the root of a sum of squares, or of another power, which may be computed in two steps.
MAX, SUM, NORM, SQUARES, ROOT, ANY_NORM, POWERS, ANY_ROOT = range(8)


class Reduction:
    """Emits a reduction of vectors. A term is a list: a value and, if ``indexed``, the index of where it stands.

    ``indexed`` is the bytes of an index as it is stored, 0 for none.
    What is multiplied by comes as it is computed; ``target`` is the format that is stored, if not that of what is read.
    ``powers`` is the address of a norm's exponent and of its inverse, which are doubles.

    A maximum in one instruction loses NaN: unless it is ``exact``, the terms are looked through for one, and if
    there is, everything is to be done again exactly.
    """

    def __init__(self, e: Emitter, op: int, indexed: int, exact: bool, powers: Any, target: int | None = None) -> None:
        self.e, self.op, self.indexed, self.exact, self.powers = e, op, indexed, exact, powers
        self.wide, self.target = e.wide, e if target is None else Emitter(e.builder, target, e.lanes)
        self.integer = index_type(e)
        self.indices = ir.VectorType(self.integer, e.lanes)
        fill = -math.inf if op == MAX else 0.0
        # Of padding: less than everything, and after every input of the same value.
        self.border = [ir.Constant(e.vector, [fill] * e.lanes)]
        if indexed:
            self.border.append(self.constant([2 ** (self.integer.width - 1) - 1] * e.lanes))

    @property
    def watches(self) -> bool:
        """Whether NaN is looked for."""
        return self.op == MAX and not self.exact

    def constant(self, values: Sequence[int]) -> Any:
        return ir.Constant(self.indices, list(values))

    def index(self, value: Any) -> Any:
        """Return a vector of one index, a 64-bit integer."""
        return self.e.splat(narrowed(self.e, value))

    def load(self, address: Any, mask: Any = None) -> Any:
        """Return values, or powers of these; outside the mask those of padding."""
        value = self.e.load_masked(address, mask, self.border[0])
        if self.op in (ANY_NORM, POWERS):
            return self._raised(value, 0)
        return self.e.builder.fmul(value, value) if self.op in (NORM, SQUARES) else value

    def _raised(self, value: Any, which: int) -> Any:
        """Return values to the power of a norm's exponent, or of its inverse."""
        exponent = Emitter(self.e.builder, FLOAT64, 1).load_scalar(self.e.at(self.powers, 8 * which))
        if which:
            return raised(self.e, value, exponent)
        e, b = self.e, self.e.builder
        count = b.fptosi(exponent, I64)
        few = b.and_(
            b.fcmp_ordered("==", b.sitofp(count, exponent.type), exponent), b.icmp_signed("<=", count, I64(FEW))
        )

        def product() -> list[Any]:
            return if_any(e, b.sub(count, I64(1)), [value], lambda _, powers: [b.fmul(powers[0], value)])

        return either(e, few, product, lambda: [raised(e, value, exponent)])[0]

    def combine(self, a: list[Any], c: list[Any], ordered: bool = True) -> list[Any]:
        """Return both reduced. ``ordered``: the second stands after the first."""
        b = self.e.builder
        if self.op != MAX:
            return [b.fadd(a[0], c[0])]
        take = b.fcmp_ordered(">", c[0], a[0])
        if self.indexed and not ordered:
            first = b.and_(b.fcmp_ordered("==", c[0], a[0]), b.icmp_signed("<", c[1], a[1]))
            take = b.or_(take, first)
        if self.exact:
            nan = b.fcmp_unordered("uno", c[0], c[0])
            if self.indexed and not ordered:  # the last NaN stays
                nan = b.and_(nan, b.or_(b.fcmp_ordered("ord", a[0], a[0]), b.icmp_signed(">", c[1], a[1])))
            take = b.or_(take, nan)
        return [b.select(take, new, old) for old, new in zip(a, c, strict=True)]

    def has_nan(self, values: Sequence[Any]) -> Any:
        """Return an integer, not zero if a value is NaN."""
        e, b = self.e, self.e.builder
        if not self.watches:
            return I64(0)
        seen = None
        for i in range(0, len(values), 2):
            pair = values[i], values[min(i + 1, len(values) - 1)]
            nan = b.fcmp_unordered("uno", *pair)
            seen = nan if seen is None else b.or_(seen, nan)
        bits = b.bitcast(seen, ir.IntType(e.lanes))
        return b.zext(bits, I64) if e.lanes < 64 else bits

    def finish(self, value: Any, scale: Any, scales: Any, mask: Any) -> Any:
        """Return what is stored of a sum: times a vector and, unless its address is 0, times those of the columns."""
        e, b = self.e, self.e.builder
        if self.op == MAX:
            return value
        value = b.fmul(value, scale)
        if scales is not None:
            value = e.unless_zero(scales, [value], lambda v: [b.fmul(v[0], self.wide.load_masked(scales, mask))])[0]
        if self.op in (ANY_NORM, ANY_ROOT):
            return self._raised(value, 1)
        return self.root(value) if self.op in (NORM, ROOT) else value

    def root(self, value: Any) -> Any:
        e = self.e
        kind = ir.FunctionType(e.vector, [e.vector])
        name = f"llvm.sqrt.v{e.lanes}f{8 * self.wide.bytes}"
        return e.builder.call(cgutils.get_or_insert_function(e.builder.module, kind, name), [value])

    def store(self, term: list[Any], address: Any, indices: Any, mask: Any) -> None:
        """Store values and indices: -1 for that of padding."""
        e, b = self.e, self.e.builder
        self.target.store_masked(term[0], address, mask)
        if not self.indexed:
            return
        padding = b.icmp_signed("==", term[1], self.border[1])
        index = b.select(padding, self.constant([-1] * e.lanes), term[1])
        Indices(e, self.indexed).store(index, indices, mask)


def either(
    e: Emitter, condition: Any, then: Callable[[], Sequence[Any]], otherwise: Callable[[], Sequence[Any]]
) -> list[Any]:
    """Emit a branch, and return the values of the one that is taken."""
    b = e.builder
    blocks = [b.append_basic_block(name) for name in ("then", "otherwise", "after")]
    b.cbranch(condition, *blocks[:2])
    ends = []
    for block, body in zip(blocks[:2], (then, otherwise), strict=True):
        b.position_at_end(block)
        values = list(body())
        ends.append((values, b.block))
        b.branch(blocks[2])
    b.position_at_end(blocks[2])
    phis = []
    for incoming in zip(*(values for values, _ in ends), strict=True):
        phi = b.phi(incoming[0].type)
        for value, (_, block) in zip(incoming, ends, strict=True):
            phi.add_incoming(value, block)
        phis.append(phi)
    return phis


def if_any(e: Emitter, count: Any, carried: list[Any], body: Any) -> list[Any]:
    """Emit a loop of as many rounds, perhaps none."""
    return either(e, e.builder.icmp_signed(">", count, I64(0)), lambda: e.loop(count, carried, body), lambda: carried)


def pick(e: Emitter, vectors: Sequence[Any], places: Sequence[int]) -> Any:
    """Return a vector of the elements that stand at these places of some vectors laid end to end."""
    result = vectors[0]
    chosen = [place if place < e.lanes else 0 for place in places]
    if len(vectors) == 1:
        return result if chosen == list(range(e.lanes)) else e.shuffle(result, result, chosen)
    done = False
    for number, vector in enumerate(vectors[1:], 1):
        here = [number * e.lanes <= place < (number + 1) * e.lanes for place in places]
        if not any(here):
            continue
        kept = [lane if done else first for lane, first in enumerate(chosen)]
        result = e.shuffle(
            result,
            vector,
            [e.lanes + place % e.lanes if new else old for place, new, old in zip(places, here, kept, strict=True)],
        )
        done = True
    return result if done else e.shuffle(result, result, chosen)
