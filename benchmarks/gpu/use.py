"""What a user does with arrays in GPU memory, done there: whole calls, not algorithms by themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import fastconv
from benchmarks.gpu.correctness import lost
from fastconv import testing
from fastconv.notation import parse_problem

CHECKS: dict[str, Callable[[], None]] = {}
# More elements than 31 bits count, in images of this size.
_MANY, _IMAGE = 2**31, (16, 1024, 1024)


# What is said of a check that needs more than there is here.
_NOT_CHECKED = "not checked"


class NotCheckedError(Exception):
    """There is less here than a check needs."""


def check(name: str) -> tuple[str | None, bool]:
    """Return what there is to say of one of the checks, None if all is right; and whether this process lost the GPU."""
    try:
        with fastconv.options(strict=True):  # sums of integers are exact
            CHECKS[name]()
    except NotCheckedError as lack:
        return f"{_NOT_CHECKED}: {lack}", False
    except Exception as error:  # noqa: BLE001 - whatever fails is written down, and the others go on
        return f"{type(error).__name__}: {error}"[:500], lost()
    return None, False


def is_wrong(said: str | None) -> bool:
    """Return whether what was said of a check is that something is wrong."""
    return said is not None and not said.startswith(_NOT_CHECKED)


def _named(run: Callable[[], None]) -> Callable[[], None]:
    CHECKS[run.__name__] = run
    return run


def _there(array: Any, layout: str = "channels_first") -> Any:
    """Return a copy of an array of integers on the current GPU."""
    import cupy

    if layout == "channels_last":
        return np.moveaxis(cupy.asarray(np.ascontiguousarray(np.moveaxis(array, 1, -1))), -1, 1)
    return cupy.asarray(np.ascontiguousarray(array))


def _back(array: Any) -> Any:
    """Return a copy of an array on a GPU, in whichever of the two memory orders it is."""
    if array.flags.c_contiguous:
        return array.get()
    return np.moveaxis(np.moveaxis(array, 1, -1).get(), -1, 1)


def _arguments() -> tuple[Any, Any, Any, Any, Any]:
    """Return x, w and dy of a convolution with padding 1; y, and what gives the gradients, by the reference."""
    problem = parse_problem("conv2d n3 c20 i14 oc24 k3 p1")
    x, w = testing.integer_inputs(problem)
    dy, _ = testing.integer_inputs(problem.replace(direction="dgrad"))
    y, pullback = fastconv.vjp(fastconv.conv2d, x, w, padding=1, backend="reference")
    return x, w, dy, y, pullback


@_named
def calls_and_gradients() -> None:
    x, w, dy, y, pullback = _arguments()
    for layout in ("channels_first", "channels_last"):
        for _ in range(2):  # the second time as it was remembered
            found, back = fastconv.vjp(fastconv.conv2d, _there(x, layout), _there(w), padding=1)
            assert type(found).__module__ == "cupy"
            assert np.array_equal(_back(found), y)
            for gradient, right in zip(back(_there(dy, layout)), pullback(dy), strict=True):
                assert (gradient is None) == (right is None)
                assert right is None or np.array_equal(_back(gradient), right)


@_named
def pools_and_columns() -> None:
    (x,) = testing.integer_inputs(parse_problem("max_pool2d n2 c5 i12 k3"))
    best, indices = fastconv.max_pool2d(_there(x), 3, 2, 1, return_indices=True)
    for found, right in zip((best, indices), fastconv.max_pool2d(x, 3, 2, 1, return_indices=True), strict=True):
        assert np.array_equal(_back(found), right)
    columns = fastconv.unfold(_there(x), 3, padding=1)
    assert np.array_equal(_back(columns), fastconv.unfold(x, 3, padding=1))
    assert np.array_equal(_back(fastconv.fold(columns, (12, 12), 3, padding=1)),
                          fastconv.fold(fastconv.unfold(x, 3, padding=1), (12, 12), 3, padding=1))  # fmt: skip


@_named
def graphs_hold_all_of_a_call() -> None:
    """What is captured runs on the current stream and nowhere else, and again on other data, scratch memory and all."""
    import cupy

    x, w, dy, y, pullback = _arguments()
    arrays = [_there(a) for a in (x, w, dy)]
    results = [_there(np.zeros_like(a)) for a in (y, *pullback(dy)[:2])]

    def work() -> None:
        found, back = fastconv.vjp(fastconv.conv2d, *arrays[:2], padding=1)
        for result, one in zip(results, (found, *back(arrays[2])[:2]), strict=True):
            result.data.copy_from_device_async(one.data, one.nbytes)

    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        work()
        stream.synchronize()
        for result in results:
            result.data.memset_async(0, result.nbytes)
        stream.synchronize()
        stream.begin_capture()
        work()
        graph = stream.end_capture()
    cupy.cuda.Device().synchronize()
    assert not any(_back(result).any() for result in results), "it ran while it was captured"
    for factor in (1, 2):
        arrays[0].set(factor * x)
        arrays[2].set(dy)
        cupy.cuda.Device().synchronize()  # the graph's stream waits for no other, and copies may still be on their way
        graph.launch(stream)
        stream.synchronize()
        for result, right in zip(results, (factor * y, pullback(dy)[0], factor * pullback(dy)[1]), strict=True):
            assert np.array_equal(_back(result), right)


@_named
def more_than_2_to_the_31_elements() -> None:
    import cupy

    images = _MANY // math.prod(_IMAGE) + 2
    free, _ = cupy.cuda.runtime.memGetInfo()
    needed = 6 * images * math.prod(_IMAGE)
    if free < needed:
        raise NotCheckedError(f"of GPU memory {free / 2**30:.0f} GiB are free, {needed / 2**30:.0f} needed")
    x = cupy.zeros((images, *_IMAGE), np.float16)
    x[-1].set(np.random.default_rng(0).integers(-4, 5, _IMAGE).astype(np.float16))
    w = _there(np.random.default_rng(1).integers(-4, 5, (4, _IMAGE[0], 3, 3)).astype(np.float16))
    depthwise = _there(np.random.default_rng(2).integers(-4, 5, (_IMAGE[0], 1, 3, 3)).astype(np.float16))
    for compute in (
        lambda x: fastconv.conv2d(x, w, padding=1),
        lambda x: fastconv.conv2d(x, depthwise, padding=1, groups=_IMAGE[0]),
        lambda x: fastconv.max_pool2d(x, 3, 2, 1),
        lambda x: fastconv.grad.conv2d_weight(x, w.shape, x[:, :4], padding=1),
    ):
        # The other images are zeros, which add nothing to the gradient of a weight.
        assert np.array_equal(compute(x)[-1].get(), compute(x[-1:])[-1].get())


@_named
def no_images() -> None:
    import cupy

    x, w = cupy.empty((0, 3, 8, 8), np.float32), _there(np.ones((4, 3, 3, 3), np.float32))
    assert fastconv.conv2d(x, w).shape == (0, 4, 6, 6)
    assert not fastconv.grad.conv2d_weight(x, w.shape, cupy.empty((0, 4, 6, 6), np.float32)).get().any()


@_named
def arrays_that_do_not_mix() -> None:
    x, w, *_ = _arguments()
    for given in ((x, _there(w)), (_there(x), w)):
        refusal = ""
        try:
            fastconv.conv2d(*given)
        except TypeError as error:
            refusal = str(error)
        assert re.search(r"weight: is a \w+ array on \w+, but input is a \w+ array on \w+", refusal), refusal


@_named
def tensors_of_pytorch() -> None:
    import torch

    x, w, _, y, _ = _arguments()
    found = fastconv.conv2d(torch.from_numpy(x).cuda(), torch.from_numpy(w).cuda(), padding=1)
    assert isinstance(found, torch.Tensor)
    assert found.is_cuda
    assert np.array_equal(found.cpu().numpy(), y)


@_named
def every_gpu() -> None:
    import cupy

    x, w, dy, y, pullback = _arguments()
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(index):
            arrays = [_there(a) for a in (x, w, dy)]
        with cupy.cuda.Device(0):  # the arrays' GPU is used, not this one
            found, back = fastconv.vjp(fastconv.conv2d, *arrays[:2], padding=1)
            gradient = back(arrays[2])[1]
        assert found.device.id == gradient.device.id == index
        assert np.array_equal(_back(found), y)
        assert np.array_equal(_back(gradient), pullback(dy)[1])
