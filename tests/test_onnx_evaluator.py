"""`fastconv.onnx.prepare` and `Evaluator`: what is fused and what is not, packing, options, errors."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from fresh import python
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_models import described, integers, model, node

import fastconv as fc
import fastconv.onnx
from fastconv.onnx import packed

X = integers((2, 3, 7, 6))
C = 4
# A BatchNormalization with epsilon=0 and these divides by two, four, ...: exactly.
NORMALIZATION = {
    "scale": np.array([1, -2, 4, 8], np.float32),
    "bias": integers(C, seed=1),
    "mean": integers(C, seed=2),
    "var": np.array([4, 16, 4, 64], np.float32),
}
CONSTANTS = {
    "w": integers((C, 3, 3, 3), seed=3),
    "b": integers(C, seed=4),
    "wt": integers((3, C, 2, 2), seed=5),
    "w2": integers((C, C, 1, 1), seed=6),
    "m": np.array([1, 2, -4, 0.5], np.float32).reshape(C, 1, 1),
    "a": integers((1, C, 1, 1), seed=7),
    "two": np.float32(2),
    "six": np.float32(6),
    "zero": np.float32(0),
    **NORMALIZATION,
}
CONV = node("Conv", "x w b", "c", pads=[1, 1, 1, 1])


def norm(of, to):
    return node("BatchNormalization", f"{of} scale bias mean var", to, epsilon=0.0)


def relu(of, to="y"):
    return node("Relu", of, to)


def used(nodes, outputs=("y",)):
    names = {name for n in nodes for name in n.input}
    return model(nodes, {k: v for k, v in CONSTANTS.items() if k in names}, outputs=outputs)


# nodes after one another: what becomes of them
CHAINS = {
    "relu": ([CONV, relu("c")], ["Conv+Relu"]),
    "normalised": ([CONV, norm("c", "y")], ["Conv+BatchNormalization"]),
    "normalised, relu": ([CONV, norm("c", "n"), relu("n")], ["Conv+BatchNormalization+Relu"]),
    "no bias": ([node("Conv", "x w", "c"), norm("c", "n"), relu("n")], ["Conv+BatchNormalization+Relu"]),
    "scaled": (
        [CONV, norm("c", "n"), node("Mul", "n m", "s"), node("Add", "a s", "t"), relu("t")],
        ["Conv+BatchNormalization+Mul+Add+Relu"],
    ),
    "scalar": ([CONV, node("Mul", "c two", "s"), node("Add", "two s", "y")], ["Conv+Mul+Add"]),
    "relu6": ([CONV, node("Clip", "c zero six", "y")], ["Conv+Clip"]),
    "other limits": ([CONV, node("Clip", "c two six", "y")], ["Conv", "Clip"]),
    "leaky": ([CONV, node("LeakyRelu", "c", "y", alpha=0.01)], ["Conv+LeakyRelu"]),
    "more leaky": ([CONV, node("LeakyRelu", "c", "y", alpha=0.25)], ["Conv", "LeakyRelu"]),
    "residual": (
        [node("Conv", "x w b", "r", pads=[1, 1, 1, 1]), relu("r", "s"), node("Conv", "s w2", "c"),
         norm("c", "n"), node("Add", "n s", "t"), relu("t")],
        ["Conv+Relu", "Conv+BatchNormalization+Add+Relu"],
    ),
    "two branches": (
        [CONV, norm("c", "n"), node("Conv", "x w", "d", pads=[1, 1, 1, 1]), node("Sum", "n d", "t"), relu("t")],
        ["Conv", "Conv+BatchNormalization+Sum+Relu"],
    ),
    "residual of another shape": (
        [CONV, node("GlobalMaxPool", "c", "g"), node("Conv", "c w2", "d"), node("Add", "d g", "t"), relu("t")],
        ["Conv", "GlobalMaxPool", "Conv+Add+Relu"],
    ),
    "twice the same": ([CONV, node("Add", "c c", "y")], ["Conv", "Add"]),
    "two users": ([CONV, relu("c", "r"), norm("c", "n"), node("Mul", "r n", "y")],
                  ["Conv", "Relu", "BatchNormalization", "Mul"]),
    "transposed": (
        [node("ConvTranspose", "x wt b", "c", strides=[2, 2]), norm("c", "n"), relu("n")],
        ["ConvTranspose+BatchNormalization+Relu"],
    ),
    "normalised first": (
        [CONV, node("MaxPool", "c", "p", kernel_shape=[2, 2]), norm("p", "n"), node("Mul", "n m", "s"),
         node("Add", "s a", "t"), relu("t")],
        ["Conv", "MaxPool", "BatchNormalization+Mul+Add+Relu"],
    ),
    "constants computed": (
        [node("Unsqueeze", "b k", "u"), CONV, node("Mul", "c u", "s"), relu("s")],
        ["Conv+Mul+Relu"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chain_becomes_these_steps_and_means_the_same(name):
    nodes, expected = CHAINS[name]
    constants = {**CONSTANTS, "k": np.array([1, 2])}
    names = {i for n in nodes for i in n.input}
    proto = model(nodes, {k: v for k, v in constants.items() if k in names})
    session = fastconv.onnx.Evaluator(proto)
    assert session.steps == expected
    with fc.options(backend="reference"):
        (reference,) = ReferenceEvaluator(proto, new_ops=fastconv.onnx.ops()).run(None, {"x": X})
    assert reference.any()
    with fc.options(strict=True):  # whole numbers: plain sums of them are exact
        for evaluator in (session, fastconv.onnx.Evaluator(proto, fuse=False)):
            (result,) = evaluator.run(None, {"x": X})
            assert result.dtype == reference.dtype and np.array_equal(result, reference)


@pytest.mark.parametrize("c", [None, (), (1,), (5,), (1, 5), (2, 5), (2, 1)])
@pytest.mark.parametrize("transposed", [{}, {"transB": 1}, {"transA": 1, "alpha": 2.0, "beta": 0.5}])
def test_gemm(c, transposed):
    a = integers((3, 2) if "transA" in transposed else (2, 3))
    b = integers((5, 3) if "transB" in transposed else (3, 5), seed=1)
    constants = {"b": b} if c is None else {"b": b, "c": 2 * integers(c, seed=2)}
    proto = model([node("Gemm", "x b" if c is None else "x b c", "g", **transposed), relu("g")], constants)
    expected = (a.T if "transA" in transposed else a) @ (b.T if "transB" in transposed else b)
    expected = transposed.get("alpha", 1) * expected + transposed.get("beta", 1) * constants.get("c", 0)
    session = fastconv.onnx.Evaluator(proto)
    assert (session.steps == ["Gemm+Relu"]) == (c is None or c == (5,) or np.prod(c) in (1, 5))
    assert np.array_equal(session.run(None, {"x": a})[0], np.maximum(expected, 0))


def test_a_normalisation_alone_takes_any_dimensions():
    nodes = [norm("x", "n"), node("Mul", "n m", "s"), relu("s")]
    session = fastconv.onnx.Evaluator(used(nodes))
    assert session.steps == ["BatchNormalization+Mul+Relu"]
    plain = fastconv.onnx.Evaluator(used(nodes), fuse=False)
    # The constant's shape (C, 1, 1) means channels in four dimensions alone.
    for shape in ((2, C, 3, 5), (C, C, 4), (2, C)):
        x = integers(shape)
        assert np.array_equal(session.run(None, {"x": x})[0], plain.run(None, {"x": x})[0])


def test_a_normalisation_alone_takes_half_types_and_no_images():
    """Its constants may be of another type than what it normalises."""
    nodes = [norm("x", "n"), node("Relu", "n", "y")]
    session, plain = (fastconv.onnx.Evaluator(used(nodes), fuse=fuse) for fuse in (True, False))
    for x in (integers((2, C, 3, 5)).astype(np.float16), integers((0, C, 3, 5))):
        (result,), (expected,) = session.run(None, {"x": x}), plain.run(None, {"x": x})
        assert result.dtype == expected.dtype and np.array_equal(result, expected)


@pytest.mark.parametrize("constant", [False, True])
def test_an_output_that_is_not_wanted_is_no_absent_input(constant):
    """Here the unnamed values of a TopK must not become the lower limit of a Clip."""
    top = helper.make_node("TopK", ["a" if constant else "x", "k"], ["", "places"])
    clip = helper.make_node("Clip", ["x", "", "two"], ["y"])
    cast = helper.make_node("Cast", ["places"], ["p"], to=1)
    constants = {"k": np.array([1]), "two": np.float32(2), "a": CONSTANTS["a"]}
    names = {name for n in (top, clip, cast) for name in n.input}
    proto = model([top, cast, clip], {k: v for k, v in constants.items() if k in names}, outputs=("y", "p"))
    session = fastconv.onnx.Evaluator(proto)
    assert np.array_equal(session.run(["y"], {"x": X})[0], np.minimum(X, 2))


def test_sums_of_any_number():
    for names in (["x"], ["x", "b"], ["x", "b", "a"]):
        proto = used([node("Sum", " ".join(names), "s"), node("Neg", "s", "y")])
        x = integers((2, C, 3, C))
        expected = -sum([CONSTANTS[name] for name in names[1:]], x)
        assert np.array_equal(fastconv.onnx.Evaluator(proto).run(None, {"x": x})[0], expected)


def test_what_somebody_sees_is_not_fused():
    nodes = [CONV, norm("c", "n"), relu("n")]
    session = fastconv.onnx.Evaluator(used(nodes, outputs=("y", "n")))
    assert session.steps == ["Conv+BatchNormalization", "Relu"]
    y, n = session.run(None, {"x": X})
    assert np.array_equal(y, np.maximum(n, 0))
    # A subgraph sees what is around it.
    branch = helper.make_graph([relu("c", "inner")], "branch", [], [described("inner")])
    nodes = [
        CONV,
        node("ReduceMax", "c", "top", keepdims=0),
        node("Greater", "top zero", "yes"),
        node("If", "yes", "y", then_branch=branch, else_branch=branch),
    ]
    session = fastconv.onnx.Evaluator(used(nodes))
    assert session.steps == ["Conv", "ReduceMax", "Greater", "If"]
    assert np.array_equal(session.run(None, {"x": X})[0], np.maximum(session.run(["c"], {"x": X})[0], 0))


def test_intermediate_results_can_be_asked_for():
    session = fastconv.onnx.Evaluator(used([CONV, norm("c", "n"), relu("n")]))
    n, y = session.run(["n", "y"], {"x": X})
    assert np.array_equal(y, np.maximum(n, 0))
    assert {"c", "n", "y"} <= session.run(None, {"x": X}, intermediate=True).keys()


def test_a_normalisation_that_is_not_finite_is_not_folded():
    constants = {**CONSTANTS, "var": np.array([4, 0, 4, 4], np.float32)}
    proto = model([CONV, norm("c", "n"), relu("n")], {k: constants[k] for k in ("w", "b", *NORMALIZATION)})
    session = fastconv.onnx.Evaluator(proto)
    assert session.steps[0] == "Conv"
    with np.errstate(all="ignore"):
        plain = fastconv.onnx.Evaluator(proto, fuse=False).run(None, {"x": X})
        assert np.array_equal(session.run(None, {"x": X}), plain, equal_nan=True)


def test_another_value_for_an_initializer_counts():
    proto = model([CONV, relu("c")], {k: CONSTANTS[k] for k in "wb"}, overridable=("w",))
    session = fastconv.onnx.prepare(proto)
    assert session.input_names == ["x"]
    other = integers((C, 3, 3, 3), seed=9)
    expected = fc.conv2d(X, other, CONSTANTS["b"], padding=1, activation="relu")
    for inputs in ({"x": X, "w": other}, [X, other]):
        assert np.array_equal(session.run(inputs)[0], expected)
    other *= 2  # in place: nothing may remember what it was
    assert np.array_equal(session.run([X, other])[0], fc.conv2d(X, other, CONSTANTS["b"], padding=1, activation="relu"))
    assert np.array_equal(
        session.run([X])[0], fc.conv2d(X, CONSTANTS["w"], CONSTANTS["b"], padding=1, activation="relu")
    )


@pytest.fixture
def plans(monkeypatch):
    """The plans that are made, as they are made."""
    made = []
    monkeypatch.setattr(packed, "plan", lambda *args, **kwargs: made.append(fc.plan(*args, **kwargs)) or made[-1])
    return made


def test_weights_are_packed_once(plans):
    proto = used([CONV, relu("c", "r"), node("Conv", "r w2", "d"), node("Add", "d r", "y")])
    session = fastconv.onnx.prepare(proto)
    for _ in range(3):
        session.run([X])
    assert len(plans) == 2 and all(plan.problem.prepacked for plan in plans)
    session.run([X[:1]])  # another shape
    session.run([X])
    assert len(plans) == 4
    with fc.options(backend="reference"):
        session.run([X])
    assert len(plans) == 6
    for n in range(3, 12):
        session.run([np.resize(X, (n, *X.shape[1:]))])
    assert all(
        len(pack._plans) <= packed.MOST
        for pack in session.evaluator.rt_nodes_[0]._compute._convolution._packed.values()
    )


def test_operators_alone_pack_what_is_constant(plans):
    evaluator = ReferenceEvaluator(used([CONV, relu("c")]), new_ops=fastconv.onnx.ops())
    for _ in range(3):
        evaluator.run(None, {"x": X})
    assert len(plans) == 1
    fed = ReferenceEvaluator(model([node("Conv", "x w", "y")], inputs=("x", "w")), new_ops=fastconv.onnx.ops())
    w = CONSTANTS["w"].copy()
    first = fed.run(None, {"x": X, "w": w})[0]
    w *= 2
    view = w.view()
    view.flags.writeable = False  # read-only, but somebody else can write to its memory
    assert np.array_equal(fed.run(None, {"x": X, "w": view})[0], 2 * first)
    w *= 2
    assert np.array_equal(fed.run(None, {"x": X, "w": view})[0], 4 * first)
    assert len(plans) == 1


def test_results_are_let_go():
    """A chain of maps takes the memory of a few of them, not of all."""
    names = [f"t{i}" for i in range(12)]
    proto = model(
        [
            node("Neg" if i % 2 else "Exp", a, b)
            for i, (a, b) in enumerate(zip(["x", *names], [*names, "y"], strict=True))
        ]
    )
    session = fastconv.onnx.Evaluator(proto)
    x = np.zeros(1 << 20, np.float32)
    session.run(None, {"x": x[:8]})
    tracemalloc.start()
    session.run(None, {"x": x})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * x.nbytes


def test_functions_of_a_model_are_inlined_and_fused():
    body = [node("Conv", "u v", "c", pads=[1, 1, 1, 1]), relu("c", "z")]
    block = helper.make_function("mine", "Block", ["u", "v"], ["z"], body, [helper.make_opsetid("", 18)])
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="mine")
    session = fastconv.onnx.Evaluator(model([call], {"w": CONSTANTS["w"]}, functions=[block]))
    assert session.steps == ["Conv+Relu"]
    expected = fc.conv2d(X, CONSTANTS["w"], padding=1, activation="relu")
    assert np.array_equal(session.run(None, {"x": X})[0], expected)


class Mine(OpRun):
    """An operator of the caller's own, that also tells the options in force."""

    op_domain = "mine"
    seen: list = []  # noqa: RUF012

    def _run(self, x):
        with fc.options() as options:
            self.seen.append(options)
        return (x / (1 + np.exp(-x)),)


def test_own_operators_and_options():
    call = helper.make_node("Mine", ["c"], ["y"], domain="mine")
    proto = model([CONV, call], {k: CONSTANTS[k] for k in "wb"})
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    session = fastconv.onnx.Evaluator(proto, new_ops=[Mine], threads=1, backend="im2col")
    session.run(None, {"x": X})
    assert (Mine.seen[-1].threads, Mine.seen[-1].backend) == (1, "im2col")
    assert not fastconv.onnx.is_compatible(proto)
    with pytest.raises(NotImplementedError, match="Mine"):
        fastconv.onnx.prepare(proto)
    with pytest.raises(TypeError, match="unknown option 'thread'"):
        fastconv.onnx.prepare(used([CONV, relu("c")]), thread=1)
    with pytest.raises(fc.NoAlgorithmError, match="backend"):
        fastconv.onnx.prepare(used([CONV, relu("c")]), backend="none such").run([X])


class Count(OpRun):
    """An operator that makes something else every time."""

    op_domain = "mine"
    calls = 0

    def _run(self, x):
        Count.calls += 1
        return (x + Count.calls,)


def test_own_operators_are_not_taken_for_constant():
    call = helper.make_node("Count", ["b"], ["c"], domain="mine")
    proto = model([call, node("Add", "x c", "y")], {"b": CONSTANTS["b"]})
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    session = fastconv.onnx.Evaluator(proto, new_ops=[Count])
    first, second = (session.run(None, {"x": np.float32(0)})[0] for _ in range(2))
    assert np.array_equal(first + 1, second)


class Relu(OpRun):
    """What the caller puts in the place of an operator stays there."""

    op_domain = ""

    def _run(self, x):
        return (np.full_like(x, 7),)


def test_own_operators_stand_above_the_others():
    session = fastconv.onnx.Evaluator(used([CONV, relu("c")]), new_ops=[Relu])
    assert session.steps == ["Conv", "Relu"] and (session.run(None, {"x": X})[0] == 7).all()


def test_threads_give_the_same_bits_and_may_share_a_model():
    proto = used([CONV, norm("c", "n"), relu("n")])
    one, two = (fastconv.onnx.prepare(proto, threads=n, deterministic=True) for n in (1, 2))
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    expected = one.run([x])[0]
    assert np.array_equal(two.run([x])[0], expected)
    results = []
    workers = [threading.Thread(target=lambda: results.append(one.run([x])[0])) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and all(np.array_equal(result, expected) for result in results)


def test_inputs_and_outputs_of_a_prepared_model(tmp_path):
    proto = used([CONV, relu("c")], outputs=("y", "c"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    session = fastconv.onnx.prepare(proto)
    y, c = outputs = session.run([X])
    assert np.array_equal(outputs["y"], y) and np.array_equal(outputs[1], c) and session.output_names == ["y", "c"]
    for inputs in (X, (X,), {"x": X}):
        assert np.array_equal(session.run(inputs)["y"], y)
    for same in (str(path), proto.SerializeToString()):
        assert np.array_equal(fastconv.onnx.run_model(same, [X])[0], y)
    for wrong, match in (
        ([], "expected 1"),
        ([X] * 2, "expected 1"),
        ({}, "expected x"),
        ({"x": X, "z": X}, "expected x"),
    ):
        with pytest.raises(ValueError, match=match):
            session.run(wrong)
    with pytest.raises(TypeError, match="expected arrays"):
        session.run(3)
    with pytest.raises(TypeError, match="threads"):
        session.run([X], threads=2)
    with pytest.raises(RuntimeError, match="x missing"):
        session.evaluator.run(None, {})
    with pytest.raises(ValueError, match="input channels") as caught:
        session.run([X[:, :2]])
    assert any("Conv" in note for note in caught.value.__notes__)


def test_run_node():
    y = fastconv.onnx.run_node(CONV, [X, CONSTANTS["w"], CONSTANTS["b"]])
    assert np.array_equal(y["c"], fc.conv2d(X, CONSTANTS["w"], CONSTANTS["b"], padding=1))
    same = fastconv.onnx.run_node(CONV, {"x": X, "w": CONSTANTS["w"], "b": CONSTANTS["b"]}, threads=1, opset_version=11)
    assert np.array_equal(same[0], y[0])
    old = fastconv.onnx.run_node(node("Softmax", "x", "y"), [X], opset_version=9)[0]
    assert np.allclose(old.sum((1, 2, 3)), 1)
    with pytest.raises(ValueError, match="expected 3"):
        fastconv.onnx.run_node(CONV, [X])
    with pytest.raises(onnx.checker.ValidationError):
        fastconv.onnx.run_node(node("Conv", "x", "y"), [X])


def test_devices():
    assert fastconv.onnx.supports_device("CPU") and not fastconv.onnx.supports_device("CUDA:0")
    with pytest.raises(ValueError, match="CUDA"):
        fastconv.onnx.prepare(used([CONV, relu("c")]), "CUDA")


def test_operators_of_old_opsets():
    x = np.random.default_rng(0).standard_normal((2, 7, 3, 4))
    squares = np.array([(x[:, max(0, c - 2) : c + 3] ** 2).sum(1) for c in range(7)]).swapaxes(0, 1)
    for beta in (0.75, 0.5):
        (result,) = fastconv.onnx.run_node(node("LRN", "x", "y", size=5, alpha=0.5, beta=beta, bias=2.0), [x])
        assert np.allclose(result, x / (2 + 0.1 * squares) ** beta)
    rows = np.exp(x.reshape(2, -1))
    expected = (rows / rows.sum(1, keepdims=True)).reshape(x.shape)
    run = {
        op: fastconv.onnx.run_node(node(op, "x", "y"), [x], opset_version=9)[0]
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    }
    assert np.allclose(run["Softmax"], expected) and np.allclose(run["LogSoftmax"], np.log(expected))
    assert np.array_equal(run["Hardmax"], (x == x.max((1, 2, 3), keepdims=True)).astype(x.dtype))
    four = integers((2, C, 3))
    expected = (four - NORMALIZATION["mean"][:, None]) / np.sqrt(NORMALIZATION["var"])[:, None]
    expected = expected * NORMALIZATION["scale"][:, None] + NORMALIZATION["bias"][:, None]
    for opset in (7, 9, 15):
        (result,) = fastconv.onnx.run_node(norm("x", "y"), [four, *NORMALIZATION.values()], opset_version=opset)
        assert np.array_equal(result, expected)


def with_random_weights(proto, dtype):
    """Return one of the models in the onnx package with random numbers for the constants it has as weights."""
    rng = np.random.default_rng(0)
    graph = proto.graph
    sizes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    users = {name: (n.op_type, k) for n in reversed(graph.node) for k, name in enumerate(n.input)}
    constants = {}
    for n in graph.node:
        if n.op_type == "ConstantOfShape":
            shape, (op, place) = tuple(sizes[n.input[0]]), users[n.output[0]]
            if place == 1 and op in ("Conv", "Gemm"):
                value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            else:
                value = rng.uniform(0.5, 1.5, shape) if place in (1, 4) else rng.normal(0, 0.1, shape)
            constants[n.output[0]] = value.astype(np.float32).astype(dtype)
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    names = {name for n in nodes for name in n.input}
    constants |= {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in sizes.items() if k in names}
    (data,) = [i for i in graph.input if i.name in names and i.name not in constants]
    shape = [d.dim_value for d in data.type.tensor_type.shape.dim]
    x = rng.random(shape, np.float32).astype(dtype)
    return model(nodes, constants, inputs=[data.name], outputs=[graph.output[0].name], opset=9), x


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_real_network_with_random_weights(name):
    """Fused in float32 against node by node in float64, as closely as the model's own test asks for."""
    from onnx.backend.test.loader import load_model_tests
    from onnx.backend.test.runner import Runner

    path = Path(onnx.__file__).parent / f"backend/test/data/light/light_{name}.onnx"
    (case,) = [case for case in load_model_tests(kind="real") if case.model_name == name]
    fused, x = with_random_weights(onnx.load(path), np.float32)
    plain, wide = with_random_weights(onnx.load(path), np.float64)
    result = fastconv.onnx.run_model(fused, [x])
    expected = fastconv.onnx.run_model(plain, [wide], fuse=False)
    assert expected[0].std() > 0.1 * expected[0].mean()
    Runner.assert_similar_outputs([e.astype(np.float32) for e in expected], result, case.rtol, case.atol)


def test_without_onnx_the_message_names_the_extra():
    code = """
import sys
sys.modules["onnx"] = None
import fastconv
try:
    import fastconv.onnx
except ImportError as error:
    print(error)
"""
    assert "pip install fastconv[onnx]" in python(code).stdout


def test_operators_are_listed_once():
    names = [operator.__name__ for operator in fastconv.onnx.ops()]
    assert len(set(names)) == len(names) == 13 and names == sorted(names)
