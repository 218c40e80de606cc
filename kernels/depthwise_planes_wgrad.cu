// Weight gradient of depthwise convolution where columns are neighbours in memory. A block has one channel and some of
// the tiles of its images; a thread has a column of ROWS elements of dy, and a sum for each tap. The block adds up its
// threads' sums, and depthwise_sum.cu the blocks', always in the same order.
//
// Macros: see depthwise_planes.cuh; TAPS (sums of a thread: every tap of an unrolled kernel, or so many at a time).

#include "depthwise_planes.cuh"

using namespace fastconv;

constexpr int WARPS = THREADS / 32;

__device__ inline void add_unrolled(const DepthwiseParameters& p, const Sum* from, const Sum (&dy)[ROWS], int rows,
                                    Sum (&sum)[TAPS]) {
#pragma unroll
    for (int y = 0; y < (ROWS - 1) * STEP + KERNEL_HEIGHT; ++y) {
        Sum read[KERNEL_WIDTH + 1];
#pragma unroll
        for (int j = 0; j < KERNEL_WIDTH; ++j) read[j] = from[y * p.line + j];
#pragma unroll
        for (int i = 0; i < KERNEL_HEIGHT; ++i) {
            if (y < i || (y - i) % STEP != 0 || (y - i) / STEP >= ROWS) continue;
            // Not zero times what x has there, which may be infinite.
            if ((y - i) / STEP >= rows) continue;
#pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; ++j) sum[i * KERNEL_WIDTH + j] += read[j] * dy[(y - i) / STEP];
        }
    }
}

__device__ inline void add_any(const DepthwiseParameters& p, const Sum* from, const Sum (&dy)[ROWS], int rows,
                               int first_tap, Sum (&sum)[TAPS]) {
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        const int tap = min(first_tap + t, p.row.taps * p.column.taps - 1);
        const auto [i, j] = p.by_taps.divmod(tap);
        const Sum* const read =
            from + static_cast<int>(i) * p.row.dilation * p.line + static_cast<int>(j) * p.column.dilation;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (r < rows) sum[t] += read[r * p.row.stride * p.line] * dy[r];
        }
    }
}

KERNEL(depthwise_planes_wgrad, DepthwiseParameters, THREADS) {
    DYNAMIC_SHARED(Sum, staged);
    SHARED_ARRAY(Sum, sums, TAPS * WARPS);
    const int channel = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y);
    const int first_tap = static_cast<int>(blockIdx.z) * TAPS;
    const ELEMENT* const x = p.source + source_channel(p, channel, 0) * p.source_map.channel;

    Sum sum[TAPS] = {};
    const int last = static_cast<int>(static_cast<long long>(p.passes) * (split + 1) / p.splits);
    for (int pass = static_cast<int>(static_cast<long long>(p.passes) * split / p.splits); pass < last; ++pass) {
        const TilePlace tile = tile_place(p, pass);
        const ThreadPlace thread = thread_place(p, tile, p.images);
        Sum dy[ROWS] = {};
        const int rows = thread.active ? min(ROWS, p.row.results - tile.row - thread.row) : 0;
        if (thread.active) {
            const ELEMENT* const from = p.weight + (tile.outer + thread.plane) * p.result_map.image +
                                        channel * p.result_map.channel + (tile.row + thread.row) * p.result_map.row +
                                        (tile.column + thread.column) * p.result_map.column;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (r < rows) dy[r] = widen(from[r * p.result_map.row]);
            }
        }
        stage(p, staged, tile.source_row, tile.source_column, [&](int plane) {
            return tile.outer + plane < p.images ? x + (tile.outer + plane) * p.source_map.image : nullptr;
        });
        if (thread.active) {
            const Sum* const from = staged + (thread.plane * p.source_rows + thread.row * p.row.stride) * p.line +
                                    thread.column * p.column.stride + tile.ahead;
            if constexpr (UNROLLED) {
                add_unrolled(p, from, dy, rows, sum);
            } else {
                add_any(p, from, dy, rows, first_tap, sum);
            }
        }
        __syncthreads();
    }

    const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) sum[t] += __shfl_down_sync(0xffffffffu, sum[t], lanes);
        if (threadIdx.x % 32 == 0) sums[t * WARPS + warp] = sum[t];
    }
    __syncthreads();
    const int taps = p.row.taps * p.column.taps, tap = first_tap + static_cast<int>(threadIdx.x);
    if (threadIdx.x < TAPS && tap < taps) {
        Sum whole = 0;
        for (int i = 0; i < WARPS; ++i) whole += sums[threadIdx.x * WARPS + i];
        p.partial[(static_cast<long long>(split) * p.channels + channel) * taps + tap] = whole;
    }
}
