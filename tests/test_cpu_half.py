"""float16 and bfloat16 on the CPU engine: storage only, sums in float32, one rounding on the way out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fresh import python
from numba import njit, types
from numba.extending import intrinsic
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.formats import BFLOAT16, FLOAT16, FLOAT32
from fastconv.backends.cpu.simd import Emitter
from fastconv.notation import parse_problem

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FORMATS = {"float16": FLOAT16, "bfloat16": BFLOAT16}

# A vector that every width divides.
LANES = 4

CASES = [
    ("direct", "conv2d n1 c40 i12 oc37 k3 p1 bias residual relu"),
    ("direct", "conv2d n2 c300 i9 oc20 k3 p1 s2"),  # stages
    ("direct", "conv2d n2 c20 i11 oc33 k3 p1 channels_last bias"),
    ("direct", "linear n37 c70 oc50 bias"),
    ("pointwise", "conv2d n2 c70 i9 oc37 k1 bias residual relu6"),
    ("pointwise", "conv2d n2 c70 i12 oc37 k1 s2"),
    ("pointwise", "conv2d n2 c70 i9 oc37 k1 channels_last"),
    ("dgrad_direct", "conv2d:dgrad n1 c37 i12 oc20 k3 p1"),
    ("dgrad_direct", "conv2d:dgrad n2 c9 i13 oc20 k3 p1 s2"),  # phases, interleaved
    ("dgrad_direct", "conv2d:dgrad n2 c9 i13 oc20 k3 p1 s3 channels_last"),
    ("dgrad_pointwise", "conv2d:dgrad n2 c70 i9 oc37 k1"),
    ("wgrad", "conv2d:wgrad n2 c20 i13 oc37 k3 p1 s2"),
    ("wgrad", "conv2d:wgrad n2 c70 i9 oc37 k1"),  # a product, whose lanes are inputs
    ("wgrad", "conv2d:wgrad n2 c20 i9 oc37 k3 channels_last"),
]


@intrinsic(prefer_literal=True)
def _convert(typingctx, source_format, target_format, source, target):
    def codegen(context, builder, signature, args):
        read, write = (Emitter(builder, f.literal_value, LANES) for f in (source_format, target_format))
        write.store(read.load(args[2]), args[3])
        return context.get_dummy_value()

    return types.void(source_format, target_format, types.int64, types.int64), codegen


def _converter(source_format, target_format):
    source_step, target_step = (LANES * abs(f) // 8 for f in (source_format, target_format))

    @njit
    def convert(source, target, count):
        for i in range(count // LANES):
            _convert(source_format, target_format, source + i * source_step, target + i * target_step)

    def run(values, dtype):
        result = np.empty(values.shape, dtype)
        convert(values.ctypes.data, result.ctypes.data, values.size)
        return result

    return run


def check_conversions():
    """Every half number up, and numbers of every size down, as NumPy and ml_dtypes convert them."""
    rng = np.random.default_rng(0)
    special = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 2.0**-24, 2.0**-25, 2.0**-14, 3.4e38]
    words = np.concatenate(
        [rng.integers(0, 2**32, 1 << 18, dtype=np.uint32), np.array(special, np.float32).view(np.uint32)]
    )
    for name, dtype in DTYPES.items():
        half = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        wide = _converter(FORMATS[name], FLOAT32)(half, np.float32)
        np.testing.assert_array_equal(wide, half.astype(np.float32))
        assert np.array_equal(np.signbit(wide), half.view(np.uint16) >= 1 << 15)
        values = words.view(np.float32)
        narrow = _converter(FLOAT32, FORMATS[name])(values, dtype)
        with np.errstate(all="ignore"):
            expected = values.astype(dtype)
        same = narrow.view(np.uint16) == expected.view(np.uint16)
        assert np.all(same | (np.isnan(narrow) & np.isnan(expected)))


def test_conversions_round_to_the_nearest_even():
    check_conversions()


@pytest.mark.parametrize("environment", [{"FASTCONV_SIMD": "none"}, {"NUMBA_CPU_NAME": "generic"}])
def test_conversions_without_instructions_for_them(environment):
    python("from test_cpu_half import check_conversions; check_conversions()", **environment)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_shapes(name, text):
    # Every case in one of the formats: what they share is the most of it.
    dtype = list(DTYPES)[CASES.index((name, text)) % 2]
    testing.check_problem(registry.find(f"numba/{name}"), parse_problem(text).replace(dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "none"])
def test_other_widths_of_vectors(vectors):
    """In a fresh process, since compiled kernels and plans know the width."""
    code = """
from test_cpu_half import CASES
from fastconv import registry, testing
from fastconv.notation import parse_problem
for first, dtype in enumerate(("float16", "bfloat16")):
    for name, text in CASES[first::7]:
        testing.check_problem(registry.find(f"numba/{name}"), parse_problem(text).replace(dtype=dtype))
"""
    python(code, FASTCONV_SIMD=vectors)


@pytest.mark.parametrize(("name", "text"), CASES[::3])
def test_any_number_of_threads_gives_the_same_bits(name, text):
    check_threads_share(registry.find(f"numba/{name}"), parse_problem(text).replace(dtype="bfloat16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_beside_a_small_result(dtype):
    """Single elements are stored one by one: LLVM makes a store of 32 bits of some."""
    whole = np.full(64, 7, DTYPES[dtype])
    out = whole[20:40].reshape(2, 10, 1, 1)
    x, w = np.ones((2, 16, 5, 5), DTYPES[dtype]), np.ones((10, 16, 5, 5), DTYPES[dtype])
    fc.conv2d(x, w, out=out, algorithm="numba/direct")
    assert np.all(out == 400)
    assert np.all(whole[:20] == 7) and np.all(whole[40:] == 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_pass(dtype):
    x = np.zeros((1, 3, 9, 9), DTYPES[dtype])
    x[0, 1, 4, 4], x[0, 2, 0, 0] = np.nan, np.inf
    w = np.ones((2, 3, 3, 3), DTYPES[dtype])
    y = fc.conv2d(x, w, algorithm="numba/direct").astype(np.float32)
    assert np.isnan(y[:, :, 2:5, 2:5]).all() and np.isnan(y).sum() == 18
    assert np.isposinf(y[:, :, 0, 0]).all() and np.isinf(y).sum() == 2


def test_what_would_be_rounded_twice_is_refused():
    for text in ("conv2d n1 c3 i8 oc4 k3 tanh", "conv2d n1 c3 i8 oc4 k1 sigmoid"):
        problem = parse_problem(text).replace(dtype="float16")
        for name in ("direct", "pointwise"):
            assert registry.find(f"numba/{name}").refuses(problem)
    transposed = parse_problem("conv2d:dgrad n1 c3 i8 oc4 k3 residual").replace(dtype="bfloat16")
    assert "residual" in registry.find("numba/dgrad_direct").refuses(transposed)


@pytest.mark.parametrize("text", ["conv2d n1 c64 i28 oc64 k3 p1", "conv2d n1 c64 i28 oc128 k1"])
@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_the_engine_is_chosen(text, direction):
    from fastconv.dispatch import survey
    from fastconv.options import current

    problem = parse_problem(text).replace(direction=direction, dtype="bfloat16")
    assert survey(problem, current()).winner.startswith("numba/")
