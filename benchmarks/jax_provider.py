"""What `fastconv.jax` gains over XLA's own convolutions on the CPU: `python -m benchmarks.jax_provider`.

Transposed, depthwise and grouped convolutions of known networks, forward and both gradients, as JAX programs run them:
under `jax.jit`, weights as arguments, with the functions of `jax.lax` and with fastconv's of the same names. Both take
turns in one process, on the same cores; the table has the times and their ratio, and how far the results differ.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv import options, tuning
from fastconv.machine import available_cores

GOAL = 3.0
"""How many times faster than XLA's these are to be."""

LAYOUTS = {"channels_last": ("NHWC", "HWIO", "NHWC"), "channels_first": ("NCHW", "OIHW", "NCHW")}


class Layer(NamedTuple):
    """A layer: a square input of ``size`` with ``ic`` channels, to ``oc``. Its padding is XLA's ``'SAME'``."""

    family: str
    name: str
    ic: int
    oc: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1


LAYERS = (
    Layer("transposed", "DCGAN", 512, 256, 8, 4, 2),
    Layer("transposed", "DCGAN", 128, 64, 32, 4, 2),
    Layer("transposed", "DCGAN, last", 64, 3, 32, 4, 2),
    Layer("transposed", "U-Net", 512, 256, 16, 2, 2),
    Layer("transposed", "U-Net", 128, 64, 64, 2, 2),
    Layer("depthwise", "MobileNet v2", 96, 96, 112, 3, 2, 96),
    Layer("depthwise", "MobileNet v2", 144, 144, 56, 3, 1, 144),
    Layer("depthwise", "MobileNet v2", 576, 576, 14, 3, 1, 576),
    Layer("depthwise", "EfficientNet", 240, 240, 28, 5, 1, 240),
    Layer("grouped", "ResNeXt", 128, 128, 56, 3, 1, 32),
    Layer("grouped", "ResNeXt", 512, 512, 14, 3, 1, 32),
    Layer("grouped", "ShuffleNet", 240, 240, 28, 1, 1, 3),
)


class Row(NamedTuple):
    """What was measured: seconds of either, and their largest difference as a share of the largest element."""

    layer: Layer
    batch: int
    what: str
    ours: float
    xla: float
    deviation: float

    @property
    def ratio(self) -> float:
        return self.xla / self.ours


def programs(layer: Layer, batch: int, layout: str, module: Any) -> dict[str, Callable[[], Any]]:
    """Return the runs of a layer, forward and gradients, with the functions of `jax.lax` or of `fastconv.jax`."""
    import jax

    numbers, stride = LAYOUTS[layout], (layer.stride, layer.stride)

    def convolve(x: Any, w: Any) -> Any:
        if layer.family == "transposed":
            return module.conv_transpose(x, w, stride, "SAME", dimension_numbers=numbers)
        return module.conv_general_dilated(
            x, w, stride, "SAME", dimension_numbers=numbers, feature_group_count=layer.groups
        )

    rng = np.random.default_rng(0)
    sizes = {"N": batch, "C": layer.ic, "H": layer.size, "W": layer.size}
    kernel = {"O": layer.oc, "I": layer.ic // layer.groups, "H": layer.kernel, "W": layer.kernel}
    x, w = (
        jax.device_put(rng.standard_normal([s[axis] for axis in word], dtype=np.float32))
        for s, word in zip((sizes, kernel), numbers, strict=False)
    )
    dy = jax.device_put(rng.standard_normal(jax.eval_shape(convolve, x, w).shape, dtype=np.float32))
    forward = jax.jit(convolve)
    backward = jax.jit(lambda x, w, dy: jax.vjp(convolve, x, w)[1](dy))
    return {
        "forward": lambda: jax.block_until_ready(forward(x, w)),
        "gradients": lambda: jax.block_until_ready(backward(x, w, dy)),
    }


def measure(layer: Layer, batch: int, layout: str, seconds: float, rest: bool) -> list[Row]:
    """Return a layer's rows; `fastconv.tuning.measure` has the last two arguments."""
    from jax import lax

    import fastconv.jax as fj

    ours, theirs = (programs(layer, batch, layout, module) for module in (fj, lax))
    rows = []
    for what, run in ours.items():
        deviation = _deviation(run(), theirs[what]())
        taken = tuning.measure({"ours": run, "xla": theirs[what]}, seconds, rest)
        rows.append(Row(layer, batch, what, taken["ours"], taken["xla"], deviation))
    return rows


def _deviation(found: Any, expected: Any) -> float:
    import jax

    pairs = zip(map(np.asarray, jax.tree.leaves(found)), map(np.asarray, jax.tree.leaves(expected)), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _line(row: Row) -> str:
    layer = row.layer
    form = f"{layer.name} {layer.ic}->{layer.oc} {layer.kernel}x{layer.kernel} s{layer.stride} g{layer.groups}"
    return (
        f"{layer.family:11} {form:36} {layer.size:4} n{row.batch:<3} {row.what:10}"
        f"{1e3 * row.ours:9.3f} {1e3 * row.xla:9.3f} {row.ratio:7.2f}x  {row.deviation:.1e}"
    )


def _means(rows: Sequence[Row]) -> list[str]:
    """Return the geometric mean and the least ratio of every family."""
    lines = []
    for family, what in dict.fromkeys((row.layer.family, row.what) for row in rows):
        ratios = [row.ratio for row in rows if (row.layer.family, row.what) == (family, what)]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        reached = f"{sum(ratio >= GOAL for ratio in ratios)} of {len(ratios)} reach {GOAL:g}x"
        lines.append(f"{family:11} {what:10} mean {mean:6.2f}x, least {min(ratios):6.2f}x, {reached}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_provider", description=__doc__.splitlines()[0])
    families = list(dict.fromkeys(layer.family for layer in LAYERS))
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last", help="JAX's libraries have channels last")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each row's rounds go on")
    given = parser.parse_args(arguments)
    # XLA makes as many threads as the process has cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    import jax

    print(f"JAX {jax.__version__} on the CPU, {given.threads} threads, {given.layout}; milliseconds")
    print(f"{'':64}{'':11}{'fastconv':>9} {'XLA':>9} {'ratio':>8}  deviation")
    rows = []
    with options(threads=given.threads):
        for layer in LAYERS:
            for batch in given.batches if layer.family in given.families else ():
                for row in measure(layer, batch, given.layout, given.seconds, given.threads > 1):
                    rows.append(row)
                    print(_line(row), flush=True)
    print(*_means(rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
