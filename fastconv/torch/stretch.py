"""Layers of a compiled model that follow one another, run on arrays, without PyTorch in between.

To turn a map into an array, the result into a tensor, and to find the plan takes as long as a small layer. A stretch
does all that once for every form of its inputs, and keeps a few buffers for the maps between its layers, which so stay
in the cache.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter, OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from fastconv import choice, pooling
from fastconv.buffers import Life, aligned, shared
from fastconv.choice import BoundPlan
from fastconv.options import current
from fastconv.torch.counting import computed
from fastconv.torch.functional import OFFERS
from fastconv.torch.graph import Compiled
from fastconv.torch.packed import PackedConv, changes
from fastconv.torch.tensors import PLAIN, Tensor, array, eager, optional_array, run, tensor

# Forms of input for which a stretch keeps what it worked out; each has buffers.
_MOST = 8

_POOLS: dict[Any, str] = {
    OFFERS[f"{kind}_pool{ndim}d"]: f"{kind}_pool{ndim}d"
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    for ndim in (1, 2, 3)
}


class _Flattening:
    """Stands for the plan of what makes rows of maps, between a pool and a fully connected layer: a few elements."""

    plain = True

    def __call__(self, input: Any, *, residual: Any = None) -> Any:
        if input.ndim < 2:
            raise ValueError(f"input: expected at least 2 axes, got shape {input.shape}")
        return np.array(input.reshape(len(input), -1), order="C")

    def into(self, out: Any, input: Any, residual: Any = None) -> None:
        """Write an array's rows in the order of its axes, whatever that is in memory."""
        out.reshape(input.shape)[...] = input


class _Step(NamedTuple):
    """A layer: its plan, and which arrays it reads and writes, by number; the first of all is None."""

    plan: BoundPlan | _Flattening
    out: int
    x: int
    residual: int


class _Session:
    """A stretch on inputs of one form. It runs once at a time."""

    def __init__(self, inside: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
        """Make the plans.

        Raises
        ------
        TypeError, ValueError
            What fastconv raises for a layer that it does not compute; also if a plan wants other arrays than come.
        """
        nodes = list(inside.graph.nodes)
        maps = dict(zip(nodes, inputs, strict=False))
        self._steps: list[_Step] = []
        numbers = {None: 0, **{node: number for number, node in enumerate(maps, 1)}}
        for node in nodes[len(inputs) : -1]:
            residual = node.args[1] if node.op == "call_module" and len(node.args) > 1 else None
            x, other = maps[node.args[0]], None if residual is None else maps[residual]
            plan = _plan(inside, node, x, other)
            if not plan.plain:
                raise ValueError(f"{node}: its plan does not take arrays as they are")
            maps[node] = tensor(plan(array(x), residual=optional_array(other)))
            numbers[node] = len(numbers)
            self._steps.append(_Step(plan, numbers[node], numbers[node.args[0]], numbers[residual]))
        results = _results(inside)
        self._given = range(1, 1 + len(inputs))
        self._results = [numbers[node] for node in results]
        self._like = [array(maps[node]) for node in results]
        self._arrays: list[Any] = [None] * len(numbers)
        self._place({numbers[node]: array(value) for node, value in maps.items()})
        names = Counter(_name(inside, node) for node in nodes[len(inputs) : -1] if not _flattens(inside, node))
        self._counts = list(names.items())

    def _place(self, like: dict[int, Any]) -> None:
        """Give every map that does not leave the stretch its room in a buffer."""
        within = [step.out for step in self._steps if step.out not in self._results]
        last = {used: at for at, step in enumerate(self._steps) for used in (step.out, step.x, step.residual)}
        lives = [
            Life(at, last[step.out], like[step.out].nbytes) for at, step in enumerate(self._steps) if step.out in within
        ]
        buffers, sizes = shared(lives)
        rooms = [aligned(size) for size in sizes]
        for number, buffer in zip(within, buffers, strict=True):
            self._arrays[number] = _view_like(like[number], rooms[buffer])

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return a tensor, or a tuple of them."""
        arrays = self._arrays
        for number, given in zip(self._given, inputs, strict=True):
            arrays[number] = array(given)
        for number, like in zip(self._results, self._like, strict=True):
            arrays[number] = np.empty_like(like)
        for plan, out, x, residual in self._steps:
            plan.into(arrays[out], arrays[x], arrays[residual])
        results = [tensor(arrays[number]) for number in self._results]
        for number in (*self._given, *self._results):  # nothing of the caller's is kept
            arrays[number] = None
        for name, count in self._counts:
            computed[name] += count
        return results[0] if len(results) == 1 else tuple(results)


def _plan(inside: fx.GraphModule, node: fx.Node, x: Tensor, residual: Tensor | None) -> BoundPlan | _Flattening:
    if _flattens(inside, node):
        return _Flattening()
    if node.op == "call_module":
        layer: Any = inside.get_submodule(str(node.target))
        planned: BoundPlan = layer.plan(x, residual)
        return planned
    op = getattr(pooling, _POOLS[node.target])
    made: BoundPlan = run(lambda: choice.plan(op, array(x), *node.args[1:], **node.kwargs))
    return made


def _name(inside: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_function":
        return _POOLS[node.target]
    layer: Any = inside.get_submodule(str(node.target))
    name: str = layer.geometry.name
    return name


def _results(inside: fx.GraphModule) -> tuple[fx.Node, ...]:
    (result,) = inside.graph.output_node().args
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def _view_like(like: Any, room: Any) -> Any:
    """Return an array in a room that has the shape, dtype and memory order of another, which has no gaps."""
    order = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])
    dense = room[: like.nbytes].view(like.dtype).reshape([like.shape[axis] for axis in order])
    return dense.transpose(np.argsort(order))


class Stretch(torch.nn.Module):
    """A part of a compiled model: layers and pools that follow one another.

    Parameters
    ----------
    inside : GraphModule
        Of `PackedConv` modules and fastconv's pools. What runs wherever arrays will not do: gradients, tracing, forms
        of input that fastconv leaves to PyTorch.
    """

    def __init__(self, inside: fx.GraphModule) -> None:
        super().__init__()
        self.inside = inside
        self._free: OrderedDict[Any, list[_Session]] = OrderedDict()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the last layer makes, or a tuple of all that is needed later."""
        if torch.compiler.is_compiling() or not eager() or any(type(x) not in PLAIN for x in inputs):
            return self.inside(*inputs)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return self.inside(*inputs)
        forms = [(x.shape, x.stride(), x.dtype, x.device) for x in inputs]
        key = (*forms, torch.get_num_threads(), current(), changes())
        free = self._free.get(key)
        if free is None:
            free = self._begin(key, inputs)
        try:
            session = free.pop()
        except IndexError:  # there is none, or another thread is at it
            return self.inside(*inputs)
        try:
            return session.run(inputs)
        finally:
            free.append(session)

    def _begin(self, key: Any, inputs: tuple[Tensor, ...]) -> list[_Session]:
        """Work a form of inputs out; nothing comes of it where fastconv leaves a layer to PyTorch."""
        free = []
        with suppress(TypeError, ValueError):
            free.append(_Session(self.inside, inputs))
        self._free[key] = free
        while len(self._free) > _MOST:
            self._free.popitem(last=False)
        return free

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_free": OrderedDict()}


def join(traced: fx.GraphModule) -> None:
    """Put a `Stretch` in the place of layers that follow one another in a compiled model's graph."""
    run: list[fx.Node] = []
    for node in list(traced.graph.nodes):
        if _joins(traced, node):
            run.append(node)
            continue
        results = [one for one in run if not one.users.keys() <= set(run)]
        if len(run) > 1 and results:
            _replace(traced, run, results)
        run = []


def _flattens(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node makes one row of every image's map, and no more."""
    if node.op == "call_module":
        module: Any = traced.get_submodule(str(node.target))
        if type(module) is not torch.nn.Flatten or len(node.args) != 1 or node.kwargs:
            return False
        more = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        return not more and (module.start_dim, module.end_dim) == (1, -1)
    return node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs


def _joins(traced: fx.GraphModule, node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if _flattens(traced, node):  # what it makes never leaves a stretch
        return list(node.users) == [node.next] and node.next.args[0] is node and _is_packed(traced, node.next)
    if node.op == "call_module":
        return _is_packed(traced, node)
    if node.op != "call_function" or node.target not in _POOLS or len(node.all_input_nodes) > 1:
        return False
    try:
        given = inspect.signature(OFFERS[_POOLS[node.target]]).bind(*node.args, **node.kwargs).arguments
    except TypeError:
        return False
    sizes = given.get("output_size", ())
    return not given.get("return_indices") and None not in (sizes if isinstance(sizes, tuple | list) else ())


def _is_packed(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and type(traced.get_submodule(str(node.target))) is PackedConv


def _replace(traced: fx.GraphModule, run: list[fx.Node], results: list[fx.Node]) -> None:
    graph, inside = traced.graph, fx.Graph()
    given = dict.fromkeys(node for one in run for node in one.all_input_nodes if node not in run)
    copies = {node: inside.placeholder(node.name) for node in given}
    for node in run:
        copies[node] = inside.node_copy(node, copies.__getitem__)
    inside.output(copies[results[0]] if len(results) == 1 else tuple(copies[node] for node in results))
    name = f"stretch{sum(isinstance(module, Stretch) for module in traced.children())}"
    while hasattr(traced, name):
        name += "_"
    traced.add_module(name, Stretch(Compiled(traced, inside)))
    with graph.inserting_after(run[-1]):
        joined = graph.call_module(name, tuple(given))
    parts = [joined]
    if len(results) > 1:
        with graph.inserting_after(joined):
            parts = [graph.call_function(operator.getitem, (joined, index)) for index in range(len(results))]
    for node, part in zip(results, parts, strict=True):
        node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in run)
    for node in reversed(run):
        graph.erase_node(node)
