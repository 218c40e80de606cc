"""A layer's forward and backward pass together, by `fastconv.vjp` and by PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastconv as fc
from benchmarks import calls, cases
from benchmarks.measure import pinned
from benchmarks.peers import PEERS
from benchmarks.peers.torch import Torch
from benchmarks.report import Figure
from benchmarks.targets import geometric_mean
from fastconv import networks, testing, tuning
from fastconv.notation import format_problem
from fastconv.problem import ConvProblem

_ASKED = 2.0
# Of a gradient's norm: far above rounding, far below what a wrong one differs by.
_DEVIATION = 1e-3


def layer_steps(every: int = 4, n: int = 1, threads: int = 1, seconds: float = 0.25) -> list[Figure]:
    """Time each K-th distinct convolution of all networks; nothing without PyTorch.

    Raises
    ------
    AssertionError
        If the gradients are not PyTorch's.
    """
    peers = [peer for peer in PEERS if isinstance(peer, Torch) and "dgrad" in peer.directions]
    if peers[0].missing() is not None:
        return []
    some = [case.problem for case in cases.layers(list(networks.NETWORKS), n)[::every]]
    with pinned(threads), tuning.exclusive():
        ratios = [
            _ratio(problem.replace(bias="none", prepacked=False), peers, threads, seconds)
            for problem in some
            if isinstance(problem, ConvProblem)
        ]
    what = "forward and backward of a layer / the best of PyTorch"
    return [
        Figure(f"{what}, mean of {len(ratios)}", _ASKED, geometric_mean(ratios), "x", higher=True),
        Figure(f"{what}, least", 1.0, min(ratios), "x", higher=True),
    ]


def _ratio(problem: ConvProblem, peers: list[Torch], threads: int, seconds: float) -> float:
    (x, w), (dy, _) = (testing.random_inputs(problem.replace(direction=d)) for d in ("fprop", "dgrad"))
    function, settings = calls.forward(problem)

    def own() -> Any:
        _, pullback = fc.vjp(function, x, w, **settings)
        return pullback(dy)[:2]

    runs: dict[str, Callable[[], Any]] = {"fastconv": own}
    for peer in peers:
        if peer.refuses(problem) is None:
            runs[peer.name] = peer.step(problem, (x, w, dy), threads)
    for name, run in runs.items():
        for gradient, expected in zip(run(), own(), strict=True):
            off = np.linalg.norm(np.asarray(gradient) - expected) / np.linalg.norm(expected)
            assert off < _DEVIATION, f"{name} and fastconv differ by {off:.1e} on {format_problem(problem)}"
    taken = tuning.measure(runs, seconds)
    own_seconds = taken.pop("fastconv")
    return min(taken.values()) / own_seconds
