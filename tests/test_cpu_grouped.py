"""The grouped convolution beyond what the registry's tests ask: tiles, bands, phases, special values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.backends.cpu.grouped.work import Work, choose_tile
from fastconv.backends.cpu.registers import Simd
from fastconv.notation import parse_problem

GROUPED = registry.find("numba/grouped")

# Rows shorter and longer than a vector, every number of channels that a tile takes, pads wider than a vector,
# strides with and without phases of their own.
SHAPES = """
    conv2d n1 c8 i56 oc8 k3 p1 g2 bias relu
    conv2d n2 c12 i14 oc12 k3 p1 g3
    conv2d n1 c32 i7 oc32 k3 p1 g2
    conv2d n1 c32 i28 oc32 k3 p1 s2 g4 bias residual relu
    conv2d n1 c16 i15 oc16 k3 p1 s2 g4
    conv2d n1 c16 ih9 iw70 oc48 kh3 kw3 sh1 sw2 p1 g4
    conv2d n1 c16 ih9 iw33 oc48 kh3 kw3 sh2 sw1 p1 g4
    conv2d n1 c4 i30 oc6 k3 s3 p1 g2
    conv2d n1 c4 i30 oc6 k1 s2 g2
    conv2d n1 c4 i20 oc6 k3 s2 p2 d2 g2
    conv2d n1 c4 i12 oc4 k3 ph1 pw40 g2
    conv2d n1 c4 ih5 iw3 oc4 kh3 kw5 ph1 pw2:19 s2 g2
    conv2d n1 c6 i12 oc10 k5 p2 g2 reflect bias leaky_relu
    conv2d n1 c6 i12 oc14 k3 p1 s2 g2 circular
    conv2d n1 c3 i40 oc3 k3 p1 sigmoid residual
    conv2d n1 c34 i9 oc34 k3 p1 g2
    conv2d n1 c44 i9 oc22 k3 p1 g2
    conv1d n3 c8 i50 oc20 k5 p2 g4
    conv1d n1 c8 i50 oc20 k5 p2 s2 g4
""".strip().splitlines()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("text", [text.strip() for text in SHAPES])
def test_shapes(text, layout, dtype):
    testing.check_problem(GROUPED, parse_problem(text).replace(dtype=dtype, layout=layout))


@pytest.mark.parametrize("layouts", [("channels_first", "channels_last"), ("channels_last", "channels_first")])
def test_input_and_output_may_lie_differently(layouts):
    problem = parse_problem("conv2d n2 c16 i19 oc16 k3 p1 s2 g4")
    x, w = testing.random_inputs(problem)
    expected = testing.exact(problem, (x, w))
    for layout in ("channels_first", "channels_last"):
        x, y = (
            testing.laid_out(operand, order, values)
            for operand, order, values in zip(
                (problem.inputs[0], problem.outputs[0]), layouts, (x, np.nan), strict=True
            )
        )
        GROUPED.plan(problem.replace(layout=layout)).run((x, w), (y,))
        testing.compare(problem, (y,), expected, GROUPED.error_bound(problem))


@pytest.mark.parametrize("text", ["conv2d n1 c32 i56 oc32 k3 p1 g8", "conv2d n3 c20 i13 oc30 k3 p1 g10 channels_last"])
def test_threads_change_no_bit(text):
    check_threads_share(GROUPED, parse_problem(text), counts=(1, 2, 5))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_spread_no_further_than_they_are_read(layout, stride):
    problem = parse_problem(f"conv2d n1 c8 i17 oc8 k3 p1 s{stride} g4").replace(layout=layout)
    x, w = testing.random_inputs(problem)
    for place, value in (((0, 2, 0, 16), np.nan), ((0, 5, 8, 0), np.inf), ((0, 7, 16, 16), np.nan)):
        x[place] = value
    testing.compare(
        problem, testing.run(GROUPED, problem, (x, w)), testing.exact(problem, (x, w)), GROUPED.error_bound(problem)
    )


def test_a_weight_of_any_strides():
    problem = parse_problem("conv2d n1 c8 i9 oc8 k3 p1 g2")
    x, w = testing.integer_inputs(problem)
    turned = np.ascontiguousarray(w.T).T
    assert np.array_equal(testing.run(GROUPED, problem, (x, turned))[0], testing.run(GROUPED, problem, (x, w))[0])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("conv2d n1 c64 i9 oc128 k3 g2", "output channels"),
        ("conv3d n1 c4 i9 oc4 k3 g2", "dimensions"),
        ("locally_connected2d n1 c4 i9 oc4 k3", "locally"),
    ],
)
def test_refusals_say_why(text, word):
    reason = GROUPED.refuses(parse_problem(text))
    assert reason is not None and word in reason


@pytest.mark.parametrize(
    ("lanes", "registers", "rate"), [(16, 32, 1.0), (16, 32, 2.0), (8, 16, 2.0), (4, 32, 2.0), (2, 16, 2.0)]
)
def test_tiles_fit_the_registers(lanes, registers, rate):
    for outputs, channels in itertools.product((1, 7, 55, 209, 3191), (1, 2, 3, 4, 8, 16, 30)):
        tile, cycles = choose_tile(outputs, channels, lanes, registers, rate)
        assert 1 <= tile.channels <= channels and 1 <= tile.less <= tile.vectors
        assert tile.channels * tile.vectors + min(tile.channels, tile.vectors) + 1 <= registers
        assert cycles >= channels * outputs / lanes / rate


@pytest.mark.parametrize("text", SHAPES)
def test_scratch_memory_is_a_fraction_of_the_cache_or_one_row_of_a_bundle(text):
    problem = parse_problem(text.strip())
    simd = Simd("avx512", 64, 32, True)
    work = Work(problem, simd, 2, 1 << 20)
    assert work.band == 1 or work.slab_bytes <= 1 << 20
    assert work.units >= 1 and (work.bands - 1) * work.band < work.rows.out


@pytest.mark.parametrize("text", ["n1 c128 i56 oc2 k3 p1", "n16 c180 i18 oc2 k3 s2 p1", "n2 c49 i97 oc1 k3 p1"])
def test_few_of_the_rows_that_bands_of_many_channels_share_are_copied_again(text):
    work = Work(parse_problem(f"conv2d {text}"), Simd("avx512", 64, 32, True), 1, 1 << 20)
    assert work.bands * work.rows.extent(work.band) < 1.4 * work.rows.extent(work.rows.out)
