"""From a form of arrays to launches of `kernels/unpool.cu` and `kernels/unfold.cu`."""

from __future__ import annotations

import math

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.launching import Grid, Kernel, Launch
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, array, fastdiv
from fastconv.backends.cuda.pool.windows import (
    MAP_STRIDES,
    THREADS,
    UNITS,
    WINDOW_AXIS,
    Units,
    channels_fastest,
    map_strides,
    three,
    windows,
)
from fastconv.problem import PoolProblem

_CLAIM_BYTES = 4
# Blocks that clear claims: each goes on where all of them have been.
_MOST_BLOCKS = 4096

UNPOOL = Struct(
    ("source", "indices", "to", "claims"),
    {
        "units": UNITS,
        **dict.fromkeys(("from_strides", "index_strides", "to_strides"), MAP_STRIDES),
        **dict.fromkeys(("small", "large"), array(INT, 3)),
        **dict.fromkeys(("by_small", "by_large"), array(FASTDIV, 2)),
        **dict.fromkeys(("places", "claims_image", "claims_channel", "claims_place", "claims_count"), LONG),
    },
)
UNFOLD = Struct(
    ("source", "to"),
    {
        "units": UNITS,
        "map_strides": MAP_STRIDES,
        **dict.fromkeys(("columns_image", "columns_row", "columns_window"), LONG),
        "axis": array(WINDOW_AXIS, 3),
    },
)


def claim_bytes(problem: PoolProblem) -> int:
    """Return the scratch memory that one image's claims take."""
    return _CLAIM_BYTES * problem.c * math.prod(problem.output_size) if problem.direction == "fprop" else 0


def images_at_once(problem: PoolProblem, max_workspace: int) -> int:
    """Return how many images claim places together: as many as the workspace allows."""
    return max(1, min(problem.n, max_workspace // max(1, claim_bytes(problem))))


def prepare_unpool(problem: PoolProblem, strides: Strides, max_workspace: int) -> Start:
    """Return what unpools, or takes the gradient of that, for arrays of some form."""
    launcher, images = launching.launcher(), images_at_once(problem, max_workspace)
    small, large = three(problem.input_size, 1), three(problem.output_size, 1)
    source, indices, to = strides
    is_last = channels_fastest(to)
    places = math.prod(large)

    def units(count: int, of: tuple[int, int, int], fastest: bool) -> Units:
        return Units(count, problem.c, of, 1, 1, fastest)

    def pack(units: Units, first: int) -> bytes:
        return UNPOOL.pack(
            units=units.packed(first),
            from_strides=map_strides(source),
            index_strides=map_strides(indices),
            to_strides=map_strides(to),
            small=small,
            large=large,
            by_small=[fastdiv(size) for size in small[1:]],
            by_large=[fastdiv(size) for size in large[1:]],
            places=places,
            claims_image=places * problem.c,
            claims_channel=1 if is_last else places,
            claims_place=problem.c if is_last else 1,
            claims_count=units.images * problem.c * places,
        )

    def prepared(name: str) -> Launch:
        kernel = Kernel("unpool.cu", name, (("ELEMENT", ELEMENTS[problem.dtype]),))
        return launcher.prepare(kernel, (THREADS, 1, 1))

    if problem.direction == "dgrad":
        elements = units(problem.n, small, channels_fastest(indices))
        launch, grid, parameters = prepared("unpool_gradient"), elements.grid(), pack(elements, 0)
        return lambda inputs, outputs: launch(grid, parameters, (*inputs, *outputs, None))

    clear, claim, fill = (prepared(f"unpool_{name}") for name in ("clear", "claim", "fill"))
    steps: list[tuple[Launch, Grid, bytes]] = []
    for first in range(0, problem.n, images):
        count = min(images, problem.n - first)
        claimed, filled = units(count, small, channels_fastest(indices)), units(count, large, is_last)
        blocks = min(_MOST_BLOCKS, -(-count * problem.c * places // THREADS))
        steps += [(clear, (blocks,), pack(filled, first))]
        steps += [(claim, claimed.grid(), pack(claimed, first)), (fill, filled.grid(), pack(filled, first))]

    def start(inputs: Arrays, outputs: Arrays) -> None:
        claims = launcher.empty(images * claim_bytes(problem) // _CLAIM_BYTES, "uint32")
        for launch, grid, parameters in steps:
            launch(grid, parameters, (*inputs, *outputs, claims))

    return start


def prepare_unfold(problem: PoolProblem, strides: Strides) -> Start:
    """Return what unfolds or folds, for arrays of some form."""
    launcher, forward = launching.launcher(), problem.direction == "fprop"
    of_map, of_columns = strides if forward else strides[::-1]
    sizes = problem.output_size if forward else problem.input_size
    units = Units(problem.n, problem.c, three(sizes, 1), 1, 1, not forward and channels_fastest(of_map))
    image, row, window = of_columns
    parameters = UNFOLD.pack(
        units=units.packed(),
        map_strides=map_strides(of_map),
        columns_image=image,
        columns_row=row,
        columns_window=window,
        axis=[axis.packed() for axis in windows(problem)],
    )
    kernel = Kernel("unfold.cu", "unfold" if forward else "fold", (("ELEMENT", ELEMENTS[problem.dtype]),))
    launch, grid = launcher.prepare(kernel, (THREADS, 1, 1)), units.grid()
    return lambda inputs, outputs: launch(grid, parameters, (*inputs, *outputs))
