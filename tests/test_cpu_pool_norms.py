"""Norms with any exponent on the CPU engine: powers of vectors, and the pools made of them."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import python
from numba import njit, types
from numba.extending import intrinsic

from fastconv import registry, testing
from fastconv.backends.cpu.formats import FLOAT32, FLOAT64
from fastconv.backends.cpu.pool.power import raised
from fastconv.backends.cpu.simd import Emitter
from fastconv.notation import parse_problem

POOL, GRADIENT = registry.find("numba/pool"), registry.find("numba/pool_gradient")

# A vector that every width divides.
LANES = 4

SHAPES = """
    lp_pool2d n1 c3 i9 k3 s2 norm3
    lp_pool2d n1 c35 i9 k3 s2 norm3 channels_last
    lp_pool2d n2 c3 i40 k2 norm0.5
    lp_pool1d n1 c2 i200 k3 s2 ceil norm2.93
    lp_pool2d n1 c2 i20 k7 s4 norm4
    lp_pool2d n2 c19 i7 k7 norm3.5
    lp_pool2d n1 c3 i9 k3 s2 norm8
    lp_pool2d n1 c3 i9 k3 s2 norm9
""".strip().splitlines()
# Formats multiply what is compiled: those beside float32 go through one shape of each layout.
CASES = [(text, "float32") for text in SHAPES]
CASES += [(text, dtype) for text in SHAPES[:2] for dtype in ("float64", "bfloat16")]


@intrinsic(prefer_literal=True)
def _raise(typingctx, format, value, exponent, target):
    def codegen(context, builder, signature, args):
        e = Emitter(builder, signature.args[0].literal_value, LANES)
        e.store(raised(e, e.load(args[1]), args[2]), args[3])
        return context.get_dummy_value()

    return types.void(format, types.int64, types.float64, types.int64), codegen


def _raiser(format):
    size = format // 8

    @njit
    def run(values, exponent, results, count):
        for i in range(0, count * size, LANES * size):
            _raise(format, values + i, exponent, results + i)

    return run


RAISERS = {np.float32: _raiser(FLOAT32), np.float64: _raiser(FLOAT64)}


def check_powers(dtype):
    """As NumPy has them, special values included; numbers of every size to the last place but one."""
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-126), 3.4e38, -3.4e38, 2.0]
    spread = rng.choice([-1, 1], 4000) * np.exp2(rng.uniform(-126, 127, 4000))
    x = np.concatenate([special, spread, rng.standard_normal(4000)]).astype(dtype)
    for exponent in (3.0, 4.0, 2.5, 1 / 3, 0.25, 17.0, -1.0, -2.5, -2.0, 0.0, 1.0, 1e-3, 1e3):
        result = np.empty_like(x)
        RAISERS[dtype](x.ctypes.data, exponent, result.ctypes.data, x.size)
        with np.errstate(all="ignore"):
            exact = x.astype(np.longdouble) ** np.longdouble(exponent)
            expected = exact.astype(dtype)
            finite = np.isfinite(expected)
            error = np.abs(result - exact)[finite]
        assert np.array_equal(result[~finite], expected[~finite], equal_nan=True)
        last_place = np.spacing(np.abs(expected[finite]))
        assert (error <= last_place).all()
        assert np.array_equal(np.signbit(result[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers(dtype):
    check_powers(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "none"])
def test_powers_with_other_vectors(vectors):
    code = "import numpy as np; from test_cpu_pool_norms import check_powers; check_powers(np.float32)"
    python(code, FASTCONV_SIMD=vectors)


@pytest.mark.parametrize(("text", "dtype"), CASES)
def test_norms(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(POOL, problem)
    testing.check_problem(GRADIENT, problem.replace(direction="dgrad"))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("norm", ["norm1", "norm2", "norm3", "norm0.5"])
def test_gradients_where_the_norm_has_none(norm, layout):
    """Where a norm is zero, and where no window reads; elements that are not finite have what the reference says."""
    problem = parse_problem(f"lp_pool2d:dgrad n1 c3 i8 k2 s3 {norm}").replace(layout=layout)
    forward = problem.replace(direction="fprop")
    dy, x, _ = testing.random_inputs(problem)
    x = np.abs(x)
    x[:, :, :3] = 0
    x[0, 0, 2, 2], x[0, 0, 7, 7], x[0, 1, 5, 5], x[0, 2, 4, 4] = np.nan, np.inf, np.nan, np.inf
    x = testing.laid_out(problem.inputs[1], layout, x)
    inputs = (dy, x, testing.run(registry.find("reference/windows"), forward, (x,))[0])
    (result,) = testing.run(GRADIENT, problem, inputs)
    testing.compare(problem, (result,), testing.exact(problem, inputs), GRADIENT.error_bound(problem))
