"""fastconv on Dask arrays: what one array gives, to the bit, in chunks of any size, on every scheduler."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
from fresh import ROOT, python

import fastconv as fc
import fastconv.dask as fd
from fastconv.dask import blocks
from fastconv.options import current

MIB = 1 << 20
FAMILIES = ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool")


class Draw:
    """Random calls; not all of them are valid."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def sizes(self, least, stop, count):
        return tuple(int(v) for v in self.rng.integers(least, stop, count))

    def pick(self, *values):
        return values[self.rng.integers(len(values))]

    def array(self, *shape):
        return self.rng.integers(-3, 4, shape).astype(np.float32)

    def chunks(self, shape):
        """Return chunks of any sizes along every axis."""
        cuts = [sorted({0, n, *(int(c) for c in self.rng.integers(0, n + 1, self.rng.integers(0, 5)))}) for n in shape]
        return tuple(tuple(b - a for a, b in pairwise(c)) for c in cuts)

    def pads(self, stop, ndim):
        return tuple(self.sizes(0, stop, 2) for _ in range(ndim))

    def call(self, family):
        """Return an op's name, its input, its other arrays and its other arguments."""
        ndim = self.pick(1, 2, 2, 3)
        size = self.sizes(1, 12 if ndim < 3 else 7, ndim)
        kernel, stride, dilation = (self.sizes(1, 4, ndim) for _ in range(3))
        groups = self.pick(1, 2)
        channels, batch = 2 * groups, self.sizes(1, 3, self.pick(0, 1))
        x = self.array(*batch, channels, *size)
        arrays, rest = {}, {}
        if family == "conv":
            arrays = {"weight": self.array(3 * groups, 2, *kernel), "bias": self.array(3 * groups)}
            rest = {"dilation": dilation, "groups": groups, "padding": self.pick("same", self.pads(9, ndim))}
            rest["padding_mode"] = self.pick("zeros", "reflect", "replicate", "circular")
            rest["activation"] = self.pick(None, "relu")
        elif family == "conv_transpose":
            arrays = {"weight": self.array(channels, 3, *kernel), "bias": self.array(3 * groups)}
            rest = {"dilation": dilation, "groups": groups, "padding": self.pads(4, ndim)}
            rest["output_padding"] = self.sizes(0, 3, ndim)
        else:
            rest = {"kernel_size": kernel, "ceil_mode": self.pick(True, False)}
            if family == "lp_pool":
                x, rest["norm_type"] = np.abs(x), 2
            else:
                rest["padding"] = tuple(p // 2 for p in self.sizes(0, 3, ndim))
            if family == "max_pool":
                rest |= {"dilation": dilation, "return_indices": self.pick(True, False)}
            if family == "avg_pool":
                rest["count_include_pad"] = self.pick(True, False)
        return f"{family}{ndim}d", x, arrays, rest | {"stride": stride}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_give_what_one_array_gives(family, seed):
    draw, met = Draw(seed), 0
    while met < 4:
        name, x, arrays, rest = draw.call(family)
        chunked = da.from_array(x, chunks=draw.chunks(x.shape))
        with fc.options(backend="naive"):
            try:
                expected = getattr(fc, name)(x, **arrays, **rest)
            except ValueError:
                with pytest.raises(ValueError, match=":"):
                    getattr(fd, name)(chunked, **arrays, **rest)
                continue
            results = getattr(fd, name)(chunked, **arrays, **rest)
        met += 1
        expected, results = ((r if isinstance(r, tuple) else (r,)) for r in (expected, results))
        for result, wanted in zip(results, expected, strict=True):
            found = result.compute(scheduler="sync")
            what = f"{name} {x.shape} in {chunked.chunks} {rest}"
            assert result.shape == found.shape == wanted.shape and result.dtype == found.dtype == wanted.dtype, what
            assert np.array_equal(found, wanted, equal_nan=True), what


@pytest.mark.parametrize("algorithm", ["numba/direct", "im2col/gemm"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_the_same_algorithm_gives_the_same_bits(algorithm, mode):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 61, 47), dtype=np.float32)
    w = rng.standard_normal((7, 5, 3, 5), dtype=np.float32)
    with fc.options(algorithm=algorithm, threads=1):
        arguments = {"stride": (2, 1), "padding": ((2, 1), (3, 4)), "padding_mode": mode, "activation": "relu"}
        result = fd.conv2d(da.from_array(x, chunks=(1, 3, 17, 12)), w, **arguments)
        expected = fc.conv2d(x, w, **arguments)
    with dask.config.set(scheduler="threads", num_workers=4):
        found = result.compute()
    if algorithm.startswith("numba"):
        assert np.array_equal(found, expected)
    else:  # the sums of BLAS hang on the matrix's size
        wide = [a.astype(np.float64) for a in (x, w)]
        bound = fc.explain(fc.conv2d, x, w, algorithm=algorithm, **arguments).candidates[0].error_bound
        magnitude = fc.conv2d(*map(np.abs, wide), **arguments)
        assert (np.abs(found - expected) <= 2 * bound * magnitude + np.finfo(np.float32).eps * np.abs(expected)).all()


def test_a_residual_and_arrays_that_are_dask_arrays_themselves():
    draw = Draw(3)
    x, w, b, r = draw.array(2, 3, 20, 22), draw.array(4, 3, 3, 3), draw.array(4), draw.array(2, 4, 20, 22)
    lazy = [da.from_array(a, chunks=c) for a, c in ((x, (1, 2, 7, 9)), (w, 2), (b, 3), (r, 5))]
    result = fd.conv2d(*lazy[:3], padding=1, residual=lazy[3], activation="relu")
    expected = fc.conv2d(x, w, b, padding=1, residual=r, activation="relu", backend="naive")
    assert np.array_equal(result.compute(), expected)


def test_a_chain_of_ops_keeps_chunks_where_they_are():
    x = da.from_array(Draw(4).array(1, 2, 64, 96), chunks=(1, 2, 16, 24))
    w = Draw(5).array(2, 2, 3, 3)
    same = fd.conv2d(x, w, padding="same")
    assert same.chunks == x.chunks
    half = fd.max_pool2d(fd.conv2d(same, w, padding=1), 2)
    assert half.chunks == ((1,), (2,), (8,) * 4, (12,) * 4)
    assert fd.conv_transpose2d(half, Draw(6).array(2, 2, 4, 4), stride=2, padding=1).chunks == x.chunks
    assert fd.conv2d(x, w, stride=2, padding=1).chunks == half.chunks
    assert fd.conv2d(x, w).chunks[2:] == ((15, 16, 16, 15), (23, 24, 24, 23))


def test_a_block_reads_what_its_windows_cover_and_no_more(monkeypatch):
    read = []
    original = blocks.function
    monkeypatch.setattr(
        blocks, "function", lambda op: lambda x, **rest: read.append(x.shape) or original(op)(x, **rest)
    )
    x = da.from_array(Draw(7).array(1, 30, 30), chunks=(1, 10, 10))
    w = np.ones((1, 1, 3, 3), np.float32)
    fd.conv2d(x, w, dilation=2, padding=2).compute(scheduler="sync")
    assert sorted(read) == sorted((1, a, b) for a in (12, 14, 12) for b in (12, 14, 12))
    read.clear()
    fd.conv2d(x, w, stride=5, padding=1).compute(scheduler="sync")
    assert sorted(read) == sorted((1, a, b) for a in (7, 8, 8) for b in (7, 8, 8))
    read.clear()
    plain = fd.conv2d(x, np.ones((1, 1, 1, 1), np.float32))
    assert not any("edges" in str(key) for key in dict(plain.dask))  # whole blocks go in as they are
    fd.avg_pool2d(x, 5).compute(scheduler="sync")
    assert read == [(1, 10, 10)] * 9


def test_every_task_has_one_thread_unless_options_say_more(monkeypatch):
    found = []

    def spy(x, *args, **kwargs):
        found.append(current())
        return x

    x, w = da.ones((1, 1, 8, 8), dtype=np.float32, chunks=4), np.ones((1, 1, 1, 1), np.float32)
    lazy = fd.conv2d(x, w)
    with fc.options(threads=2, strict=True):
        told = fd.conv2d(x, w)
    monkeypatch.setattr(blocks, "function", lambda op: spy)
    for result, threads in ((lazy, 1), (told, 2)):
        found.clear()
        result.compute(scheduler="threads")
        assert [(o.threads, o.strict) for o in found] == [(threads, threads == 2)] * 4


def test_graphs_travel():
    x, w = Draw(8).array(1, 2, 12, 12), Draw(9).array(2, 2, 3, 3)
    y = fd.conv2d(da.from_array(x, chunks=5), w, padding=1)
    again = pickle.loads(pickle.dumps(y))
    assert np.array_equal(again.compute(scheduler="sync"), fc.conv2d(x, w, padding=1, backend="naive"))


@pytest.mark.slow
def test_two_processes_of_distributed_give_what_one_array_gives():
    distributed = pytest.importorskip("distributed")
    draw = Draw(10)
    x, w = draw.array(1, 3, 50, 60), draw.array(4, 3, 3, 3)
    chunked = da.from_array(x, chunks=(1, 3, 20, 25))
    expected = fc.max_pool2d(fc.conv2d(x, w, padding=1, padding_mode="circular"), 3, stride=2, padding=1)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        result = fd.max_pool2d(fd.conv2d(chunked, w, padding=1, padding_mode="circular"), 3, stride=2, padding=1)
        assert np.array_equal(result.compute(), expected)


@pytest.mark.slow
def test_an_image_is_never_whole_in_memory():
    """The benchmark of the image larger than memory, small: the peak is less than what lies between the filters."""
    command = [sys.executable, "-m", "benchmarks.dask_image", "--here", "--schedulers", "threads"]
    form = ["--size", "10000", "--workers", "2"]
    done = subprocess.run(command + form, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["between"] > 1500 * MIB and found["peak"] < 700 * MIB


def test_what_is_no_dask_array_is_refused():
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with pytest.raises(TypeError, match="input: expected a Dask array, got ndarray"):
        fd.conv2d(x, w)
    lazy = da.from_array(x)
    with pytest.raises(TypeError, match="residual: expected a Dask array"):
        fd.conv2d(lazy, w, residual=x)
    with pytest.raises(TypeError, match="out: a Dask array cannot be written to"):
        fd.conv2d(lazy, w, out=x)
    with pytest.raises(ValueError, match=r"weight: 1 groups of 1 channels"):
        fd.conv2d(da.ones((1, 2, 4, 4), dtype=np.float32), w)
    unknown = lazy[:, :, (lazy > 0)[0, 0, 0]]
    with pytest.raises(ValueError, match="unknown sizes"):
        fd.conv2d(unknown, w)


def test_without_dask_the_error_names_the_extra():
    done = python("import sys; sys.modules['dask'] = None; import fastconv.dask", fails=True)
    assert "pip install 'fastconv[dask]'" in done.stderr
