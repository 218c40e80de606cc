"""The CUDA sources: found, and right where they compile as plain C++."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from fastconv.backends.cuda import sources

FASTDIV = """
#include <cstddef>
#include "fastdiv.cuh"

template <class Unsigned>
static void all(const Unsigned* d, const Unsigned* n, Unsigned* quotient, Unsigned* remainder, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const fastconv::FastDiv<Unsigned> divisor(d[i]);
        const auto [q, r] = divisor.divmod(n[i]);
        quotient[i] = q;
        remainder[i] = r;
    }
}

#define EXPORT(bits, Unsigned)                                                                              \\
    static_assert(8 * sizeof(Unsigned) == bits, "");                                                        \\
    extern "C" void divmod##bits(const Unsigned* d, const Unsigned* n, Unsigned* q, Unsigned* r, size_t c) { \\
        all(d, n, q, r, c);                                                                                 \\
    }                                                                                                       \\
    extern "C" void prepare##bits(Unsigned d, fastconv::FastDiv<Unsigned>* result) {                        \\
        *result = fastconv::FastDiv<Unsigned>(d);                                                           \\
    }
EXPORT(32, unsigned int)
EXPORT(64, unsigned long long)

static_assert(fastconv::FastDiv<unsigned int>(7).shift2 == 2, "prepared at compile time");
"""

TYPES = {32: np.uint32, 64: np.uint64}


@pytest.fixture(scope="module")
def fastdiv(tmp_path_factory):
    """The header as a library that ctypes can call."""
    compiler = shutil.which("g++")
    assert compiler, "g++ is needed to test the kernels on the CPU: install it (Debian: apt-get install g++)"
    library = tmp_path_factory.mktemp("kernels") / "fastdiv.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, "-I", str(sources.kernel_directory()), "-x", "c++", "-", "-o", str(library)],
        input=FASTDIV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def divmod_by(library, bits, divisors, numerators):
    """Return quotients and remainders of all pairs of the flat arrays."""
    results = np.empty((2, divisors.size), TYPES[bits])
    arrays = (divisors, numerators, *results)
    getattr(library, f"divmod{bits}")(*map(pointer, arrays), ctypes.c_size_t(divisors.size))
    return results


def edges(bits):
    """Return every power of two with its neighbours, and random values of every magnitude."""
    rng = np.random.default_rng(bits)
    powers = [(1 << shift) + around for shift in range(bits + 1) for around in (-2, -1, 0, 1, 2)]
    small = range(300)
    words = rng.integers(0, (1 << bits) - 1, 300, TYPES[bits], endpoint=True)
    drawn = [int(word) >> int(shift) for word, shift in zip(words, rng.integers(0, bits, 300), strict=True)]
    return sorted({v for v in (*powers, *small, *drawn) if 0 <= v < 1 << bits})


@pytest.mark.parametrize("bits", TYPES)
def test_fastdiv_divides_every_edge_by_every_edge(fastdiv, bits):
    values = np.array(edges(bits), TYPES[bits])
    d, n = (a.ravel() for a in np.meshgrid(values[1:], values))
    quotient, remainder = divmod_by(fastdiv, bits, np.ascontiguousarray(d), np.ascontiguousarray(n))
    np.testing.assert_array_equal(quotient, n // d)
    np.testing.assert_array_equal(remainder, n % d)


@pytest.mark.parametrize("bits", TYPES)
def test_fastdiv_steps_exactly_at_multiples(fastdiv, bits):
    """A multiplier that is off by one shows just below or at a large multiple of its divisor."""
    rng = np.random.default_rng(0)
    top = (1 << bits) - 1
    pairs = []
    for d in edges(bits)[1:]:
        last = top // d
        for k in {1, last, last - 1, *(int(x * last) for x in rng.random(20))}:
            pairs += [(d, n) for n in (k * d - 1, k * d, k * d + 1) if 0 <= n <= top]
    d, n = np.array(pairs, TYPES[bits]).T.copy()
    quotient, remainder = divmod_by(fastdiv, bits, d, n)
    np.testing.assert_array_equal(quotient, n // d)
    np.testing.assert_array_equal(remainder, n % d)


@pytest.mark.parametrize("bits", TYPES)
def test_fastdiv_can_be_prepared_by_any_host(fastdiv, bits):
    """The four words are what the formulas at the top of the header say, here in Python."""
    for d in edges(bits)[1:]:
        words = np.empty(4, TYPES[bits])
        argument = ctypes.c_uint32(d) if bits == 32 else ctypes.c_uint64(d)
        getattr(fastdiv, f"prepare{bits}")(argument, pointer(words))
        length = (d - 1).bit_length()
        multiplier = (1 << bits) * ((1 << length) - d) // d + 1
        assert [int(w) for w in words] == [d, multiplier, min(length, 1), max(length - 1, 0)]


def test_sources_are_found_by_name():
    assert sources.source("fastdiv.cuh") == (sources.kernel_directory() / "fastdiv.cuh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["missing.cu", "../pyproject.toml", ""])
def test_unknown_source_is_named(name):
    with pytest.raises(FileNotFoundError, match=r"no CUDA source '.*'.*there are .*fastdiv\.cuh"):
        sources.source(name)


def test_missing_sources_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_PLACES", (tmp_path / "a", tmp_path / "b"))
    sources.kernel_directory.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="not installed whole"):
            sources.kernel_directory()
    finally:
        sources.kernel_directory.cache_clear()
