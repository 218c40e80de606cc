"""Running an input gradient: the weight turned round, the forward convolutions, their results brought together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.algorithm import Algorithm
from fastconv.arrays import dtype_named
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.dgrad import interleave, weights
from fastconv.backends.cpu.dgrad.exact import input_gradient
from fastconv.backends.cpu.dgrad.phases import Group
from fastconv.backends.cpu.dgrad.work import Work
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.ordering import in_any_order, ordered
from fastconv.backends.cpu.phases import MOST_WAYS
from fastconv.backends.cpu.scratch import address
from fastconv.problem import AXES

_W, _PARTS, _SPECIAL, _ROOM, _ROOM_BYTES = (
    weights.FIELDS.index(name) for name in ("w", "parts", "special", "room", "room_bytes")
)


class Packed(NamedTuple):
    """A weight turned round, for every group of phases as its forward convolution takes it."""

    weights: list[Any]
    plain: Any  # the weight itself, if it is not finite


class Runner:
    """Runs one problem by a forward algorithm."""

    def __init__(self, work: Work, algorithm: Algorithm) -> None:
        self.work, self.problem = work, work.problem
        self._plans = [algorithm.plan(forward) for forward in work.forward]
        self._is_straight = work.is_straight
        # Offsets among vectors of input channels, one for each kernel position.
        width = work.lanes * work.size
        self._tables = [_table(self.problem.kernel_size, group, width) for group in work.groups]
        parts = [
            (0, len(group.members), group.taps, address(table))
            for group, table in zip(work.groups, self._tables, strict=True)
        ]
        self._parts = np.array(parts, np.int64)
        self._turning = self._describe()
        self._as_view, self._is_padded = work.as_view, work.is_padded
        turned = (slice(None), slice(None), *(slice(None, None, -1),) * self.problem.ndim)
        self._backwards = None if math.prod(self.problem.kernel_size) == 1 else turned
        self._look = weights.looking(work.lanes, work.format).address if work.as_view and work.is_padded else 0
        self._reads = [_part(group) for group in work.groups]
        if work.interleaved:
            self._zeros = np.zeros(
                -(-self.problem.input_size[-1] // self.problem.stride[-1]), dtype_named(self.problem.dtype)
            )
            ways = self.problem.stride[-1] if self.problem.stride[-1] <= MOST_WAYS else 0
            self._weave = interleave.interleaving(ways, work.lanes, work.format).address

    def _describe(self) -> tuple[int, Any, int]:
        """Return the address of the kernel that turns the weight, its job, and its units."""
        work, p = self.work, self.problem
        terms = math.prod(p.kernel_size)
        inputs, outputs = p.oc // p.groups, p.ic // p.groups
        blocks = -(-outputs // work.block)
        fields = {
            "inputs": inputs, "outputs": outputs, "terms": terms, "count": len(work.groups),
            "block": work.block, "blocks": blocks, "room_bytes": work.room_bytes,
        }  # fmt: skip
        how = weights.PICK
        if terms == 1:
            how = weights.TRANSPOSE
        elif work.whole and terms <= work.lanes:
            how = terms
        kernel = 0 if work.as_view else weights.turning(how, work.lanes, work.format).address
        return kernel, record_of(weights.FIELDS, fields), p.groups * blocks

    def pack(self, w: Any) -> Packed:
        """Return the weight as `run` takes it where the problem is prepacked."""
        if self._as_view:
            packed = [plan.pack(self._view(w)) for plan in self._plans]
            return Packed(packed, np.array(w) if self._is_special(w) else None)
        targets = [np.empty(forward.w_shape, w.dtype) for forward in self.work.forward]
        special = self._turn(w, targets)
        packed = [plan.pack(target) for plan, target in zip(self._plans, targets, strict=True)]
        return Packed(packed, np.array(w) if special else None)

    def _view(self, w: Any) -> Any:
        """Return the weight turned by its strides alone."""
        turned = w.swapaxes(0, 1)
        return turned if self._backwards is None else turned[self._backwards]

    def _is_special(self, w: Any) -> bool:
        """Return whether a weight that is not turned must not be multiplied by padding."""
        if not self._is_padded:
            return False
        w = in_any_order(w)
        found = np.array([0, 1], np.int64)
        job = self._turning[1].copy()
        job[_W], job[_SPECIAL] = address(w), address(found)
        threads.run(self._look, address(job), w.shape[0], self.work.workers)
        return bool(found[0])

    def _turn(self, w: Any, targets: list[Any]) -> bool:
        """Turn the weight for every group of phases; return whether it must not be multiplied by padding."""
        w = ordered(w, self.work.workers)
        found = np.array([0, 1], np.int64)
        kernel, known, units = self._turning
        parts, job = self._parts.copy(), known.copy()
        parts[:, 0] = [address(target) for target in targets]
        job[_W], job[_PARTS], job[_SPECIAL] = address(w), address(parts), address(found) if self._is_padded else 0
        job[_ROOM] = scratch.take(int(job[_ROOM_BYTES]) * self.work.workers)
        threads.run(kernel, address(job), units, self.work.workers)
        return bool(found[0])

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        dy, w, *rest = inputs
        if self._is_straight:
            self._plans[0].run((dy, w.weights[0] if self.problem.prepacked else self._view(w), *rest), outputs)
            return
        p, work, (dx,) = self.problem, self.work, outputs
        bias = rest[0] if p.bias != "none" else None
        places = self._places()
        packed = w if p.prepacked else self._packed(w, places)
        if packed.plain is not None:
            input_gradient(p, dy, packed.plain, dx, bias, rest[-1] if p.residual else None)
            return
        writable = not work.interleaved or (dx.strides[-1] == work.size and dx.flags.aligned)
        target = dx if writable else np.empty(dx.shape, dx.dtype)
        added = rest[-1:] if p.residual and work.is_one else []
        biases = [() if bias is None else (self._spread(bias, group),) for group in work.groups]
        if not work.interleaved:  # all at once: elements of other phases are written after it
            self._fill(bias, target)
        for first in range(0, p.n, work.images):
            images = slice(first, first + work.images)
            self._compute(dy[images], packed.weights, [(*b, *added) for b in biases], target[images], places)
        if work.interleaved:
            self._fill(bias, target)
        if p.residual and not work.is_one:
            epilogue.apply(p.activation, target, None, rest[-1])
        if target is not dx:
            dx[...] = target

    def _places(self) -> list[Any]:
        """Return scratch memory: for phases not yet interleaved, and for turned weights."""
        work = self.work
        if not work.places:
            return []
        room = scratch.room(sum(size for _, size in work.places), "dgrad")
        places, start = [], 0
        for shape, size in work.places:
            used = math.prod(shape) * work.size
            places.append(room[start : start + used].view(dtype_named(self.problem.dtype)).reshape(shape))
            start += size
        return places

    def _packed(self, w: Any, places: list[Any]) -> Packed:
        if self._as_view and not self.work.is_packed_once:
            return Packed([], w) if self._is_special(w) else Packed([self._view(w)] * len(self._plans), None)
        if self._as_view:
            return self.pack(w)
        targets = places[-len(self._plans) :]
        if self._turn(w, targets):
            return Packed([], w)
        if self.work.rounds == 1:
            return Packed(targets, None)
        return Packed([plan.pack(target) for plan, target in zip(self._plans, targets, strict=True)], None)

    def _spread(self, bias: Any, group: Group) -> Any:
        """Return the bias for a forward convolution, whose channels are (group, member, channel)."""
        members = len(group.members)
        return bias if members == 1 else np.repeat(bias.reshape(self.problem.groups, 1, -1), members, 1).ravel()

    def _compute(self, dy: Any, packed: list[Any], epilogues: list[Any], dx: Any, places: list[Any]) -> None:
        for index, plan in enumerate(self._plans):
            part = self._reads[index]
            source = dy if part is None else dy[part]
            result = places[index] if self.work.interleaved else dx[self._elements(self.work.groups[index])]
            plan.run((source, packed[index], *epilogues[index]), (result,))
        if self.work.interleaved:
            self._interleave(places, dx)

    def _elements(self, group: Group) -> Any:
        """Return the elements of a gradient that a group of one member is."""
        strides = zip(group.members[0].remainder, self.problem.stride, strict=True)
        return (slice(None), slice(None), *(slice(first, None, step) for first, step in strides))

    def _interleave(self, places: list[Any], dx: Any) -> None:
        work, p = self.work, self.problem
        missing = (1,) * (len(AXES) - p.ndim)
        strides = (*missing, *p.stride)
        zeros = address(self._zeros)
        entries = np.zeros((*strides, interleave.ENTRY // 8), np.int64)
        for index, group in enumerate(work.groups):
            result = places[index].reshape(work.shape_of(index))
            n, g, m, c, *positions = result.strides
            d, h, _ = (0,) * len(missing) + tuple(positions)
            for number, member in enumerate(group.members):
                phase = (0,) * len(missing) + member.remainder
                entries[phase] = address(result) + number * m - zeros, n, g, c, d, h
        depth, height, width = missing + p.input_size
        xn, xc, *rest = dx.strides
        xd, xh, _ = (0,) * len(missing) + tuple(rest)
        fields = {
            "x": address(dx), "xn": xn, "xc": xc, "xd": xd, "xh": xh, "depth": depth, "height": height, "width": width,
            "groups": p.groups, "channels": p.ic // p.groups, "sd": strides[0], "sh": strides[1], "sw": strides[2],
            "table": address(entries), "zeros": zeros,
        }  # fmt: skip
        job = record_of(interleave.FIELDS, fields)
        threads.run(self._weave, address(job), work.images * p.ic, work.workers)

    def _fill(self, bias: Any, dx: Any) -> None:
        """Write the elements to which nothing contributes."""
        work, p = self.work, self.problem
        if not work.empty:
            return
        value = np.zeros((1, p.ic, *(1,) * p.ndim), dtype_named(p.dtype))
        epilogue.apply(
            None if p.residual else p.activation, value, None if bias is None else epilogue.bias_view(p, bias)
        )
        if not value.any():
            if not work.interleaved:
                dx.fill(0)
            return
        if not work.interleaved:
            dx[...] = value
            return
        for group in work.empty:
            for member in group.members:
                dx[self._elements(Group(group.lines, (member,)))] = value


def _table(kernel: tuple[int, ...], group: Group, width: int) -> Any:
    """Return where the taps of every member stand among the weight's kernel positions, ``width`` bytes each."""
    place = np.arange(math.prod(kernel)).reshape(kernel)
    return np.array([place[np.ix_(*member.taps)].ravel() for member in group.members], np.int64) * width


def _part(group: Group) -> Any:
    """Return the part of ``dy`` that a group reads; None for the whole."""
    return (slice(None), slice(None), *(slice(line.start, line.start + line.size) for line in group.lines))
