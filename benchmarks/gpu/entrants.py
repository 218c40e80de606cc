"""Who is timed: fastconv's algorithms on CuPy arrays, and cuDNN by way of PyTorch, over the same sets of buffers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.peers.torch import Torch
from fastconv import arrays, dispatch, registry
from fastconv.algorithm import EPSILON, ERROR_CONSTANT, Algorithm, AnyProblem
from fastconv.options import Options, applied
from fastconv.problem import ConvProblem, PoolProblem

# Buffers rotate, so that no run finds its inputs in a cache: sets of them together are so many times its size.
ROTATION = 2.5
# What is predicted to take so many times longer than the best is not timed.
HOPELESS = 20.0


class Entrant(NamedTuple):
    """Something to time: ``run(i)`` computes on the i-th set of buffers.

    ``first()`` returns the first set's result, which may differ from cuDNN's by ``allowed``, as a share of the largest
    element.
    """

    name: str
    layout: str
    chosen: bool
    run: Callable[[int], Any]
    capture: Callable[[Callable[[], None]], Callable[[], None]]
    first: Callable[[], Any]
    allowed: float = 0.0


def sets_of(problem: AnyProblem, cache: int, room: int) -> int:
    """Return how many sets of buffers to rotate: more than the cache holds, no more than memory does."""
    wanted = int(ROTATION * cache // max(1, problem.bytes)) + 1
    return max(1, min(wanted, room // max(1, 2 * problem.bytes), 256))


def fastconv_entrants(problem: AnyProblem, tensors: list[list[Any]], options: Options) -> list[Entrant]:
    """Return every CUDA algorithm that accepts a problem, over sets of PyTorch tensors that they share with PyTorch."""
    choice = dispatch.survey(problem, options)
    usable = [c for c in choice.candidates if c.refusal is None]
    inputs = [tuple(_as_cupy(tensor) for tensor in some) for some in tensors]
    found = []
    for candidate in usable:
        if candidate.seconds > HOPELESS * usable[0].seconds:
            continue
        algorithm = registry.find(candidate.algorithm)
        try:
            with applied(options):
                plan = algorithm.plan(problem)
        except Exception as error:  # noqa: BLE001 - the others go on
            found.append(_failed(candidate.algorithm, problem.layout, error))
            continue
        outputs = [tuple(_empty(operand, problem.layout) for operand in problem.outputs) for _ in inputs]

        def run(i: int, plan: Any = plan, outputs: Any = outputs) -> Any:
            plan.run(inputs[i], outputs[i])

        found.append(
            Entrant(
                candidate.algorithm,
                problem.layout,
                candidate.algorithm == choice.winner,
                run,
                _cupy_graph,
                lambda outputs=outputs: _as_numpy(outputs[0][0]),
                _allowed(algorithm, problem),
            )
        )
    return found


def _allowed(algorithm: Algorithm, problem: AnyProblem) -> float:
    """Return the largest difference from cuDNN's result, as a share of the largest element: both round."""
    return 2 * algorithm.error_bound(problem) + ERROR_CONSTANT * EPSILON[problem.dtype]


def _failed(name: str, layout: str, error: Exception) -> Entrant:
    """Return an entrant whose every run tells why there is none."""

    def run(i: int) -> None:
        raise error

    return Entrant(name, layout, False, run, _cupy_graph, lambda: None)


def torch_entrant(problem: AnyProblem, tensors: list[list[Any]]) -> Entrant | None:
    """Return PyTorch's operator on the same tensors; None if it has none."""
    peer = TorchCuda(problem.layout)
    if peer.refuses(problem.replace(device="cpu", layout="channels_first")) is not None:
        return None
    runs = [peer.on(problem, some) for some in tensors]
    return Entrant(
        "cudnn",
        problem.layout,
        False,
        lambda i: runs[i](),
        _torch_graph,
        lambda: runs[0]().float().cpu().numpy(),
    )


class TorchCuda(Torch):
    """`benchmarks.peers.torch.Torch` on tensors that are on the GPU already."""

    dtypes = ("float32", "float64", "float16", "bfloat16")

    def __init__(self, layout: str) -> None:
        self.layout = layout

    def laid_out(self, tensor: Any) -> Any:
        return laid_out(tensor.cuda(), self.layout)

    def on(self, problem: AnyProblem, tensors: list[Any]) -> Callable[[], Any]:
        """Return a run on some tensors."""
        from benchmarks.peers import torch as peer

        if problem.direction == "fprop":
            forward = peer._pool(problem, tensors[0]) if isinstance(problem, PoolProblem) else None
            return forward or peer._forward(problem, tensors)
        if isinstance(problem, ConvProblem):
            return self._backward(problem, tensors)
        return self._pool_backward(problem, tensors)


def laid_out(tensor: Any, layout: str) -> Any:
    """Return a tensor in a memory order."""
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = layout == "channels_last"
    return tensor.contiguous(memory_format=formats.get(tensor.ndim, torch.contiguous_format)) if last else tensor


def tensors_for(problem: AnyProblem, sets: int) -> list[list[Any]]:
    """Return random inputs on the GPU, several sets of them. Indices of pools are those of a pool."""
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    dtype = getattr(torch, problem.dtype)
    made = []
    for _ in range(sets):
        some = []
        for operand in problem.inputs:
            if operand.dtype == "int64":
                some.append(laid_out(_pool_indices(problem, generator), problem.layout))
            else:
                values = torch.randn(operand.shape, generator=generator, device="cuda").to(dtype)
                some.append(laid_out(values, problem.layout))
        made.append(some)
    return made


def _pool_indices(problem: AnyProblem, generator: Any) -> Any:
    import torch
    from torch.nn import functional

    assert isinstance(problem, PoolProblem)
    x = torch.randn(problem.x_shape, generator=generator, device="cuda")
    pool = getattr(functional, problem.op)
    if problem.is_adaptive:
        return pool(x, problem.output_size, return_indices=True)[1]
    padding = [before for before, _ in problem.padding]
    where = problem.kernel_size, problem.stride, padding, problem.dilation, problem.ceil_mode
    return pool(x, *where, return_indices=True)[1]


# What crosses between the two as integers: DLPack has bfloat16, and not every release of either does.
_NARROW = "bfloat16"


def _as_cupy(tensor: Any) -> Any:
    import cupy
    import torch

    if tensor.dtype == torch.bfloat16:
        return cupy.from_dlpack(tensor.view(torch.int16)).view(arrays.dtype_named(_NARROW))
    return cupy.from_dlpack(tensor)


def _as_numpy(array: Any) -> Any:
    """Return a CuPy array's elements in float32; by way of PyTorch, which needs no compiler for that."""
    import torch

    if array.dtype.name == _NARROW:
        tensor = torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    else:
        tensor = torch.from_dlpack(array)
    return tensor.float().cpu().numpy()


def _empty(operand: Any, layout: str) -> Any:
    import cupy

    return arrays.empty(operand, layout, cupy.empty(0, arrays.dtype_named(operand.dtype)))


def _cupy_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Return what replays a piece of work, captured in a CUDA graph."""
    import cupy

    # The graph writes to its scratch memory whenever it is replayed: that is in a pool which lives as long, and is
    # nobody else's.
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        work()
        stream.synchronize()
        stream.begin_capture()
        work()
        graph = stream.end_capture()

    def replay(pool: Any = pool) -> None:
        graph.launch(cupy.cuda.get_current_stream())

    return replay


def _torch_graph(work: Callable[[], None]) -> Callable[[], None]:
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in itertools.repeat(None, 3):  # cudnn.benchmark looks for its algorithm here
            work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay
