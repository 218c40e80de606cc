"""The algorithms, one line each, or one for several that a table makes.

Tests, benchmarks, `explain` and tuning iterate what stands here.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable

from fastconv.algorithm import Algorithm

# Ordered: of two algorithms that are predicted equal, the later one is taken.
_BUILT_IN = (
    "fastconv.backends.reference.conv:Einsum",
    "fastconv.backends.reference.pool:Windows",
    "fastconv.backends.naive.conv:Loops",
    "fastconv.backends.naive.pool:PoolLoops",
    "fastconv.backends.im2col.conv:Gemm",
    "fastconv.backends.im2col.pool:Columns",
    "fastconv.backends.cpu.direct.algorithm:Direct",
    "fastconv.backends.cpu.planes.algorithm:Planes",
    "fastconv.backends.cpu.pointwise.algorithm:Pointwise",
    "fastconv.backends.cpu.pointwise.algorithm:PointwiseInPlace",
    "fastconv.backends.cpu.depthwise.algorithm:Depthwise",
    "fastconv.backends.cpu.depthwise.channels:DepthwiseChannels",
    "fastconv.backends.cpu.depthwise.turned:DepthwiseTurned",
    "fastconv.backends.cpu.depthwise.walked:DepthwiseWalked",
    "fastconv.backends.cpu.fft.algorithm:Fft",
    "fastconv.backends.cpu.gemv.algorithm:Gemv",
    "fastconv.backends.cpu.gemv.algorithm:GemvBatch",
    "fastconv.backends.cpu.gemv.pixels:GemvPixels",
    "fastconv.backends.cpu.local.algorithm:Local",
    "fastconv.backends.cpu.grouped.algorithm:Grouped",
    "fastconv.backends.cpu.depthwise.wgrad:DepthwiseWgrad",
    "fastconv.backends.cpu.depthwise.wgrad_channels:ChannelsWgrad",
    "fastconv.backends.cpu.wgrad.algorithm:Wgrad",
    "fastconv.backends.cpu.wgrad.pixels:PixelsWgrad",
    "fastconv.backends.cpu.gemv.wgrad:GemvWgrad",
    "fastconv.backends.cpu.winograd.wgrad:WinogradWgrad4",
    "fastconv.backends.cpu.winograd.wgrad:WinogradWgrad2x5",
    "fastconv.backends.cpu.winograd.wgrad:WinogradWgrad4x2",
    "fastconv.backends.cpu.winograd.wgrad:WinogradWgrad3x4",
    "fastconv.backends.cpu.pool.algorithm:Pool",
    "fastconv.backends.cpu.pool.algorithm:PoolGradient",
    "fastconv.backends.cpu.unfold.algorithm:Unfold",
    "fastconv.backends.cpu.unfold.algorithm:Fold",
    "fastconv.backends.cpu.winograd.algorithm:ALGORITHMS",
    "fastconv.backends.cpu.winograd_tiles.algorithm:WinogradTiles",
    "fastconv.backends.cpu.dgrad.algorithm:DgradDirect",
    "fastconv.backends.cpu.dgrad.woven:WovenDgrad",
    "fastconv.backends.cpu.dgrad.algorithm:DgradPointwise",
    "fastconv.backends.cpu.dgrad.algorithm:DgradPointwiseInPlace",
    "fastconv.backends.cpu.dgrad.algorithm:DgradDepthwise",
    "fastconv.backends.cpu.dgrad.depthwise:DepthwiseDgrad",
    "fastconv.backends.cpu.dgrad.algorithm:DgradGemv",
    "fastconv.backends.cpu.dgrad.algorithm:DgradGemvBatch",
    "fastconv.backends.cpu.dgrad.algorithm:DgradGrouped",
    "fastconv.backends.cpu.dgrad.grouped:GroupedDgrad",
    "fastconv.backends.cpu.dgrad.folded:FoldedDgrad",
    "fastconv.backends.cpu.dgrad.channels:ChannelsDgrad",
    "fastconv.backends.cpu.dgrad.winograd:ALGORITHMS",
    "fastconv.backends.cpu.dgrad.mixed:DgradMixed",
    "fastconv.backends.cpu.bias_gradient.algorithm:BiasGradient",
    "fastconv.backends.cuda.direct.algorithm:Direct",
    "fastconv.backends.cuda.tensorcore.algorithm:Tensorcore",
    "fastconv.backends.cuda.depthwise.algorithm:Depthwise",
    "fastconv.backends.cuda.grouped.algorithm:Grouped",
    "fastconv.backends.cuda.grouped.algorithm:GroupedWgrad",
    "fastconv.backends.cuda.winograd:Winograd",
    "fastconv.backends.cuda.bias_gradient:BiasGradient",
    "fastconv.backends.cuda.pool.algorithm:Pool",
    "fastconv.backends.cuda.pool.algorithm:PoolGradient",
    "fastconv.backends.cuda.pool.algorithm:Unpool",
    "fastconv.backends.cuda.pool.algorithm:Unfold",
)

_algorithms: dict[str, Algorithm] = {}
_lock = threading.Lock()
_listeners: list[Callable[[], None]] = []


def algorithms() -> tuple[Algorithm, ...]:
    """Return every registered algorithm."""
    if not _algorithms:
        _load()
    return tuple(_algorithms.values())


def find(key: str) -> Algorithm:
    """Return the algorithm of the key ``backend/name``.

    Raises
    ------
    ValueError
        If there is none; the message lists the keys.
    """
    for algorithm in algorithms():
        if algorithm.key == key:
            return algorithm
    raise ValueError(f"algorithm: no {key!r}; registered are {', '.join(a.key for a in algorithms())}")


def register(algorithm: Algorithm) -> Algorithm:
    """Make an algorithm a candidate for every problem it does not refuse.

    Parameters
    ----------
    algorithm : Algorithm
        An instance of a subclass of `fastconv.Algorithm`. One with the same backend and name is replaced.

    Returns
    -------
    Algorithm
        The argument.

    Raises
    ------
    TypeError
        If it is no `Algorithm` instance, or lacks a name or a backend.
    """
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"algorithm: expected an instance of fastconv.Algorithm, got {algorithm!r}")
    for attribute in ("name", "backend"):
        value = getattr(algorithm, attribute, None)
        if not isinstance(value, str) or not value or "/" in value:
            raise TypeError(f"algorithm: {type(algorithm).__name__}.{attribute} must be a word, got {value!r}")
    algorithms()
    with _lock:
        _algorithms[algorithm.key] = algorithm
    _changed()
    return algorithm


def unregister(key: str) -> None:
    """Take the algorithm of the key ``backend/name`` out again."""
    find(key)
    with _lock:
        del _algorithms[key]
    _changed()


def on_change(listener: Callable[[], None]) -> None:
    """Call ``listener`` whenever the registered algorithms change."""
    _listeners.append(listener)


def _changed() -> None:
    for listener in _listeners:
        listener()


def _load() -> None:
    loaded: dict[str, Algorithm] = {}
    for place in _BUILT_IN:
        module, _, name = place.partition(":")
        found = getattr(importlib.import_module(module), name)
        for algorithm in found if isinstance(found, tuple) else (found(),):
            if algorithm.key in loaded:
                raise RuntimeError(f"{algorithm.key} stands twice in the registry")
            loaded[algorithm.key] = algorithm
    with _lock:
        if not _algorithms:
            _algorithms.update(loaded)


def _after_fork() -> None:
    """In a child, where only the thread that forked lives on: nobody is left to release a lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
