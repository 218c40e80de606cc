"""Problems drawn at random, of every kind that PyTorch has too: where no network has led, weaknesses stay unseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.cases import Case
from fastconv.algorithm import AnyProblem
from fastconv.notation import parse_problem
from fastconv.problem import PoolProblem

# No problem takes long, nor more memory than caches have several times.
_MOST_FLOPS, _MOST_BYTES = 6e8, 60e6
# The longest axis, by the number of axes.
_LONGEST = {1: 20_000, 2: 300, 3: 48}
_KERNELS = (1, 1, 2, 3, 3, 3, 4, 5, 7, 9, 11)
_BATCHES = (1, 1, 1, 2, 4, 8, 16, 32, 64)


class Draw:
    """Draws the words of problems."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def one(self, *choices: int | str) -> str:
        return str(choices[self._random.integers(len(choices))])

    def number(self, low: int, high: int) -> int:
        """Return a number, small ones as likely as large ones."""
        return round(2 ** self._random.uniform(math.log2(low), math.log2(high)))

    def happens(self, share: float) -> bool:
        return bool(self._random.random() < share)

    def along(self, letter: str, ndim: int, value: Callable[[], object], alike: float = 0.7) -> str:
        """Return a word for each axis, for most problems with the same value."""
        axes = "dhw"[3 - ndim :]
        same = value() if self.happens(alike) else None
        return " ".join(f"{letter}{axis}{value() if same is None else same}" for axis in axes)


def convolution(draw: Draw, ndim: int, direction: str) -> str:
    """Return the text of a convolution: dense, grouped, depthwise, of few inputs, or of few outputs."""
    inputs, outputs, groups = draw.number(1, 768), draw.number(1, 768), 1
    kind = draw.one("dense", "dense", "dense", "grouped", "depthwise", "few inputs", "few outputs")
    if kind == "depthwise":
        groups, outputs = inputs, inputs * int(draw.one(1, 1, 1, 2))
    elif kind == "grouped":
        groups = int(draw.one(2, 4, 8, 16, 32))
        inputs, outputs = (-(-count // groups) * groups for count in (inputs, outputs))
    elif kind == "few inputs":
        inputs = int(draw.one(1, 2, 3, 4))
    elif kind == "few outputs":
        outputs = int(draw.one(1, 2, 3, 4))
    dilation = int(draw.one(1, 1, 1, 1, 1, 1, 2, 3))
    words = [
        f"conv{ndim}d:{direction} n{draw.one(*_BATCHES)} ic{inputs} oc{outputs} g{groups}",
        draw.along("i", ndim, lambda: draw.number(4, _LONGEST[ndim])),
        draw.along("k", ndim, lambda: draw.one(*_KERNELS)),
        f"s{draw.one(1, 1, 1, 2, 2, 3, 4)} d{dilation}",
        draw.along("p", ndim, lambda: draw.one(0, 1, 1, 2, 3)),
    ]
    if direction == "fprop":
        words += ["prepacked"] * draw.happens(0.5) + ["bias"] * draw.happens(0.3)
    return " ".join(words)


def linear(draw: Draw, ndim: int, direction: str) -> str:
    """Return the text of a fully connected layer."""
    packed = " prepacked" if direction == "fprop" and draw.happens(0.5) else ""
    return f"linear:{direction} n{draw.number(1, 300)} c{draw.number(8, 4096)} oc{draw.number(4, 4096)}{packed}"


def pool(kind: str) -> Callable[[Draw, int, str], str]:
    """Return what draws the text of a pool."""

    def text(draw: Draw, ndim: int, direction: str) -> str:
        head = f"{kind}_pool{ndim}d:{direction} n{draw.one(1, 1, 2, 4, 16)} c{draw.number(1, 512)}"
        size = draw.along("i", ndim, lambda: draw.number(4, _LONGEST[ndim]))
        if kind.startswith("adaptive"):
            return f"{head} {size} {draw.along('o', ndim, lambda: draw.one(1, 2, 4, 6, 7, 8))}"
        windows = draw.along("k", ndim, lambda: draw.one(2, 2, 3, 3, 5, 7))
        padding = "norm2" if kind == "lp" else f"p{draw.one(0, 1)}"
        return f"{head} {size} {windows} s{draw.one(1, 2, 2, 2, 3)} {padding}"

    return text


def unfold(draw: Draw, ndim: int, direction: str) -> str:
    """Return the text of an unfold, or of a fold."""
    head = f"unfold:{direction} n{draw.one(1, 4, 16)} c{draw.number(1, 256)} i{draw.number(6, 200)}"
    return f"{head} k{draw.one(2, 3, 5, 7)} s{draw.one(1, 2, 3)} p{draw.one(0, 1)}"


_POOLS = ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
_ALL, _FORWARD, _BOTH = ("fprop", "dgrad", "wgrad"), ("fprop",), ("fprop", "dgrad")

#: By op: what draws its text, its axes, and its directions as far as PyTorch has an operator for them.
OPS: dict[str, tuple[Callable[[Draw, int, str], str], int, tuple[str, ...]]] = {
    **{f"conv{ndim}d": (convolution, ndim, _ALL) for ndim in (2, 1, 3)},
    "linear": (linear, 0, _ALL),
    **{
        f"{kind}_pool{ndim}d": (pool(kind), ndim, _BOTH if ndim == 2 and kind in ("max", "avg") else _FORWARD)
        for kind in _POOLS
        for ndim in (2, 1, 3)
    },
    "unfold": (unfold, 2, _BOTH),
}


def cases(
    count: int, seed: int, ops: Sequence[str] = tuple(OPS), layouts: Sequence[str] = ("channels_first",)
) -> list[Case]:
    """Return so many cases of each op, direction and layout that it has; the same ones for the same seed."""
    found = []
    for op in ops:
        _, _, directions = OPS[op]
        for layout in (layout for layout in layouts if layout in layouts_of(op)):
            for direction in directions:
                problems = _problems(op, direction, layout, Draw(seed))
                found += [Case(f"{name(op, direction, layout)}/{i}", next(problems)) for i in range(count)]
    return found


def layouts_of(op: str) -> tuple[str, ...]:
    """Return the memory orders that PyTorch has of an op's maps: channels-last ones of planes and of volumes."""
    _, ndim, _ = OPS[op]
    return ("channels_first", "channels_last") if ndim > 1 and op != "unfold" else ("channels_first",)


def name(op: str, direction: str, layout: str = "channels_first") -> str:
    """Return what stands before the number of such a case."""
    return f"random {'' if layout == 'channels_first' else 'channels-last '}{op} {direction}"


def _problems(op: str, direction: str, layout: str, draw: Draw) -> Iterator[AnyProblem]:
    text, ndim, _ = OPS[op]
    while True:
        try:
            problem = parse_problem(text(draw, ndim, direction)).replace(layout=layout)
        except ValueError:  # a kernel larger than the padded map, for one
            continue
        if isinstance(problem, PoolProblem):
            problem = problem.replace(index_dtype=problem.index_dtypes[-1] if direction == "dgrad" else "int64")
        if 0 < problem.flops <= _MOST_FLOPS and problem.bytes <= _MOST_BYTES:
            yield problem
