"""Small ONNX models, made for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18


def node(op, inputs, outputs, **attributes):
    """Return a node; inputs and outputs are names separated by spaces, ``-`` for one that is left out."""
    names = [["" if name == "-" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op, *names, **attributes)


def described(name):
    """Return what a graph says of an input or output; the evaluator does not look at the type."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4)


def model(nodes, constants=None, *, inputs=("x",), outputs=("y",), opset=OPSET, overridable=(), functions=()):
    """Return a model of nodes; ``constants`` become initializers, some of them graph inputs as well."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [described(name) for name in (*inputs, *overridable)],
        [described(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def integers(shape, dtype=np.float32, seed=0, limit=4):
    """Return whole numbers from -limit to limit, whose sums of products are exact."""
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(dtype)
