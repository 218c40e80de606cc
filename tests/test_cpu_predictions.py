"""What the engine's predictions take into account beside multiplications, by problems that differ in that alone."""

from dataclasses import replace

import pytest

from fastconv import registry
from fastconv.backends.cpu.planes.work import Work
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import machine
from fastconv.notation import parse_problem
from fastconv.options import options


def predicted(algorithm, text):
    problem, solver = parse_problem(text), registry.find(algorithm)
    assert solver.refuses(problem) is None
    with options(threads=1):
        return solver.predict(problem, replace(machine(), l2_bytes=1 << 20))


def test_pieces_are_waited_for_where_the_cache_does_not_hold_them():
    here = machine()
    assert here.moving(0, 100) == 0
    assert here.moving(here.l2_bytes, 100) == here.moving(here.l2_bytes)
    assert here.moving(100 * here.l2_bytes, 100) > here.moving(100 * here.l2_bytes)


def test_what_is_only_read_comes_faster():
    assert 0 < machine().reading(1 << 30) < machine().moving(1 << 30)


@pytest.mark.parametrize(
    ("algorithm", "shorter", "longer"),
    [
        # A channel more of a vector that is there anyway has only to be stored.
        ("numba/direct", "conv2d n1 c16 i56 oc1 k3 p1 prepacked", "conv2d n1 c16 i56 oc16 k3 p1 prepacked"),
        # Weights that are not packed beforehand.
        ("numba/planes", "conv2d n1 c16 i28 oc3 k3 p1 prepacked", "conv2d n1 c16 i28 oc3 k3 p1"),
        # As much output, but in rows of a third of the length.
        ("numba/grouped", "conv2d n1 c8 ih64 iw96 oc8 k3 p1 g8", "conv2d n1 c8 ih192 iw32 oc8 k3 p1 g8"),
        # A plane that no tile is as wide as, with as many pixels.
        ("numba/depthwise", "conv2d n8 c64 ih512 iw64 oc64 k3 p1 g64", "conv2d n8 c64 ih64 iw512 oc64 k3 p1 g64"),
        # Two blocks of output channels, the second of which reads every column of all channels again.
        ("numba/direct", "conv2d n16 c64 i56 oc16 k1 prepacked", "conv2d n8 c64 i56 oc32 k1 prepacked"),
        # As much output, written in turns with that of many channels.
        ("numba/planes", "conv2d n1 c1 i512 oc8 k1 prepacked", "conv2d n1 c1 i128 oc128 k1 prepacked"),
        # Rows of which every second one is read.
        ("numba/pointwise", "conv2d n1 c256 i64 oc8 k1 prepacked", "conv2d n1 c256 i128 oc8 k1 s2 prepacked"),
        # Phases that have to be brought together.
        ("numba/dgrad_direct", "conv2d:dgrad n1 c64 i32 oc8 k2", "conv2d:dgrad n1 c64 i64 oc8 k2 s2"),
        # Rows of one channel, which lie together, or beside those of others.
        ("im2col/gemm", "conv2d n1 c96 i64 oc96 k1 g96", "conv2d n1 c96 i64 oc96 k1 g96 channels_last"),
        # Two planes that do, and do not, lie a multiple of the cache's way apart.
        ("numba/wgrad", "conv2d:wgrad n1 c4 i97 oc182 k1", "conv2d:wgrad n1 c4 i96 oc182 k1"),
    ],
)
def test_what_costs_more_is_predicted_to(algorithm, shorter, longer):
    assert predicted(algorithm, shorter) < predicted(algorithm, longer)


def test_a_map_that_stays_near_is_not_waited_for_again():
    part, whole = (f"conv2d n1 c{channels} i14 oc256 k1 prepacked" for channels in (256, 1024))
    assert predicted("numba/direct", whole) < 4.4 * predicted("numba/direct", part)


def test_a_product_with_a_vector_is_as_fast_as_its_matrix_is_read():
    # Half of the multiplications, on a matrix of the same size.
    one, two = (predicted("im2col/gemm", f"conv2d:wgrad n1 c64 i64 oc{outputs} k1") for outputs in (1, 2))
    assert one < two


def test_columns_that_cross_cache_lines_keep_a_unit_waiting_that_does_vectors_in_halves():
    def cycles(outputs, rate):
        problem = parse_problem(f"conv2d n1 c8 i58 oc{outputs} k3 p1")
        return Work(problem, Simd("avx512", 64, 32, True, rate), 1, 1 << 20).cycles

    # One output channel is all loading; of eight, every vector that is loaded serves eight multiply-adds.
    assert cycles(1, 1.0) > 1.3 * cycles(1, 2.0)
    assert cycles(1, 1.0) / cycles(1, 2.0) > 0.8 * cycles(8, 1.0) / cycles(8, 2.0)
