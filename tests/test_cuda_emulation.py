"""The emulator itself: it computes what a GPU does, and catches what a GPU would not."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_emulation import ORDERS, EmulationError, Program, build

from fastconv.backends.cuda import sources

HEADERS = ("async.cuh", "tensorcore.cuh", "epilogue.cuh", "fastdiv.cuh")

# Each kernel reads p.x and writes p.y, p.n elements, by blocks of 64 threads.
KERNELS = """
using namespace fastconv;
struct P { const float* x; float* y; int n; };

KERNEL(copy, P, 64) {
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) p.y[i] = p.x[i];
}
KERNEL(reads_beyond, P, 64) {
    p.y[threadIdx.x] = p.x[threadIdx.x + 1];
}
KERNEL(reads_before, P, 64) {
    p.y[threadIdx.x] = p.x[static_cast<int>(threadIdx.x) - 1];
}
KERNEL(writes_beyond, P, 64) {
    p.y[2 * threadIdx.x] = 1;
}
KERNEL(writes_input, P, 64) {
    const_cast<float*>(p.x)[0] = 7;
}
KERNEL(turned_in_shared, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    p.y[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL(turned_without_barrier, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    p.y[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL(previous_without_barrier, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    p.y[threadIdx.x] = threadIdx.x ? tile[threadIdx.x - 1] : 0;
}
KERNEL(overwrites_without_barrier, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    const float before = tile[(threadIdx.x + 1) % 64];
    tile[threadIdx.x] = before;
    __syncthreads();
    p.y[threadIdx.x] = tile[threadIdx.x];
}
KERNEL(beyond_shared, P, 64) {
    SHARED_ARRAY(float, tile, 63);
    tile[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    p.y[threadIdx.x] = tile[0];
}
KERNEL(beyond_dynamic, P, 64) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    p.y[threadIdx.x] = tile[threadIdx.x ^ 1];
}
KERNEL(half_at_the_barrier, P, 64) {
    if (threadIdx.x < 32) __syncthreads();
    p.y[threadIdx.x] = 1;
}
KERNEL(two_barriers, P, 64) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    p.y[threadIdx.x] = 1;
}
KERNEL(half_a_warp_shuffles, P, 64) {
    float v = p.x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
    p.y[threadIdx.x] = v;
}
KERNEL(misaligned, P, 64) {
    p.y[threadIdx.x] = load_vector<4>(p.x + 1).at[0];
}
KERNEL(sums, P, 64) {
    float v = p.x[threadIdx.x];
    for (int bits = 16; bits; bits /= 2) v += __shfl_xor_sync(0xffffffffu, v, bits);
    p.y[threadIdx.x] = v;
}
KERNEL(shuffles, P, 64) {
    const float v = p.x[threadIdx.x];
    const unsigned int all = 0xffffffffu;
    p.y[threadIdx.x] = v + 100 * __shfl_up_sync(all, v, 3) + 10000 * __shfl_down_sync(all, v, 2, 8) +
                       1000000 * __shfl_sync(all, v, 5, 16);
}
KERNEL(votes, P, 64) {
    const bool odd = static_cast<int>(p.x[threadIdx.x]) % 2;
    const int half = __popc(__ballot_sync(0xffffffffu, odd));
    p.y[threadIdx.x] = half + 100 * __syncthreads_count(odd) + 10000 * __any_sync(0xffffffffu, odd) +
                       100000 * __all_sync(0xffffffffu, odd);
}
KERNEL(counts, P, 64) {
    SHARED_ARRAY(int, count, 1);
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    atomicAdd(count, static_cast<int>(p.x[threadIdx.x]));
    __syncthreads();
    p.y[threadIdx.x] = *count;
}
template <bool waits>
void copied(const P& p) {
    SHARED_ARRAY(float, tile, 64);
    copy_async<4>(tile + threadIdx.x, p.x + threadIdx.x, threadIdx.x % 2);
    commit_async();
    commit_async();
    if (waits) wait_async<1>();
    __syncthreads();
    p.y[threadIdx.x] = tile[63 - threadIdx.x];
    if (!waits) wait_async<0>();
}
KERNEL(copied_and_awaited, P, 64) { copied<true>(p); }
KERNEL(copied_not_awaited, P, 64) { copied<false>(p); }
KERNEL(nan_is_replaced, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    const float other = tile[threadIdx.x ^ 1];
    p.y[threadIdx.x] = other == other ? other : p.x[threadIdx.x ^ 1];
}
KERNEL(warps_out_of_step, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = p.x[threadIdx.x];
    __syncthreads();
    __syncwarp();
    const float other = tile[threadIdx.x ^ 32];
    __syncwarp();
    tile[threadIdx.x] = 0;
    p.y[threadIdx.x] = other;
}
KERNEL(later_block_wins, P, 64) {
    p.y[threadIdx.x] = blockIdx.x;
}
KERNEL(never_arrives, P, 64) {
    SHARED_ARRAY(float, tile, 64);
    copy_async<4>(tile + threadIdx.x, p.x);
    p.y[threadIdx.x] = 0;
}
"""


SIZE = 64


@pytest.fixture(scope="module")
def program():
    headers = "".join(f'#include "{name}"\n' for name in HEADERS)
    return Program(build(sources.inlined(headers + KERNELS, "test.cu")))


def run(program, name, x, y=None, order="forward", shared=0, extra=b"", blocks=1):
    y = np.full(SIZE, np.nan, np.float32) if y is None else y
    parameters = bytes(16) + np.int64(y.size).tobytes() + extra
    program.run(name, (blocks,), (64, 1, 1), shared, (order, 0), parameters, (x, y))
    return y


NUMBERS = np.arange(SIZE, dtype=np.float32)

CAUGHT = {
    "reads_beyond": "heap-buffer-overflow",
    "reads_before": "heap-buffer-overflow",
    "writes_beyond": "heap-buffer-overflow",
    "beyond_shared": "heap-buffer-overflow",
    "half_at_the_barrier": r"32 threads, thread 32 among them, are at the kernel's end(.|\n)*32 threads.*__syncthreads",
    "two_barriers": "a rendezvous that not all its threads reach",
    "half_a_warp_shuffles": r"32 threads.* in __shfl_xor_sync at test.cu:",
    "misaligned": "misaligned address",
    "never_arrives": "a thread ends before its copies have arrived",
    "no_such_kernel": "no kernel no_such_kernel",
}


@pytest.mark.parametrize("name", CAUGHT)
@pytest.mark.parametrize("order", ORDERS)
def test_mistake_is_caught(program, name, order):
    with pytest.raises(EmulationError, match=CAUGHT[name]):
        run(program, name, NUMBERS, order=order)


def test_block_of_shared_memory_ends_where_the_launch_says(program):
    run(program, "beyond_dynamic", NUMBERS, shared=256)
    with pytest.raises(EmulationError, match="heap-buffer-overflow"):
        run(program, "beyond_dynamic", NUMBERS, shared=252)


def test_input_is_read_only(program):
    x = NUMBERS.copy()
    x.flags.writeable = False
    with pytest.raises(EmulationError, match="wrote to memory that it was given to read"):
        run(program, "writes_input", x)


def test_size_of_parameters_is_checked(program):
    with pytest.raises(EmulationError, match="takes 24 bytes of parameters, was given 32"):
        run(program, "copy", NUMBERS, extra=bytes(8))


# A race gives different results in different orders; what shared memory holds that nobody wrote differs, too.
RACES = (
    *("turned_without_barrier", "previous_without_barrier", "overwrites_without_barrier"),
    *("copied_not_awaited", "nan_is_replaced", "warps_out_of_step", "later_block_wins"),
)
RIGHT = {
    "copy": NUMBERS,
    "turned_in_shared": NUMBERS[::-1],
    "copied_and_awaited": np.where(NUMBERS[::-1] % 2, NUMBERS[::-1], 0),
    "sums": np.repeat(NUMBERS.reshape(2, 32).sum(1), 32),
    "votes": np.full(SIZE, 16 + 100 * 32 + 10000),
    "counts": np.full(SIZE, NUMBERS.sum()),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("order", ORDERS)
def test_right_in_every_order(program, name, order):
    np.testing.assert_array_equal(run(program, name, NUMBERS, order=order), RIGHT[name])


@pytest.mark.parametrize("name", RACES)
def test_race_shows_in_some_order(program, name):
    results = [run(program, name, NUMBERS, order=order, blocks=2) for order in ORDERS]
    assert len({result.tobytes() for result in results}) > 1


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(program, order):
    lane, v = np.arange(SIZE) % 32, NUMBERS % 32
    up = np.where(lane >= 3, v - 3, v)
    down = np.where(lane % 8 < 6, v + 2, v)
    fixed = lane // 16 * 16 + 5
    expected = v + 100 * up + 10000 * down + 1000000 * fixed
    np.testing.assert_array_equal(run(program, "shuffles", v, order=order), expected.astype(np.float32))


@pytest.mark.parametrize("step", [2, -1])
def test_views_are_passed_as_they_lie(program, step):
    x, y = np.zeros(2 * SIZE, np.float32), np.zeros(2 * SIZE, np.float32)
    x[::2] = NUMBERS
    # The kernel walks forward, so a view that is turned around gives it too little.
    if step == 2:
        run(program, "copy", x[:SIZE], y[SIZE:])
        np.testing.assert_array_equal(y, np.concatenate((np.zeros(SIZE), x[:SIZE])))
    else:
        with pytest.raises(EmulationError, match="heap-buffer-overflow"):
            run(program, "copy", x[:SIZE][::-1], y)


MATRICES = """
using namespace fastconv;
struct P { const unsigned short* a; const unsigned short* b; float* d; };
template <class T>
void multiply(const P& p) {
    constexpr int k = 16;
    const int lane = threadIdx.x;
    SHARED_ARRAY(unsigned short, a_tile, 16 * k);
    SHARED_ARRAY(unsigned short, b_tile, k * 16);
    for (int i = lane; i < 16 * k; i += 32) a_tile[i] = p.a[i], b_tile[i] = p.b[i];
    __syncwarp();
    unsigned int a[4], b[4];
    load_matrices<false>(a, a_tile + (lane % 16) * k + lane / 16 * 8);
    load_matrices<true>(b, b_tile + (lane % 16) * 16 + lane / 16 * 8);
    for (int half = 0; half < 2; ++half) {
        float d[4] = {1, 1, 1, 1};
        multiply_matrices<T>(d, a, {b[2 * half], b[2 * half + 1]});
        for (int i = 0; i < 4; ++i) p.d[(lane / 4 + i / 2 * 8) * 16 + 8 * half + lane % 4 * 2 + i % 2] = d[i];
    }
}
KERNEL(multiply_half, P, 32) { multiply<Half>(p); }
KERNEL(multiply_bfloat16, P, 32) { multiply<BFloat16>(p); }
KERNEL(multiply_tf32, P, 32) {
    const float *x = reinterpret_cast<const float*>(p.a), *y = reinterpret_cast<const float*>(p.b);
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned int a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(x[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) b[i] = to_tf32(y[(t + 4 * i) * 8 + g]);
    float d[4] = {0, 0, 0, 0};
    multiply_matrices<Tf32>(d, a, b);
    for (int i = 0; i < 4; ++i) p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}
"""


@pytest.fixture(scope="module")
def matrices():
    return Program(build(sources.inlined('#include "tensorcore.cuh"\n' + MATRICES, "matrices.cu")))


@pytest.mark.parametrize(("name", "dtype"), [("multiply_half", np.float16), ("multiply_bfloat16", ml_dtypes.bfloat16)])
def test_matrix_instructions(matrices, name, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (16, 16)).astype(dtype) for _ in range(2))
    d = np.zeros((16, 16), np.float32)
    matrices.run(name, (1,), (32, 1, 1), 0, ("shuffled", 1), bytes(24), (a.view(np.uint16), b.view(np.uint16), d))
    np.testing.assert_array_equal(d, 1 + a.astype(np.float32) @ b.astype(np.float32))


def test_tf32_keeps_ten_bits(matrices):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 8)).astype(np.float32), rng.integers(-4, 5, (8, 8)).astype(np.float32)
    d = np.zeros((16, 8), np.float32)
    matrices.run("multiply_tf32", (1,), (32, 1, 1), 0, ("reverse", 0), bytes(24), (a * np.float32(1 + 2.0**-12), b, d))
    np.testing.assert_array_equal(d, a @ b)
