"""A model made ready for inference: `compile_model` traces it and fuses what fastconv can compute in one go."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from fastconv.torch.functional import OFFERS
from fastconv.torch.graph import FUNCTIONS, Compiled
from fastconv.torch.packed import Geometry, PackedConv
from fastconv.torch.stretch import join
from fastconv.torch.tensors import Tensor

_WEIGHTED: dict[type, str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What does nothing in a model that is not trained.
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

# Attributes of a pool's module, in the order in which its function takes them.
_SLIDING = ("kernel_size", "stride", "padding")
_POOLS: dict[str, tuple[str, ...]] = {
    "MaxPool": (*_SLIDING, "dilation", "ceil_mode", "return_indices"),
    "AvgPool": (*_SLIDING, "ceil_mode", "count_include_pad", "divisor_override"),
    "LPPool": ("norm_type", "kernel_size", "stride", "ceil_mode"),
    "AdaptiveAvgPool": ("output_size",),
    "AdaptiveMaxPool": ("output_size", "return_indices"),
}
_POOL_FUNCTIONS = {
    "MaxPool": "max_pool",
    "AvgPool": "avg_pool",
    "LPPool": "lp_pool",
    "AdaptiveAvgPool": "adaptive_avg_pool",
    "AdaptiveMaxPool": "adaptive_max_pool",
}
_POOL_MODULES: dict[type, tuple[str, tuple[str, ...]]] = {
    getattr(nn, f"{kind}{ndim}d"): (f"{_POOL_FUNCTIONS[kind]}{ndim}d", attributes)
    for kind, attributes in _POOLS.items()
    for ndim in (1, 2, 3)
}

_OURS = frozenset(OFFERS.values())

# An activation by function or method, if it is the one that fastconv means by that name.
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    functional.relu6: "relu6",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
}
_ACTIVATION_MODULES: dict[type, str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
# Where functions come from that change nothing in place but by names that say so.
_KNOWN = {"torch", "_operator", "operator", "builtins", "math", "fastconv"}
# What returns memory of its own; of all else that is not known.
_FRESH = {
    *("add", "sub", "mul", "truediv", "div", "floordiv", "pow", "matmul", "mod", "neg", "abs", "exp", "log", "sqrt"),
    *("relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "softmax", "where", "cat", "stack", "clone", "sum", "mean"),
    *("max", "min", "conv1d", "conv2d", "conv3d", "linear", "interpolate"),
}

_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


def compile_model(model: nn.Module) -> nn.Module:
    """Return a model for inference: convolutions and linear layers with packed weights, and what follows them fused.

    The model's graph is taken by `torch.fx`. Batch norms are folded into the convolutions before them; a sum with
    another map (a residual) and ReLU, ReLU6, sigmoid or tanh become part of the layer before; pools are fastconv's.
    All else stays as it is. A model that cannot be traced, or that has hooks or a ``forward`` of its own, is compiled
    module by module, as far as each can be.

    A trace has no data: what the model makes without looking at its input, random numbers among it, is made once, now,
    and is the same in every call. Weights are packed when the first input of a shape arrives, so the first call of each
    shape takes longer.

    Parameters
    ----------
    model : Module
        In evaluation mode (``model.eval()``). It stays as it is. Its parameters are shared where nothing was folded
        into them and must not be changed afterwards.

    Returns
    -------
    Module
        Takes what the model takes. An argument that has a default keeps it: with another value it raises an error.
        Gradients with respect to inputs are computed, those of the packed weights are not.

    Raises
    ------
    TypeError
        If ``model`` is no module.
    ValueError
        If it is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("model: is in training mode, in which batch norms change; call model.eval() before")
    return _compiled(model)


def _compiled(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.ModuleList | nn.ModuleDict) or _does_more(model):
        return _by_children(model)
    try:
        with _unchanged(model):
            traced = Compiled(model, _Tracer().trace(model, concrete_args=_defaults(model)))
    except Exception:  # noqa: BLE001 - whatever a model's code raises when it is given no data
        return _by_children(model)
    fusion = _Fusion(traced)
    if fusion.changes_a_constant():
        return _by_children(model)
    fusion.apply()
    for node in traced.graph.nodes:
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if module is not None and _does_more(module) and module._modules:
            traced.set_submodule(node.target, _by_children(module))
    return traced.eval()


class _Tracer(fx.Tracer):
    """Looks into no module whose call is more than its code."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _does_more(m) or super().is_leaf_module(m, module_qualified_name)


_TABLES = ("_modules", "_buffers", "_parameters")


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give a model and its parts all attributes back in the end: code that is traced may set some."""
    before = [(vars(m), dict(vars(m)), [dict(vars(m)[table]) for table in _TABLES]) for m in model.modules()]
    try:
        yield
    finally:
        for own, attributes, tables in before:
            own.clear()
            own.update(attributes)
            for name, table in zip(_TABLES, tables, strict=True):
                own[name].clear()
                own[name].update(table)


def _does_more(module: nn.Module) -> bool:
    """Whether a call of a module is more than its class says: it has hooks, or functions of its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks or getattr(module, "parametrizations", None)
    return bool(hooks) or not {"forward", "_conv_forward"}.isdisjoint(vars(module))


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is None or isinstance(p.default, bool | int | str)}


def _by_children(model: nn.Module) -> nn.Module:
    """Return a copy of a module that shares all but its children, which are compiled."""
    if getattr(model, "parametrizations", None):  # its weights are what its class makes of others
        return model
    copied = object.__new__(type(model))  # a class may copy itself in ways of its own
    vars(copied).update(vars(model))
    copied._modules = {name: None if m is None else _compiled(m) for name, m in model._modules.items()}
    for name, child in copied._modules.items():
        if isinstance(child, Compiled):
            original = model._modules[name]
            assert original is not None
            if not _is_new(child):
                copied._modules[name] = original
            else:  # the parent may ask it for more than to be called
                child.stands_for = (original,)
    return copied


def _is_new(graph: Compiled) -> bool:
    """Whether anything in a graph is fastconv's."""
    offered = any(node.target in _OURS for node in graph.graph.nodes if node.op == "call_function")
    return offered or any(isinstance(module, PackedConv) for module in graph.modules())


class _Chain(NamedTuple):
    """A convolution and what follows it and can be fused: nodes in order, and what was found in them."""

    nodes: list[fx.Node]
    norm: nn.Module | None
    residual: fx.Node | None
    activation: str | None


class _Fusion:
    """The changes to one graph."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, traced.graph
        self.modules = dict(traced.named_modules())

    def changes_a_constant(self) -> bool:
        """Whether something changes in place, in every call anew, what was made once, while the model was traced."""
        reached = [n for n in self.graph.nodes if n.op == "get_attr" and str(n.target).startswith("_tensor_constant")]
        for node in reached:  # grows
            for user in node.users:
                if self._in_place(user):
                    return True
                if user not in reached and self._may_share(user):
                    reached.append(user)
        return False

    def _may_share(self, node: fx.Node) -> bool:
        """Whether what a node returns may lie in its argument's memory."""
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) in (*_NOTHING, nn.Flatten, nn.Unflatten)
        return node.op in ("call_function", "call_method") and _word(node) not in _FRESH

    def apply(self) -> None:
        """Fuse, and put fastconv's functions in the place of PyTorch's."""
        for node in list(self.graph.nodes):
            if node.op == "call_module" and type(self.modules[node.target]) in _NOTHING and self._bare(node):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
        # Backwards: of the two convolutions that a sum may have, the later one takes it.
        for node in reversed(list(self.graph.nodes)):
            found = self._weighted(node)
            if found is not None:
                self._fuse(node, *found)
        for node in list(self.graph.nodes):
            self._offer(node)
        join(self.traced)
        # No dead code is sought: what changes a tensor in place, or checks an argument, has no user either.
        self.graph.lint()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()

    def _bare(self, node: fx.Node) -> bool:
        """Whether a module's call does what its class says and no more, on one tensor."""
        return not _does_more(self.modules[str(node.target)]) and len(node.args) == 1 and not node.kwargs

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" and self._bare(node) else None

    def _weighted(self, node: fx.Node) -> tuple[Geometry, Tensor, Tensor | None] | None:
        """Return the geometry, weight and bias of a convolution or linear layer, if the node is one to be packed."""
        module = self._module(node)
        name = _WEIGHTED.get(type(module)) if module is not None else None
        if name is None or module is None or getattr(module, "padding_mode", "zeros") != "zeros":
            return None
        if module.weight.device.type != "cpu" or module.weight.dtype not in (torch.float32, torch.float64):
            return None
        m: Any = module
        arguments: tuple[Any, ...]
        if name == "linear":
            arguments = ()
        elif name.startswith("conv_transpose"):
            arguments = m.stride, m.padding, m.output_padding, m.groups, m.dilation
        else:
            arguments = m.stride, m.padding, m.dilation, m.groups
        return Geometry(name, arguments), m.weight, m.bias

    def _fuse(self, conv: fx.Node, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> None:
        chain = self._chain(conv, geometry)
        if chain.norm is not None:
            weight, bias = _folded(weight, bias, chain.norm, geometry)
        packed = PackedConv(geometry, weight, bias, chain.activation)
        name = f"{str(conv.target).replace('.', '_')}_fastconv"
        while hasattr(self.traced, name):
            name += "_"
        self.traced.add_module(name, packed)
        last = chain.nodes[-1]
        args = (conv.args[0],) if chain.residual is None else (conv.args[0], chain.residual)
        with self.graph.inserting_after(last):
            fused = self.graph.call_module(name, args)
        self.modules[name] = packed
        last.replace_all_uses_with(fused)
        for node in reversed(chain.nodes):
            self.graph.erase_node(node)

    def _chain(self, conv: fx.Node, geometry: Geometry) -> _Chain:
        nodes, norm, residual, activation = [conv], None, None, None
        while activation is None and len(nodes[-1].users) == 1:
            (following,) = nodes[-1].users
            if not self._undisturbed(nodes, following):
                break
            module = self._module(following)
            if norm is None and residual is None and _folds(module, geometry):
                norm = module
            elif residual is None and (other := _other_summand(following, nodes[-1])) is not None:
                residual = other
            elif (word := self._activation(following, module)) is not None:
                activation = word
            else:
                break
            nodes.append(following)
        return _Chain(nodes, norm, residual, activation)

    def _undisturbed(self, nodes: list[fx.Node], following: fx.Node) -> bool:
        """Whether a convolution may be computed as late as ``following``: nothing is changed in place before that."""
        node = nodes[-1].next
        while node is not following:
            if self._in_place(node):
                return False
            node = node.next
        return True

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            known = type(module).__module__.startswith("torch.nn") or isinstance(module, PackedConv)
            return not known or bool(getattr(module, "inplace", False))
        name = _word(node)
        augmented = name in ("setitem", "delitem", "setattr") or (name[0] == "i" and hasattr(operator, name[1:]))
        if augmented or name.endswith("_") or "out" in node.kwargs:
            return True
        return node.op == "call_function" and _may_change(node)

    def _activation(self, node: fx.Node, module: nn.Module | None) -> str | None:
        if module is not None:
            if type(module) is nn.LeakyReLU:
                return "leaky_relu" if module.negative_slope == 0.01 else None
            if type(module) is nn.Hardtanh:
                return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
            return _ACTIVATION_MODULES.get(type(module))
        if node.op not in ("call_function", "call_method") or len(node.args) != 1 or node.kwargs.keys() - {"inplace"}:
            return None
        return _ACTIVATION_FUNCTIONS.get(node.target)

    def _offer(self, node: fx.Node) -> None:
        """Put fastconv's function in the place of PyTorch's pool, or of a convolution that was not fused."""
        if node.op == "call_function" and node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
            return
        module = self._module(node)
        if type(module) not in _POOL_MODULES:
            return
        name, attributes = _POOL_MODULES[type(module)]
        arguments = tuple(getattr(module, a) for a in attributes if hasattr(module, a))
        with self.graph.inserting_after(node):
            offered = self.graph.call_function(OFFERS[name], (*node.args, *arguments))
        node.replace_all_uses_with(offered)
        self.graph.erase_node(node)


def _word(node: fx.Node) -> str:
    """Return the name of what a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def _may_change(node: fx.Node) -> bool:
    """Whether a function may change an argument in place: it is told to, or nothing is known of it."""
    module = getattr(node.target, "__module__", None)
    if module is not None and module.partition(".")[0] not in _KNOWN:
        return True
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # PyTorch's own in C++ have none, nor do they take the word
        return False
    return bool(given.get("inplace"))


def _other_summand(node: fx.Node, one: fx.Node) -> fx.Node | None:
    """Return what a node adds to another node's result, if that is another map."""
    if node.op not in ("call_function", "call_method") or node.target not in _SUMS:
        return None
    if node.kwargs or len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    first, second = node.args
    other = second if first is one else first
    in_place = node.target in (operator.iadd, "add_")
    if other is one or not isinstance(other, fx.Node) or (in_place and first is not one):
        return None
    return other


def _folds(norm: Any, geometry: Geometry) -> bool:
    """Whether a module is a batch norm that folds into the layer before it.

    Behind a linear layer it need not normalise what that computes: of (N, L, C) it is L.
    """
    if not isinstance(norm, _NORMS) or geometry.name == "linear":
        return False
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _folded(weight: Tensor, bias: Tensor | None, norm: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that a batch norm follows, as one convolution; computed in float64."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double()
        if bias is not None:
            shift = shift + bias.double()
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if geometry.name.startswith("conv_transpose"):
            groups = geometry.arguments[3]
            shaped = weight.double().unflatten(0, (groups, -1))
            by_channel = scale.view(groups, 1, -1, *(1,) * (weight.dim() - 2))
            product = (shaped * by_channel).flatten(0, 1)
        else:
            product = weight.double() * scale.view(-1, *(1,) * (weight.dim() - 1))
        return product.to(weight.dtype), shift.to(weight.dtype)
