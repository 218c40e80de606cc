"""Pools of the CPU engine: every kernel and width of map, special values, threads, and the memory around results."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sharing import check_threads_agree, check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.pool import gradient_work
from fastconv.backends.cpu.pool.gradient_work import GradientWork
from fastconv.backends.cpu.pool.windows import cover, lifted, runs, scales, span
from fastconv.backends.cpu.pool.work import WIDEST, Work
from fastconv.backends.cpu.registers import Simd, simd
from fastconv.geometry import divisors, taps
from fastconv.notation import parse_problem
from fastconv.options import options

POOL, GRADIENT = registry.find("numba/pool"), registry.find("numba/pool_gradient")
LAYOUTS = ("channels_first", "channels_last")
AVX512, AVX2 = Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True)

# One for each kernel and loop: unrolled rows of one vector and of several, rows of many, picked columns of one vector
# and of several, gathered ones, long windows, whole maps.
MORE = """
    adaptive_avg_pool2d n2 c64 i2 o1
    adaptive_avg_pool2d n1 c5 i1 o3
    max_pool2d n1 c8 i3 k3
    max_pool2d n1 c8 i2 k2
    avg_pool2d n1 c67 i1 k1
    max_pool2d n1 c64 ih3000 iw2 k2
    max_pool2d n1 c2 i8 k5 s1 p2
    avg_pool2d n2 c3 i9 k4 s1
    max_pool2d n2 c3 i7 k3 s1 p1
    max_pool2d n1 c35 ih14 iw14 k3 s2 ceil
    avg_pool2d n2 c3 i14 k5 s3
    avg_pool2d n1 c3 i35 k3 s1 p1 exclude_pad
    max_pool2d n1 c2 ih9 iw64 k3 s1 p1
    max_pool2d n1 c2 ih6 iw147 k3 s2 p1
    avg_pool2d n1 c2 ih8 iw200 k2
    avg_pool2d n1 c70 ih6 iw150 k3 s2 p1 ceil
    max_pool2d n1 c2 ih20 iw40 k7 s5 p3
    avg_pool2d n1 c2 ih20 iw40 k7 s4 p3 exclude_pad
    lp_pool2d n1 c2 i20 k7 s4 norm2
    lp_pool2d n1 c3 i9 k2 norm1
    max_pool2d n1 c2 i13 kh2 kw3 s2 d2 ph1 pw2
    max_pool2d n1 c2 ih3 iw40 kh2 kw3 s1 dh4 dw1 ph2 pw1
    max_pool2d n1 c2 ih40 iw3 kh3 kw2 s1 dh1 dw4 ph1 pw2
    max_pool3d n1 c2 id3 ih5 iw40 kd2 kh3 kw3 s1 dd4 dh1 dw1 pd2 ph1 pw1
    avg_pool2d n1 c2 i3 k2 s1 d4 p2
    avg_pool2d n1 c2 ih3 iw7 kh2 kw3 s1 dh4 dw1 ph2 pw1 exclude_pad
    avg_pool2d n1 c2 i3 k2 s1 d4 p2 exclude_pad
    max_pool3d n1 c2 id4 ih5 iw40 k2 s1
    adaptive_avg_pool2d n3 c37 ih7 iw7 o1
    adaptive_avg_pool1d n2 c3 i200 o1
    adaptive_max_pool2d n1 c2 ih9 iw11 oh1 ow1
    adaptive_avg_pool2d n1 c3 ih10 iw50 oh3 ow7
    max_pool2d n1 c3 ih9 iw100 k3
    max_pool2d n2 c5 ih7 iw9 k2
    max_pool2d n2 c5 i28 k2
    max_pool2d n4 c36 ih6 iw9 k2
    avg_pool2d n4 c40 ih6 iw14 k2
    max_pool2d n2 c5 i13 k5
    max_pool2d n2 c5 i7 k2 ceil
    max_pool2d n1 c3 ih8 iw100 k3 ceil
    max_pool2d n2 c3 ih15 iw30 k3 s1 p1
    max_pool2d n1 c3 ih27 iw29 k3 s2 p1
    avg_pool2d n2 c3 i14 k3
    avg_pool2d n1 c4 ih9 iw13 k3 ceil
    avg_pool2d n2 c3 ih13 iw10 k5 div7
    max_pool2d n1 c3 ih9 iw700 kh2 kw3 sh2 sw40
    max_pool2d n1 c3 ih9 iw700 kh3 kw3 sh2 sw40 dh1 dw5
    avg_pool2d n2 c3 ih20 iw300 kh3 kw170 sh2 sw40 ph1 pw9 exclude_pad
    lp_pool2d n1 c3 ih9 iw150 kh3 kw90 sh4 sw30 norm2
    lp_pool2d n1 c3 i40 k9 s9 norm1
    avg_pool2d n1 c3 i40 k9 s1 p4 exclude_pad
    adaptive_avg_pool2d n2 c3 ih10 iw50 oh3 ow70
    adaptive_avg_pool2d n1 c3 ih10 iw20 oh3 ow100
    adaptive_avg_pool3d n2 c2 id4 ih9 iw21 od3 oh4 ow5
    adaptive_max_pool2d n1 c3 ih9 iw400 oh4 ow60
    adaptive_avg_pool1d n2 c3 i20 o200
    max_pool2d n1 c3 ih20 iw40 k7 s3 p3
    avg_pool2d n1 c3 ih20 iw40 k6 s1 p3 exclude_pad
    lp_pool2d n2 c3 i7 k7 norm2
    max_pool2d n2 c3 ih9 iw70 k3 s3 p1
    avg_pool2d n1 c3 ih9 iw70 k3 s3 p1
    max_pool2d n1 c3 ih9 iw40 k2 s1
    avg_pool2d n1 c3 ih9 iw40 k2 s2 p1
    avg_pool2d n2 c3 ih9 iw100 kh3 kw5 sh1 sw2
    avg_pool2d n2 c3 i37 k4 s3 p2
    avg_pool2d n2 c3 i14 k7 s1 p3 exclude_pad
    avg_pool2d n2 c3 i21 k5 s4 p1 ceil
    adaptive_avg_pool2d n2 c3 i13 o4
    adaptive_avg_pool2d n4 c40 i7 o4
    max_pool2d n2 c3 i35 k3 s2
""".strip().splitlines()

# Those whose kernels are compiled for float64 too: what differs is the width of indices, and the number of lanes.
WIDE = [text for text in MORE if text.split()[-3:] in (["k3", "s1", "p1"], ["k3", "s2", "p1"]) or "exclude_pad" in text]

# One for each kernel whose elements may be of a half format: each layout has one of these.
HALF = """
    max_pool2d n1 c35 ih14 iw14 k3 s2 ceil
    max_pool2d n2 c5 ih7 iw9 k2
    avg_pool2d n1 c4 ih9 iw13 k3 ceil
    max_pool2d n1 c2 i13 kh2 kw3 s2 d2 ph1 pw2
    avg_pool2d n1 c3 i35 k3 s1 p1 exclude_pad
    avg_pool2d n1 c70 ih6 iw150 k3 s2 p1 ceil
    avg_pool2d n1 c2 ih20 iw40 k7 s4 p3 exclude_pad
    lp_pool2d n1 c2 i20 k7 s4 norm2
    adaptive_avg_pool2d n3 c37 ih7 iw7 o1
    adaptive_avg_pool2d n1 c3 ih10 iw50 oh3 ow7
    adaptive_max_pool2d n1 c2 ih9 iw11 oh1 ow1
    max_unpool2d n2 c35 i4 o8
""".strip().splitlines()
# One for each kernel that reads or writes indices.
INDEXED = """
    max_pool2d n1 c35 ih14 iw14 k3 s2 ceil
    max_pool2d n2 c5 i28 k2
    max_pool2d n1 c3 ih9 iw100 k3
    max_pool2d n1 c2 i13 kh2 kw3 s2 d2 ph1 pw2
    max_pool2d n1 c3 ih9 iw700 kh3 kw3 sh2 sw40 dh1 dw5
    adaptive_max_pool2d n1 c2 ih9 iw11 oh1 ow1
""".strip().splitlines()
FORMATS = dict(zip(LAYOUTS, ("float16", "bfloat16"), strict=True))


def problems():
    for text, layout in itertools.product(HALF, LAYOUTS):
        half = parse_problem(text).replace(layout=layout, dtype=FORMATS[layout])
        yield half
        yield half.replace(direction="dgrad")
    for text, layout, dtype in itertools.product(INDEXED, LAYOUTS, ("float32", "float64")):
        pool = parse_problem(text).replace(layout=layout, dtype=dtype)
        for narrow in ("int32", "int16"):
            yield pool.replace(return_indices=True, index_dtype=narrow)
            yield pool.replace(direction="dgrad", index_dtype=narrow)
    for text, layout, dtype in itertools.product(MORE, LAYOUTS, ("float32", "float64")):
        forward = parse_problem(text).replace(layout=layout, dtype=dtype)
        if dtype == "float64" and (text not in WIDE or layout == "channels_last"):
            continue
        yield forward
        yield forward.replace(direction="dgrad")
        if forward.is_max:
            yield forward.replace(return_indices=True)


def loops_of(problem, vectors, workers):
    """Return which loops a pool of channels-first maps goes through, and what shapes them."""
    if solver(problem) is POOL:
        work = Work(problem, vectors, workers)
        if work.windows:
            return "windows", work.windows
        if work.columns:
            return ("planes" if work.groups else "rows"), work.joined > 1
        if work.picks.vectors:
            return "picked", work.picks.vectors, work.picks.few > 0, work.joined > 1
        return "gathered", bool(work.indexed)
    work = GradientWork(problem, vectors, workers)
    if work.loops == "averages":
        return work.loops, min(work.columns[0], 1)
    if work.loops == "tiles":
        return work.loops, problem.is_max
    if work.loops != "shares":
        return (work.loops,)
    return "shares", work.picks.vectors, work.picks.few > 0, work.joined > 1


def test_every_loop_is_tested():
    wanted = {("windows", 1), ("windows", 4), ("gathered", 0), ("gathered", 1)}
    wanted |= {("rows", False), ("planes", False), ("planes", True)}
    wanted |= {("picked", count, False, together) for count in (2, 4, 8) for together in (False, True)}
    wanted |= {("picked", 1, True, together) for together in (False, True)}
    wanted |= {("shares", 1, True, False), ("shares", 2, True, True)}
    wanted |= {("shares", count, False, True) for count in (2, 8)}
    wanted |= {
        ("averages", 0),
        ("averages", 1),
        ("averages", -1),
        ("fills",),
        ("maps",),
        ("recorded",),
        ("tiles", False),
        ("tiles", True),
        ("routes",),
    }
    solved = [p for p in problems() if p.layout == "channels_first" and solver(p).refuses(p) is None]
    for vectors in (AVX512, AVX2):
        met = {loops_of(problem, vectors, 1) for problem in solved}
        assert wanted <= met, wanted - met
        columns = (Work(problem, vectors, 1).columns for problem in solved if solver(problem) is POOL)
        assert {found[0] for found in columns if found} == set(range(1, WIDEST + 1))


def solver(problem):
    return POOL if problem.direction == "fprop" and problem.kind != "max_unpool" else GRADIENT


@pytest.mark.parametrize("problem", list(problems()), ids=str)
def test_kernels_of_every_shape(problem):
    algorithm = solver(problem)
    if algorithm.refuses(problem) is None:
        testing.check_problem(algorithm, problem)


@pytest.mark.parametrize("algorithm", [POOL, GRADIENT], ids=lambda a: a.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_family_in_every_layout(algorithm, layout):
    testing.check_algorithm(algorithm, (p.replace(layout=layout) for p in testing.problems() if hasattr(p, "c")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_a_half_format_in_little_scratch(layout, monkeypatch):
    """Large maps: one plane at a time, or few channels."""
    monkeypatch.setattr(gradient_work, "_SUMS", 1 << 10)
    problem = parse_problem("max_pool2d:dgrad n2 c70 i9 kh3 kw2 s1").replace(layout=layout, dtype="float16")
    work = GradientWork(problem, simd(), 1)
    assert work.apart and (work.bands if work.last else work.planes) == (2 if work.last else 1)
    testing.check_problem(GRADIENT, problem)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", [text for text in MORE if "max" in text])
@pytest.mark.parametrize("rare", [np.nan, -np.inf, 0.0])
def test_special_values_and_ties(text, layout, rare):
    """The first of equals, the last NaN, and never the padding."""
    problem = parse_problem(text).replace(layout=layout, return_indices=True)
    (x,) = testing.random_inputs(problem)
    rng = np.random.default_rng(0)
    for share in (0.1, 1.0):
        values = np.where(rng.random(x.shape) < share, rare, np.round(x))
        source = testing.laid_out(problem.inputs[0], layout, values)
        expected = testing.exact(problem, (source,)).results
        results = testing.run(POOL, problem, (source,))
        plain = testing.run(POOL, problem.replace(return_indices=False), (source,))
        for result, wanted in zip((*results, *plain), (*expected, expected[0]), strict=True):
            assert np.array_equal(result, wanted, equal_nan=result.dtype != np.int64)


@pytest.mark.parametrize("problem", [p for p in problems() if p.dtype != "float64"], ids=str)
def test_nothing_is_written_beside_the_results(problem):
    algorithm = solver(problem)
    if algorithm.refuses(problem) is not None:
        return
    inputs = testing.random_inputs(problem)
    expected = testing.run(algorithm, problem, inputs)
    buffers, outputs = [], []
    for operand, result in zip(problem.outputs, expected, strict=True):
        size, edge = result.size, 64
        buffer = np.full(size + 2 * edge, 77, result.dtype)
        shape = operand.shape
        if problem.layout == "channels_last":
            inner = buffer[edge : edge + size].reshape(shape[0], *shape[2:], shape[1])
            outputs.append(np.moveaxis(inner, -1, 1))
        else:
            outputs.append(buffer[edge : edge + size].reshape(shape))
        buffers.append((buffer, edge, size))
    algorithm.plan(problem).run(inputs, tuple(outputs))
    for (buffer, edge, size), output, result in zip(buffers, outputs, expected, strict=True):
        assert np.array_equal(output, result, equal_nan=True)
        assert (buffer[:edge] == 77).all() and (buffer[edge + size :] == 77).all()


@pytest.mark.parametrize("problem", [p for p in problems() if p.dtype != "float64"], ids=str)
def test_threads_do_not_change_a_bit(problem):
    algorithm = solver(problem)
    if algorithm.refuses(problem) is None and not check_threads_agree(algorithm, problem):
        check_threads_share(algorithm, problem.replace(n=2))  # of one image there may be nothing to share


@pytest.mark.parametrize(
    "text", [text for text in testing.POOL_SHAPES if "unpool" not in text and "unfold" not in text]
)
def test_windows_are_those_of_the_tables(text):
    problem = parse_problem(text)
    for axis, table in zip(lifted(problem)[3 - problem.ndim :], taps(problem), strict=True):
        reads = span(axis)
        for o, row in enumerate(table):
            wanted = row[row >= 0]
            assert np.array_equal(reads.starts[o] + reads.step * np.arange(reads.counts[o]), wanted)
        alike = [(h + i, start + i * getattr(axis, "stride", 1), count)
                 for h, n, start, count in runs(axis) for i in range(n)]  # fmt: skip
        assert alike == [(o, reads.starts[o], reads.counts[o]) for o in range(axis.out)]
        if reads.step > 1:
            continue
        covers = cover(axis)
        for i in range(axis.size):
            windows = [o for o, row in enumerate(table) if i in row]
            assert list(range(covers.starts[i], covers.starts[i] + covers.counts[i])) == windows


@pytest.mark.parametrize("text", [text for text in testing.POOL_SHAPES + MORE if "avg" in text])
def test_factors_are_the_divisors(text):
    problem = parse_problem(text).replace(dtype="float64")
    rows, columns = scales(problem)
    product = rows[:, :, None] * (1 if columns is None else columns)
    lifted_divisors = divisors(problem).reshape(-1, *(1, *problem.output_size)[-2:])
    expected = np.divide(1, lifted_divisors, out=np.full_like(lifted_divisors, np.inf), where=lifted_divisors != 0)
    assert np.allclose(np.broadcast_to(product, lifted_divisors.shape), expected)


def test_refusals_name_the_reason():
    def reason(text, **changes):
        return POOL.refuses(parse_problem(text).replace(**changes))

    assert "forward" in reason("max_pool2d n1 c1 i8 k2", direction="dgrad")
    assert "dilated" in GRADIENT.refuses(parse_problem("avg_pool2d:dgrad n1 c1 i8 k2 d2"))
    assert "convolutions" in GRADIENT.refuses(parse_problem("conv2d n1 c1 i8 oc1 k3"))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_maps_that_are_joined_and_the_same_apart(kind):
    """Joined where one follows another, with NaN in one of them; as they are where something lies between."""
    problem = parse_problem(f"{kind}_pool2d n2 c40 ih6 iw14 k2")
    with options(threads=1):
        assert Work(problem, simd(), 1).joined == 40
        (x,) = testing.random_inputs(problem)
        x[1, 7, 2:4, 3] = np.nan
        (expected,) = testing.exact(problem, (x,)).results
        apart = np.full((2, 40, 8, 14), np.nan, x.dtype)[:, :, :6]
        apart[...] = x
        results = [testing.run(POOL, problem, (source,))[0] for source in (x, apart)]
    assert np.array_equal(*results, equal_nan=True)
    assert np.array_equal(np.isnan(results[0]), np.isnan(expected)) and np.isnan(expected).sum() == 1


@pytest.mark.parametrize("workers", [1, 2, 64])
@pytest.mark.parametrize("vectors", [AVX512, AVX2])
@pytest.mark.parametrize("text", MORE)
def test_every_worker_gets_units_and_scratch(text, vectors, workers):
    problem = parse_problem(text)
    gradient = problem.replace(direction="dgrad")
    works = [Work(problem, vectors, workers)]
    works += [GradientWork(gradient, vectors, workers)] if GRADIENT.refuses(gradient) is None else []
    for work in works:
        assert work.bands >= 1 and work.units >= 1
        assert work.line_bytes % 64 == 0 and work.cycles > 0


def test_windows_between_the_depths_read_nothing():
    x = np.ones((1, 2, 1, 5, 8), np.float32)
    settings = {"kernel_size": (2, 3, 3), "stride": 1, "dilation": (2, 1, 1), "padding": 1}
    expected = fc.max_pool3d(x, **settings, backend="reference")
    assert np.isneginf(expected).all()
    np.testing.assert_array_equal(fc.max_pool3d(x, **settings, backend="numba"), expected)
