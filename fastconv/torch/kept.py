"""Parameters whose packed form is kept: where nothing is learnt, a convolution packs its weight once.

A record is good as long as the parameter is the same object on the same memory, PyTorch's version counter says that
nobody wrote there, no optimiser has made a step with it (fused ones do not count), and a sample of its elements, which
also shows most of what is written behind PyTorch's back (by ``.data`` or a NumPy view), is as it was.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastconv import choice, dispatch
from fastconv.options import current
from fastconv.torch import rooms
from fastconv.torch.tensors import Tensor, array, optional_array, run

# Forms of call that are kept for one parameter. Each may hold a packed copy: so many at most, and so many bytes of
# the parameter, but two in any case.
_MOST = 8
_MOST_BYTES = 64 << 20
# Elements looked at.
_SAMPLE = 32


class _Record:
    """What was packed of one parameter."""

    __slots__ = ("address", "alias", "bytes", "plans", "sample", "version", "weight")

    def __init__(self, weight: Tensor, sample: Any) -> None:
        key = id(weight)
        self.weight = weakref.ref(weight, lambda _: _records.pop(key, None))
        self.alias = weight.detach()
        self.address, self.version = weight.data_ptr(), weight._version
        self.sample = sample
        self.bytes = sample.tobytes()
        self.plans: OrderedDict[Any, Any] = OrderedDict()

    def holds(self, weight: Tensor) -> bool:
        return (
            self.weight() is weight
            and weight._version == self.version
            and weight.is_set_to(self.alias)
            and weight.data_ptr() == self.address  # which `share_memory_` changes beneath both
            and self.sample.tobytes() == self.bytes
        )


_records: dict[int, _Record] = {}


def _stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
    if _records:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _records.pop(id(parameter), None)


register_optimizer_step_post_hook(_stepped)


def _record(weight: Tensor) -> _Record | None:
    """Return the record of a parameter, made anew if it has changed; None if its changes cannot be followed."""
    record = _records.get(id(weight))
    if record is not None and record.holds(weight):
        return record
    if weight.is_inference() or not weight.numel():
        return None
    flat = array(weight).ravel(order="K")
    if flat.base is None:  # a copy, which would not show changes
        return None
    record = _records[id(weight)] = _Record(weight, flat[:: max(1, flat.size // _SAMPLE)])
    return record


def packed(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[Any, ...]) -> Any:
    """Return a plan of a convolution with this parameter, made before or now; None if it cannot be kept.

    Raises
    ------
    TypeError, ValueError
        What fastconv raises.
    """
    record = _record(weight)
    if record is None:
        return None
    key = (
        function,
        x.shape,
        x.stride(),
        x.dtype,
        window,
        None if bias is None else (bias.data_ptr(), bias.shape, bias.stride(), bias.dtype),
        torch.get_num_threads(),
        current().number,
        dispatch.generation(),
    )
    plan = record.plans.get(key)
    if plan is None:
        arrays = array(x), array(weight), optional_array(bias)
        plan = record.plans[key] = rooms.recycling(run(choice.plan, function, *arrays, *window))
        if len(record.plans) > max(2, min(_MOST, _MOST_BYTES // weight.nbytes)):
            record.plans.popitem(last=False)
    return plan


def forget() -> None:
    """Give the memory of all packed parameters back, and what waits for results; each is packed anew when next met.

    A convolution that records no gradient keeps its parameter's packed form, and makes it again when PyTorch's version
    counter, or an optimiser's step, says that the parameter has changed. What is written behind PyTorch's back, by
    ``.data`` or a NumPy view, is noticed by a sample of the elements only: call this after such a change to a few of
    them. Parameters made in inference mode have no such counter, and are packed in every call.
    """
    _records.clear()
    rooms.forget()
