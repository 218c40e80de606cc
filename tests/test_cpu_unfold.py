"""unfold and fold of the CPU engine: every way that elements take, the memory around results, threads, workspace."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.backends.cpu.unfold import run as unfold_run
from fastconv.backends.cpu.unfold import work as unfold_work
from fastconv.backends.cpu.unfold.listed import positions
from fastconv.backends.cpu.unfold.work import Work, phases_of
from fastconv.geometry import Axis
from fastconv.notation import parse_problem
from fastconv.options import options

UNFOLD, FOLD = registry.find("numba/unfold"), registry.find("numba/fold")
LAYOUTS = ("channels_first", "channels_last")

# Rows as they are, of one vector and of several; channels and phases transposed; two phases; patches; columns unread.
MORE = """
    unfold n2 c3 i32 k16 s16
    unfold n1 c3 ih34 iw37 k8 s8
    unfold n1 c2 ih7 iw40 k2 s2
    unfold n1 c20 i23 k3 s2 p1
    unfold n1 c37 i13 k3 s1 p1
    unfold n1 c5 i40 k3 s3 p1:2
    unfold n1 c5 i41 k2 s5
    unfold n1 c5 i41 k20 s17 p3
    unfold n1 c2 i67 k5 d3 s2 p4
    unfold n1 c2 i31 k5 d2 s4 p4
    unfold n1 c2 ih5 iw300 k3 p1
    unfold n2 c4 i9 k9
    unfold n2 c4 i9 k1
    unfold n1 c3 id5 ih9 iw11 kd3 kh3 kw3 s2 p1
    unfold n1 c17 id5 ih9 iw11 kd2 kh3 kw1 sd2 sh1 sw3 p1
    unfold n1 c18 iw133 kw7 sw3 p3
    unfold n2 c7 i8 k2 s3 p1:2
    unfold n2 c5 iw40000 kw2 sw3
    unfold n1 c6 id4 ih5 iw9 k2 s2
""".strip().splitlines()


@pytest.fixture(params=["rows", "list"])
def way(request, monkeypatch):
    """Have elements go row by row, or by a list wherever there may be one, whatever is faster."""
    listed = request.param == "list"
    monkeypatch.setattr(Work, "is_listed", property(lambda work: listed and not work.last and work._list_cycles < inf))
    return request.param


@pytest.fixture
def by_rows(monkeypatch):
    monkeypatch.setattr(Work, "is_listed", False)


def problems(dtypes=("float32",)):
    for text, layout, dtype in itertools.product(MORE, LAYOUTS, dtypes):
        problem = parse_problem(text).replace(layout=layout, dtype=dtype)
        yield problem
        yield problem.replace(direction="dgrad")


def algorithm_of(problem):
    return UNFOLD if problem.direction == "fprop" else FOLD


@pytest.mark.parametrize("problem", [*problems(), *list(problems(("float64", "bfloat16")))[:24]], ids=str)
def test_every_way(problem, way):
    testing.check_problem(algorithm_of(problem), problem)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("algorithm", [UNFOLD, FOLD], ids=lambda a: a.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_family_in_every_layout(algorithm, layout, dtype):
    among = (p.replace(layout=layout) for p in testing.problems(dtype) if hasattr(p, "c"))
    assert testing.check_algorithm(algorithm, among) == 4


@pytest.mark.parametrize("problem", list(problems()), ids=str)
def test_nothing_is_written_beside_the_result(problem, way):
    inputs = testing.random_inputs(problem)
    algorithm = algorithm_of(problem)
    (expected,) = testing.run(algorithm, problem, inputs)
    edge = 64
    buffer = np.full(expected.size + 2 * edge, 77, expected.dtype)
    inner = buffer[edge:-edge]
    if problem.layout == "channels_last" and problem.direction == "dgrad":
        n, c, *spatial = problem.x_shape
        result = np.moveaxis(inner.reshape(n, *spatial, c), -1, 1)
    else:
        result = inner.reshape(expected.shape)
    algorithm.plan(problem).run(inputs, (result,))
    assert np.array_equal(result, expected)
    assert (buffer[:edge] == 77).all() and (buffer[-edge:] == 77).all()


@pytest.mark.parametrize("problem", list(problems()), ids=str)
def test_threads_do_not_change_a_bit(problem, way):
    check_threads_share(algorithm_of(problem), problem)


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("problem", [p for p in problems() if algorithm_of(p) is FOLD][:6], ids=str)
def test_patches_of_large_maps_go_past_the_caches(problem, count, offset, gap, monkeypatch):
    """Wherever the lines of the cache begin, and whether rows of the map follow each other or not."""
    inputs = testing.random_inputs(problem)
    (expected,) = testing.run(FOLD, problem, inputs)
    monkeypatch.setattr(unfold_work, "KEPT", 0)
    shape = (*expected.shape[:-1], expected.shape[-1] + gap)
    buffer = np.full(np.prod(shape) + 128, 77, expected.dtype)
    whole = buffer[64 + offset :][: np.prod(shape)].reshape(shape)
    result = whole[..., : expected.shape[-1]]
    with options(threads=count):
        assert FOLD._work(problem).passes == (problem.layout == "channels_first")
        FOLD.plan(problem).run(inputs, (result,))
    assert np.array_equal(result, expected)
    result[...] = 77
    assert (buffer == 77).all()


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("step", [2, -1])
@pytest.mark.parametrize("problem", [p for p in problems() if algorithm_of(p) is FOLD][:6], ids=str)
def test_large_maps_whose_columns_are_no_neighbours_have_room_for_phases(problem, step, monkeypatch):
    """Their rows do not go past the caches after all."""
    inputs = testing.random_inputs(problem)
    (expected,) = testing.run(FOLD, problem, inputs)
    monkeypatch.setattr(unfold_work, "KEPT", 0)
    rooms = []

    def take(size):
        rooms.append(np.full(size + 4096, 77, np.uint8))
        return rooms[-1].ctypes.data

    monkeypatch.setattr(unfold_run.scratch, "take", take)
    result = np.empty((*expected.shape[:-1], 2 * expected.shape[-1]), expected.dtype)[..., ::step]
    result = result[..., : expected.shape[-1]]
    FOLD.plan(problem).run(inputs, (result,))
    assert np.array_equal(result, expected)
    assert rooms and all((memory[-4096:] == 77).all() for memory in rooms)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_of_an_unfold_are_those_of_the_input(layout, dtype, way):
    """NaN keep their payloads, zeros their signs."""
    problem = parse_problem("unfold n1 c17 i20 k3 s2 p1").replace(layout=layout, dtype=dtype)
    integer = np.uint32 if dtype == "float32" else np.uint16
    bits = np.random.default_rng(0).integers(0, np.iinfo(integer).max, problem.x_shape, integer, endpoint=True)
    x = testing.laid_out(problem.inputs[0], layout, 0)
    x.view(integer)[...] = bits
    (y,) = testing.run(UNFOLD, problem, (x,))
    padded = np.pad(bits, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    assert np.array_equal(y.view(integer), windows.transpose(0, 1, 4, 5, 2, 3).reshape(y.shape))


def test_lists_are_for_small_maps_with_strides():
    """Rows of a map that is large, or whose windows begin at every element, are vectors."""

    def is_listed(text):
        problem = parse_problem(text)
        return algorithm_of(problem)._work(problem).is_listed

    for direction in ("unfold", "unfold:dgrad"):
        assert is_listed(f"{direction} n4 c64 i8 k2 s3")
        assert is_listed(f"{direction} n4 c64 i14 k4 s4")
        assert not is_listed(f"{direction} n4 c64 i8 k2 s3 channels_last")
        assert not is_listed(f"{direction} n1 c3 i224 k2 s2")
        assert not is_listed(f"{direction} n1 c64 i56 k3 s1 p1")
    assert is_listed("unfold n4 c64 i8 k2 s3 f16") and not is_listed("unfold:dgrad n4 c64 i8 k2 s3 f16")


@pytest.mark.parametrize("text", ["unfold n1 c1 i5 k2 s2 p1", "unfold n1 c1 id3 ih4 iw5 kd2 kh1 kw3 s1 dw2 pw1"])
@pytest.mark.parametrize("size", [2, 4])
def test_positions_are_those_of_an_unfolded_map_of_numbers(text, size):
    problem = parse_problem(text)
    numbers = np.arange(1, np.prod(problem.input_size) + 1, dtype=np.float32).reshape(problem.x_shape)
    (columns,) = testing.run(registry.find("reference/windows"), problem, (numbers,))
    listed = positions(problem, size)
    assert listed.itemsize == size
    assert np.array_equal(listed + 1, columns.ravel())


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 1, 1), (3, 2, 1), (3, 2, 3), (7, 3, 2), (16, 16, 1)])
def test_phases_tell_where_kernel_positions_read(kernel, stride, dilation):
    phases = phases_of(Axis(100, 1, kernel, stride, dilation, 0, "zeros"))
    assert [phases.remainders[n] + stride * shift for n, shift in phases.taps] == [k * dilation for k in range(kernel)]


@pytest.mark.parametrize("problem", list(problems()), ids=str)
def test_scratch_is_a_share_of_the_cache(problem):
    algorithm = algorithm_of(problem)
    with options(threads=1):
        work = algorithm._work(problem)
        assert work.slab_bytes <= max(work.cache // 2, 4 * problem.bytes)
        assert (work.bands - 1) * work.band < work._rows <= work.bands * work.band
