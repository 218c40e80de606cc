"""fastconv within JAX: against `jax.lax` and against fastconv on NumPy arrays; derivatives, vmap, threads, failures."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fresh import python
from jax import lax
from jax.test_util import check_grads

import fastconv as fc
import fastconv.jax as fj
from fastconv.jax import handler

RNG = np.random.default_rng


def integers(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float32)


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape))


CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
STORED = {
    "convolution": lambda m, x, w: m.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=CHANNELS_LAST),
    "transposed": lambda m, x, w: m.conv_transpose(x, w, (2, 2), "SAME"),
    "turned": lambda m, x, w: m.conv_transpose(x, w.swapaxes(2, 3), (2, 2), "SAME", transpose_kernel=True),
    "groups": lambda m, x, w: m.conv_general_dilated(
        x, w[:, :, :3], (1, 1), [(2, 1)] * 2, (2, 1), dimension_numbers=CHANNELS_LAST, feature_group_count=2
    ),
}


@pytest.mark.parametrize("name", ["convolution", "transposed"])
def test_weights_are_read_where_they_lie_in_whatever_order(name):
    x, w, function = jnp.ones((1, 8, 9, 6)), jnp.ones((3, 3, 6, 4)), STORED[name]
    dy = jnp.ones(function(lax, x, w).shape)
    programs = {
        "forward": (lambda x, w: function(fj, x, w), (x, w)),
        "gradient": (lambda w, dy: jax.linear_transpose(lambda x: function(fj, x, w), x)(dy), (w, dy)),
    }
    for what, (program, arguments) in programs.items():
        text = jax.jit(program).lower(*arguments).compile().as_text()
        assert "custom-call(" in text
        assert not any(f" {op}(" in text for op in ("copy", "transpose", "reverse", "fusion")), what


@pytest.mark.parametrize("name", STORED)
def test_derivatives_and_batches_with_weights_in_other_orders(name):
    function, rng = STORED[name], RNG(3)
    x, w, dx, dw = (integers(rng, *shape) for shape in 2 * [(2, 5, 6, 6), (3, 3, 6, 4)])
    ours, theirs = ((lambda x, w, m=m: function(m, x, w)) for m in (fj, lax))
    assert np.array_equal(ours(x, w), theirs(x, w))
    for got, right in zip(*(jax.jvp(f, (x, w), (dx, dw)) for f in (ours, theirs)), strict=True):
        assert np.array_equal(got, right)
    dy = integers(rng, *theirs(x, w).shape)
    for got, right in zip(*(jax.vjp(f, x, w)[1](dy) for f in (ours, theirs)), strict=True):
        assert np.array_equal(got, right)
    # A gradient of a gradient, of what is linear in each of its arguments.
    second = [jax.grad(lambda w, f=f: (jax.vjp(f, x, w)[1](dy)[0] * dx).sum())(w) for f in (ours, theirs)]
    assert np.array_equal(*second)
    many = jnp.stack([w, dw, 2 * w], axis=1), jnp.stack([x, dx, -x], axis=2)
    for f, axes in ((ours, (None, 1)), (ours, (2, None)), (ours, (2, 1))):
        given = (x if axes[0] is None else many[1], w if axes[1] is None else many[0])
        loop = [theirs(*(a if axis is None else jnp.take(a, i, axis) for a, axis in zip(given, axes, strict=True)))
                for i in range(3)]  # fmt: skip
        assert np.array_equal(jax.vmap(f, axes)(*given), jnp.stack(loop))


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("strides", ((2,), "SAME")),
        ("rhs_dilation", ((2, 2), "SAME", (1,))),
        ("padding", ((2, 2), [(1, 1)])),
    ],
)
def test_a_transposed_convolution_names_what_is_not_one_an_axis(name, given, consistent):
    with pytest.raises(ValueError, match=f"{name}: expected 2 entries"):
        fj.conv_transpose(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4)), *given, use_consistent_padding=consistent)


def random_convolution(seed):
    """Return the arrays and other arguments of a call of ``conv_general_dilated`` with integer data."""
    rng = RNG(seed)
    ndim, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    batches = int(rng.choice([1, 1, 2])) if groups == 1 else 1

    def sizes(least, stop):
        return [int(v) for v in rng.integers(least, stop, ndim)]

    n, c, k = (int(v) for v in rng.integers(1, 3, 3))
    axes = "HWD"[:ndim]
    channels_last = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    mixed = tuple("".join(rng.permutation(list(word))) for word in channels_last)
    numbers = [(f"NC{axes}", f"OI{axes}", f"NC{axes}"), channels_last, mixed][rng.integers(3)]
    size = dict(zip(f"NC{axes}", [n * batches, c * groups, *sizes(3, 9)], strict=True))
    kernel = dict(zip(f"OI{axes}", [k * groups * batches, c, *sizes(1, 4)], strict=True))
    dilated = rng.random() < 0.5
    padding = [(int(a), int(b)) for a, b in rng.integers(-2, 7, (ndim, 2))]
    arguments = {
        "window_strides": sizes(1, 4) if rng.random() < 0.5 else [1] * ndim,
        "padding": str(rng.choice(["SAME", "VALID", "SAME_LOWER"])) if not dilated and rng.random() < 0.5 else padding,
        "lhs_dilation": sizes(1, 4) if dilated else None,
        "rhs_dilation": sizes(1, 3) if rng.random() < 0.5 else None,
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": batches,
    }
    x, w = (integers(rng, *(s[a] for a in word)) for s, word in ((size, numbers[0]), (kernel, numbers[1])))
    return x, w, arguments


@pytest.mark.parametrize("seed", range(10))
def test_conv_general_dilated_gives_what_lax_gives_and_its_gradients(seed):
    x, w, arguments = random_convolution(seed)
    expected = lax.conv_general_dilated(x, w, **arguments)
    with fc.options(strict=True):
        found = jax.jit(lambda x, w: fj.conv_general_dilated(x, w, **arguments))(x, w)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert np.array_equal(found, expected)
        dy = integers(RNG(seed), *expected.shape)
        wanted = jax.vjp(lambda x, w: lax.conv_general_dilated(x, w, **arguments), x, w)[1](dy)
        gradients = jax.jit(lambda *a: jax.vjp(lambda *b: fj.conv_general_dilated(*b, **arguments), *a)[1](dy))(x, w)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert np.array_equal(gradient, right)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("consistent", [False, True])
def test_conv_transpose_is_that_of_lax(padding, turned, consistent):
    rng = RNG(0)
    x, w = integers(rng, 2, 5, 6, 4), integers(rng, 3, 3, *((3, 4) if turned else (4, 3)))
    ours, theirs = (
        m.conv_transpose(x, w, (2, 3), padding, transpose_kernel=turned, use_consistent_padding=consistent)
        for m in (fj, lax)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("computation", "neutral"), [(lax.max, -np.inf), (lax.add, 0.0)])
def test_reduce_window_is_that_of_lax(seed, computation, neutral):
    rng = RNG(seed)
    ndim = int(rng.integers(2, 5))
    windowed = rng.permutation(ndim)[:3]
    kernel, strides, dilation = np.ones((3, ndim), int)
    kernel[windowed], strides[windowed] = rng.integers(1, 4, (2, len(windowed)))
    padding = [tuple(int(p) for p in rng.integers(0, 4, 2)) if k > 1 else (0, 0) for k in kernel]
    x = rng.permutation(np.prod(shape := rng.integers(3, 9, ndim))).reshape(shape).astype(np.float32)
    arguments = (neutral, computation, tuple(kernel), tuple(strides), padding, None, tuple(dilation))
    ours, theirs = (jax.vjp(lambda a, m=m: m.reduce_window(a, *arguments), jnp.asarray(x)) for m in (fj, lax))
    assert np.array_equal(ours[0], theirs[0])
    dy = integers(rng, *theirs[0].shape)
    assert np.array_equal(ours[1](dy)[0], theirs[1](dy)[0])


# Every op: the shapes of its array arguments and its other arguments.
OPS = {
    "conv1d": ([(2, 4, 9), (6, 2, 3), (6,)], {"stride": 2, "padding": 1, "groups": 2, "activation": "tanh"}),
    "conv2d": ([(2, 3, 6, 5), (4, 3, 3, 2), (4,)], {"padding": ((1, 2), (0, 1)), "padding_mode": "circular"}),
    "conv3d": ([(1, 2, 4, 5, 4), (3, 2, 2, 2, 2)], {"padding": "same", "dilation": 2, "activation": "sigmoid"}),
    "conv_transpose1d": ([(2, 3, 5), (3, 2, 3), (2,)], {"stride": 2, "output_padding": 1, "activation": "tanh"}),
    "conv_transpose2d": ([(2, 4, 4, 3), (4, 2, 3, 3), (4,)], {"stride": 2, "padding": 1, "groups": 2}),
    "conv_transpose3d": ([(1, 2, 2, 3, 2), (2, 2, 2, 2, 2)], {"stride": 2}),
    "locally_connected2d": ([(2, 2, 4, 5), (2, 3, 3, 2, 3, 3), (2, 3, 3)], {}),
    "linear": ([(3, 2, 5), (4, 5), (4,)], {"activation": "sigmoid"}),
    "max_pool1d": ([(2, 3, 9)], {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max_pool2d": ([(2, 3, 6, 7)], {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "max_pool3d": ([(3, 4, 5, 4)], {"kernel_size": 2, "stride": 1}),
    "avg_pool1d": ([(2, 3, 9)], {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    "avg_pool2d": ([(2, 3, 6, 7)], {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool3d": ([(2, 4, 5, 4)], {"kernel_size": 2}),
    "lp_pool2d": ([(2, 2, 6, 5)], {"norm_type": 3, "kernel_size": 2, "stride": 1}),
    "adaptive_avg_pool2d": ([(2, 3, 7, 5)], {"output_size": (3, 2)}),
    "adaptive_max_pool2d": ([(2, 3, 7, 5)], {"output_size": (3, 2)}),
    "unfold": ([(2, 3, 6, 5)], {"kernel_size": (3, 2), "padding": 1, "stride": 2}),
    "fold": ([(2, 12, 20)], {"output_size": (6, 5), "kernel_size": (2, 2)}),
}


def drawn(op, seed=0):
    """Return arrays for an op, positive for roots, and the op of these alone on JAX and on NumPy arrays."""
    shapes, arguments = OPS[op]
    rng = RNG(seed)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    if op.startswith("lp"):
        arrays = [np.abs(a) + 0.1 for a in arrays]
    if "max" in op:
        arrays = [rng.permutation(a.size).reshape(a.shape) * 0.1 for a in arrays]
    names = ("input", "weight", "bias")[: len(shapes)]

    def of(module):
        return lambda *given: getattr(module, op)(**dict(zip(names, given, strict=True)), **arguments)

    return arrays, of(fj), of(fc)


@pytest.mark.parametrize("op", OPS)
def test_every_op_gives_what_it_gives_on_numpy_arrays(op):
    arrays, on_jax, on_numpy = drawn(op)
    for dtype in ("float32", "float16", "bfloat16"):
        given = [jnp.asarray(a, dtype) for a in arrays]
        expected = on_numpy(*map(np.asarray, given))
        for function in (on_jax, jax.jit(on_jax)):
            found = function(*given)
            assert found.dtype == dtype and np.array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("op", OPS)
def test_derivatives_of_both_modes_and_second_order(op):
    with jax.enable_x64(True):
        arrays, on_jax, _ = drawn(op)
        order = 1 if op.startswith("adaptive") or op.endswith(("1d", "3d")) else 2  # the rules are those of 2d
        check_grads(on_jax, [jnp.asarray(a) for a in arrays], order=order, modes=("fwd", "rev"))


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "max_pool2d", "lp_pool2d", "avg_pool2d"])
def test_gradients_are_those_of_vjp(op):
    arrays, on_jax, _ = drawn(op)
    arrays = [np.asarray(a, np.float32) for a in arrays]
    names = ("input", "weight", "bias")[: len(arrays)]
    y, pullback = fc.vjp(getattr(fc, op), **dict(zip(names, arrays, strict=True)), **OPS[op][1])
    dy = integers(RNG(1), *y.shape)
    expected = [g for g in pullback(dy) if g is not None]
    found = jax.vjp(on_jax, *arrays)[1](dy)
    for name, gradient, wanted in zip(names, found, expected, strict=True):
        if name != "bias":  # which XLA sums
            assert np.array_equal(gradient, wanted), name


MAPPED = [(0, None, None), (None, 0, None), (None, None, 0), (1, 2, 0), (2, None, 0)]


@pytest.mark.parametrize("axes", MAPPED)
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_vmap_gives_what_a_loop_gives(op, axes):
    arrays, on_jax, _ = drawn(op)
    with jax.enable_x64(True):
        given = [a if axis is None else np.stack([a, a + 1, -a], axis) for a, axis in zip(arrays, axes, strict=True)]

        def loop(function):
            each = [[a] * 3 if x is None else np.moveaxis(a, x, 0) for a, x in zip(given, axes, strict=True)]
            return [function(*one) for one in zip(*each, strict=True)]

        def gradients(*a):
            return jax.grad(lambda *b: (on_jax(*b) ** 2).sum(), (0, 1, 2))(*a)

        forward, backward = jax.vmap(on_jax, axes)(*given), jax.vmap(gradients, axes)(*given)
        bound = 1e3 * np.finfo(np.float64).eps
        for i, (y, one) in enumerate(zip(loop(on_jax), loop(gradients), strict=True)):
            for found, wanted in ((forward[i], y), *((g[i], w) for g, w in zip(backward, one, strict=True))):
                assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize(("size", "kept"), [((6, 7), jnp.int16), ((200, 200), jnp.int32)])
def test_gradients_of_max_pools_keep_the_narrowest_indices(size, kept):
    x = jnp.asarray(np.random.default_rng(0).permutation(size[0] * size[1]).reshape(1, 1, *size), jnp.float32)
    y, pullback = jax.vjp(lambda x: fj.max_pool2d(x, 3, 2, 1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(pullback)} == {jnp.dtype(kept)}
    expected = jnp.zeros(x.size).at[jnp.argsort(x.ravel())[y.ravel().astype(int)]].add(1)
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0].ravel(), expected)
    # Whoever asks for indices gets JAX's integers.
    (_, indices), _ = jax.vjp(lambda x: fj.max_pool2d(x, 3, 2, 1, return_indices=True), x)
    assert indices.dtype == jnp.int32


@pytest.mark.parametrize("op", [op for op in OPS if "pool2d" in op or "fold" in op])
def test_vmap_of_pools_gives_what_a_loop_gives(op):
    (x,), on_jax, _ = drawn(op)
    xs = jnp.asarray(np.stack([x, -x if "lp" not in op else 2 * x], 1), jnp.float32)
    found = jax.vmap(on_jax, 1)(xs)
    pushed = jax.vmap(lambda a: jax.jvp(on_jax, (a,), (a,))[1], 1)(xs)
    pulled = jax.vmap(jax.grad(lambda a: on_jax(a).sum()), 1)(xs)
    for i in range(2):
        one = xs[:, i]
        assert np.array_equal(found[i], on_jax(one))
        assert np.array_equal(pushed[i], jax.jvp(on_jax, (one,), (one,))[1])
        assert np.array_equal(pulled[i], jax.grad(lambda a: on_jax(a).sum())(one))


def test_indices_go_in_and_out():
    x = RNG(0).permutation(2 * 3 * 36).reshape(2, 3, 6, 6).astype(np.float32)
    expected, where = fc.max_pool2d(x, 2, return_indices=True)
    found, indices = jax.jit(lambda a: fj.max_pool2d(a, 2, return_indices=True))(x)
    assert np.array_equal(found, expected) and np.array_equal(indices, where)
    restored = fj.max_unpool2d(found, indices, 2)
    assert np.array_equal(restored, fc.max_unpool2d(expected, where, 2))
    assert np.array_equal(jax.grad(lambda a: fj.max_unpool2d(a, indices, 2).sum())(found), np.ones_like(expected))


def test_channels_that_come_last_are_read_where_they_lie():
    x, w = jnp.ones((1, 8, 9, 16)), jnp.ones((3, 3, 16, 16))

    def twice(x, w):
        for _ in range(2):
            x = fj.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x

    text = jax.jit(twice).lower(x, w).compile().as_text()
    calls = [line for line in text.splitlines() if "custom-call(" in line]
    assert len(calls) == 2 and all("f32[1,8,9,16]{3,2,1,0} custom-call(" in line for line in calls)
    entry = text[text.index("ENTRY") :]
    assert not any(f"f32[1,8,9,16]{{3,2,1,0}} {op}(" in entry for op in ("copy", "transpose", "fusion"))
    assert np.array_equal(twice(x, w), lax.conv_general_dilated(
        lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ))  # fmt: skip


def test_options_are_those_of_the_trace():
    x, w = jnp.ones((1, 1, 8, 8)), jnp.ones((1, 1, 3, 3))
    with fc.options(threads=1, backend="naive"):
        jaxpr = jax.make_jaxpr(fj.conv2d)(x, w)
    (options,) = (equation.params["options"] for equation in jaxpr.eqns if "options" in equation.params)
    assert (options.threads, options.backend) == (1, "naive")
    assert json.loads(handler.describe(fc.ConvProblem(op="linear", direction="fprop", n=1, ic=1, oc=1, input_size=()),
                                       options).partition(" | ")[2]) == {"threads": 1, "backend": "naive"}  # fmt: skip


def test_what_cannot_be_is_refused():
    x, w = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3))
    with pytest.raises(TypeError, match="out: a JAX array cannot be written to"):
        fj.conv2d(x, w, out=x)
    with pytest.raises(TypeError, match="input: expected dtype"):
        fj.conv2d(x.astype(int), w)
    with pytest.raises(TypeError, match="lhs: expected dtype"):
        fj.conv_general_dilated(x.astype(int), w.astype(int), (1, 1), "SAME")
    with pytest.raises(ValueError, match="computation: expected"):
        fj.reduce_window(x, 1.0, lax.mul, (1, 1, 2, 2))
    with pytest.raises(ValueError, match="expected 1 to 3 spatial axes"):
        fj.conv_general_dilated(jnp.ones((1, 1, 2, 2, 2, 2)), jnp.ones((1, 1, 1, 1, 1, 1)), (1,) * 4, "SAME")
    with pytest.raises(TypeError, match="expected one of fastconv's ops"):
        fc.vjp(fj.conv2d, x, w)


def test_an_error_within_a_call_comes_out_of_it():
    x = jnp.ones((1, 1, 2, 2))
    wild = jnp.full((1, 1, 2, 2), 99)
    with pytest.raises(Exception, match="indices: expected values from 0 to 15, got 99 to 99"):
        jax.jit(lambda a, i: fj.max_unpool2d(a, i, 2))(x, wild).block_until_ready()


def test_empty_batches():
    w = jnp.ones((2, 3, 3, 3))
    y, pullback = jax.vjp(lambda x, w: fj.conv2d(x, w, padding=1), jnp.ones((0, 3, 5, 5)), w)
    assert y.shape == (0, 2, 5, 5)
    dx, dw = pullback(y)
    assert dx.shape == (0, 3, 5, 5) and not dw.any()


def test_use_sends_a_program_to_fastconv_and_leaves_the_rest():
    @jax.jit
    def program(x, w):
        y = jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME"))
        low = lax.reduce_window(y, jnp.inf, lax.min, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return low.sum() + lax.reduce_window(y, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").sum()

    rng = RNG(2)
    x, w = integers(rng, 2, 3, 8, 8), integers(rng, 4, 3, 3, 3)
    expected, before = jax.value_and_grad(program, (0, 1))(x, w), lax.conv_general_dilated
    fj.stats(clear=True)
    # Plain sums of integers are exact.
    with fc.options(strict=True), fj.use():
        assert "fastconv" in program.lower(x, w).as_text()
        found = jax.value_and_grad(program, (0, 1))(x, w)
    counted = fj.stats()
    assert "fastconv" not in program.lower(x, w).as_text() and lax.conv_general_dilated is before
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    assert {"conv_general_dilated: fastconv", "reduce_window: fastconv"} < counted.keys()
    assert any(key.startswith("reduce_window: JAX, since computation:") for key in counted)


def test_use_leaves_jax_what_the_options_leave_nobody_for():
    program = jax.jit(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME").sum())
    x, w = jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 1, 1))
    fj.stats(clear=True)
    with fc.options(algorithm="winograd4"), fj.use():  # which is for kernels of 3x3
        assert program(x, w) == 96
    (why,) = fj.stats()
    assert why.startswith("conv_general_dilated: JAX, since no algorithm for")


def test_use_leaves_jax_what_is_on_other_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fj.stats(clear=True)
    with fj.use():
        assert lax.conv_general_dilated(jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 1, 1)), (1, 1), "SAME").sum() == 96
    assert list(fj.stats()) == ["conv_general_dilated: JAX, since JAX computes on gpu here, and fastconv on the CPU"]


@pytest.mark.parametrize("norm", [2.0, 3.0])
def test_windows_of_zeros_have_derivatives_of_any_order(norm):
    """After a rectifier there are many: their norm has no slope, and no slope of that either."""
    x = jnp.asarray(1 + np.abs(integers(RNG(3), 1, 1, 4, 4))).at[..., :2, :2].set(0)
    v = jnp.ones_like(x)

    def along(x):
        return jax.jvp(lambda x: fj.lp_pool2d(x, norm, 2), (x,), (v,))[1].sum()

    found = jax.grad(along)(x)
    assert jnp.isfinite(found).all()
    rest = x.at[..., :2, :2].set(1)
    expected = jax.grad(along)(rest)
    np.testing.assert_allclose(found[..., 2:, :], expected[..., 2:, :], rtol=1e-5)


def test_the_handler_is_registered_without_a_warning():
    assert handler.register() is True


FALLBACK = """
import warnings
import numpy as np, jax, jax.numpy as jnp, jax.ffi
import fastconv as fc, fastconv.jax as fj
jax.ffi.include_dir = lambda: "/nowhere"
x = np.random.default_rng(0).standard_normal((4, 32, 128, 128), dtype=np.float32)
w = np.ones((32, 32, 3, 3), np.float32) / 100
f = jax.jit(lambda x, w: fj.conv2d(jnp.sin(fj.conv2d(x, w, padding=1)), w, padding=1))
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    y = [f(x, w) for _ in range(4)][-1].block_until_ready()
assert any("buffer_callback" in str(w.message) for w in found), found
assert "custom_call @fastconv" not in f.lower(x, w).as_text()
last = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "padding": "SAME", "window_strides": (1, 1)}
a, b = np.round(x[:, :9, :9, :3]), np.ones((3, 3, 3, 2), np.float32)
assert np.array_equal(fj.conv_general_dilated(a, b, **last), jax.lax.conv_general_dilated(a, b, **last))
pooled, indices = fj.max_pool2d(x[0], 2, return_indices=True)
assert np.array_equal(indices, fc.max_pool2d(x[0], 2, return_indices=True)[1])
print("done")
"""

BUSY = """
import numpy as np, jax, jax.numpy as jnp, threading
import fastconv as fc, fastconv.jax as fj
x = np.random.default_rng(0).standard_normal((4, 32, 96, 96), dtype=np.float32)
w = np.ones((32, 32, 3, 3), np.float32) / 100
def chain(x, w):
    left, right = fj.conv2d(x, w, padding=1), fj.conv2d(jnp.cos(x), w, padding=1)
    return fj.conv2d(left + right, w, padding=1)
f = jax.jit(chain)
wanted = np.asarray(f(x, w))
wrong = []
def work():
    results = [f(x, w) for _ in range(6)]  # all under way before any is waited for
    wrong.extend(not np.array_equal(r, wanted) for r in results)
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(len(wrong), sum(wrong))
"""


ENDING = """
import atexit, threading, time
import numpy as np
results = []
atexit.register(lambda: print(*(bool(np.isfinite(r).all()) for r in results)))
import jax, jax.numpy as jnp
import fastconv.jax as fj
from fastconv.jax import gate
x = np.random.default_rng(0).standard_normal((4, 32, 192, 192), dtype=np.float32)
w = np.ones((32, 32, 3, 3), np.float32) / 100
f = jax.jit(lambda x, w: fj.conv2d(jnp.sin(fj.conv2d(x, w, padding=1)), w, padding=1))
f(x, w).block_until_ready()
begun = [f(x, w) for _ in range(6)]
"""

# How a program ends while computations are under way, and what it prints: handlers of its own run after fastconv's.
ENDINGS = {
    "results are kept": (
        "results = begun; jax.jit(lambda x: jax.debug.print('{}', fj.conv2d(x, w).dtype))(x)",
        "float32\nTrue True True True True True",
    ),
    "results are dropped": ("del begun", ""),
    "patience is over": ("gate._PATIENCE = 0", ""),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_a_program_ends_while_computations_are_under_way(how):
    code, printed = ENDINGS[how]
    done = python(ENDING + code)
    assert (done.stdout.strip(), done.stderr) == (printed, "")


def test_a_closed_gate_answers_with_an_error():
    done = python(
        "import jax, jax.numpy as jnp, fastconv.jax as fj, atexit\n"
        "late = lambda: jax.jit(fj.conv2d)(jnp.ones((1, 1, 9, 9)), jnp.ones((1, 1, 3, 3)))\n"
        "atexit.register(lambda: late().block_until_ready())\n"
        "late()"
    )
    assert "fastconv: the program has ended" in done.stderr


def test_where_the_interface_is_unknown_calls_go_through_a_callback():
    assert python(FALLBACK).stdout.split() == ["done"]


def test_calls_from_many_threads():
    assert python(BUSY).stdout.split() == ["24", "0"]


def test_an_executable_kept_on_disk_means_the_same_in_the_next_process(tmp_path):
    code = f"""
import jax, jax.numpy as jnp, fastconv.jax as fj
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
%s
print(float(jax.jit(lambda x, w: fj.conv2d(x, w, padding=1))(jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))).sum()))
"""
    first = python(code % "").stdout
    assert list(tmp_path.iterdir())
    assert python(code % "fj.conv1d(jnp.ones((1, 1, 9)), jnp.ones((1, 1, 2)))").stdout == first == "1014.0\n"


def test_without_jax_the_error_names_the_extra():
    done = python("import sys; sys.modules['jax'] = None; import fastconv.jax", fails=True)
    assert "pip install 'fastconv[jax]'" in done.stderr
