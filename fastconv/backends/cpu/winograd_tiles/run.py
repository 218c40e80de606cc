"""Running a convolution with tiles in the lanes: addresses into the records of integers, workers onto the units."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from fastconv.backends.cpu import runner, scratch, threads
from fastconv.backends.cpu.dealing import dealing
from fastconv.backends.cpu.direct.algorithm import Direct
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.runner import fresh
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.winograd_tiles import loops, packing
from fastconv.backends.cpu.winograd_tiles.product import product
from fastconv.backends.cpu.winograd_tiles.transforms import RUN_HEAD
from fastconv.backends.cpu.winograd_tiles.work import EXTENT, Work
from fastconv.problem import Sizes


class Prepared(NamedTuple):
    """A weight made ready, and as it came: NaN and infinity are left to the direct algorithm, which takes that."""

    array: Any
    address: int
    plain: Any


class Runner(runner.Runner):
    """Runs one problem on inputs of any strides, and outputs whose columns lie together."""

    fields = loops.FIELDS
    # Before a run a word is written to the scratch that says whether all is finite.
    own_room = 0

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.room)
        self.work = work
        kind = (work.lanes, 8 * work.size, int(work.simd.fma))
        self._loops = loops.loops(work.points, *kind[:2]).address
        self._pack = packing.pack_kernel(work.m, EXTENT, work.rows, *kind).address
        # The loops look at these by address.
        self._tables = (*work.tables(), work.places(), work.filter_places())
        self._known = self._fields() | {
            "deal": dealing(work.period[1], *kind[:2]).address,
            "product": product(work.rows, work.vectors, *kind).address,
            "enter": loops.entering(EXTENT, *kind).address,
            "leave": loops.leaving(work.m, EXTENT, *kind).address,
        }

    def _fields(self) -> dict[str, int]:
        work = self.work
        activation = "last_activation" if work.problem.residual else "activation"
        f = {activation: self.activation}
        f |= {"groups": work.problem.groups, "ic": work.inputs, "oc": work.outputs, "terms": work.terms}
        f |= {"blocks": work.blocks, "band": work.band, "bands": work.bands}
        f |= {"strip": work.strip, "block_bytes": work.block_bytes}
        f |= {"run_bytes": 8 * (RUN_HEAD + work.m)}
        f |= {"vectors": work.vectors, "rows": work.rows}
        f |= {"beyond": work.beyond, "pitch": work.pitch, "planes_held": work.plane_rows(work.band)}
        f |= dict(zip(("rows_apart", "cols_apart"), work.period, strict=True))
        f |= dict(zip(("first", "last"), work.inner, strict=True))
        f |= {"plane": work.plane_bytes(work.band), "phases": work.phases}
        f |= dict(zip(("table_h", "table_w", "places"), map(address, self._tables), strict=False))
        return f | work.scratch | {"wgroup": self._packed_bytes["group"], "wblock": self._packed_bytes["block"]}

    @property
    def _packed_bytes(self) -> dict[str, int]:
        """Strides of the packed weight: a point, a block of output channels, a group."""
        work = self.work
        point = work.terms * work.rows * work.size
        return {
            "point": point,
            "block": point * work.points,
            "group": work.packed_size // work.problem.groups * work.size,
        }

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        if y[-1] != self.work.size:
            return None
        runs, starts = self.work.runs(y[-2])
        strides = {"xn": x[0], "xc": x[1], "xh": x[-2], "xw": x[-1], "yn": y[0], "yk": y[1], "yh": y[-2]}
        return self._known | strides | {"runs": address(runs), "starts": address(starts)}, self._loops, (runs, starts)

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Any:
        """Return the weight with every phase of every filter transformed."""
        work, plain = self.work, ordered(w, self.work.workers)
        array = new(work.packed_size * work.size)
        # Behind the line for what is met, of which `run` has been given a word.
        f = {"w": address(plain), "packed": address(array), "scratch": scratch.take(self._scratch) + LINE}
        vectors = -(-work.outputs // work.lanes)
        f |= {"ic": work.inputs, "oc": work.outputs, "vectors": vectors, "taps": work.taps}
        f |= {"phases": work.phases, "places": address(self._tables[-1]), "filter_bytes": work.filter_bytes}
        job = record_of(packing.FIELDS, f | self._packed_bytes)
        threads.run(self._pack, address(job), work.problem.groups * vectors, work.workers)
        return Prepared(array, address(array), w)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        finite = ctypes.c_int64.from_address(scratch.take(self._scratch))
        finite.value = 1
        super().run(inputs, outputs)
        if not finite.value:
            # A transform smears NaN and infinity over its tile.
            x, w, *others = inputs
            plain = w.plain if self.problem.prepacked else w
            Direct().plan(self.problem.replace(prepacked=False)).run((x, plain, *others), outputs)
