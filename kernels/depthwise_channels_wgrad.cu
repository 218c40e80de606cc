// Weight gradient of depthwise convolution where channels are neighbours in memory. A thread has a vector of channels
// and a sum for each of TAPS taps; it walks over strips of COLUMNS elements of dy. The block adds up its threads' sums,
// and depthwise_sum.cu the blocks', always in the same order.
//
// Macros: see depthwise_channels.cuh; TAPS (an unrolled kernel's rows of taps that a thread has, times their width;
// or so many taps of any kernel).

#include "depthwise_channels.cuh"

using namespace fastconv;

using Sums = Sum[TAPS][WIDTH];

__device__ inline void add_unrolled(const DepthwiseParameters& p, const ELEMENT* x, const Elements (&dy)[COLUMNS],
                                    int columns, int row, int column, int first_tap, Sums& sum) {
    constexpr int WIDE = KERNEL_WIDTH > 0 ? KERNEL_WIDTH : 1, WINDOW = (COLUMNS - 1) * STEP + WIDE;
    const int first_row = first_source(p.row, row) + first_tap / WIDE, first_column = first_source(p.column, column);
#pragma unroll
    for (int i = 0; i < TAPS / WIDE; ++i) {
        Elements window[WINDOW];
#pragma unroll
        for (int j = 0; j < WINDOW; ++j) window[j] = read(p, x, first_row + i, first_column + j);
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
            // Not zero times what x has there, which may be infinite.
            if (t >= columns) continue;
#pragma unroll
            for (int j = 0; j < WIDE; ++j) {
#pragma unroll
                for (int v = 0; v < WIDTH; ++v) {
                    sum[i * WIDE + j][v] += widen(window[t * STEP + j].at[v]) * widen(dy[t].at[v]);
                }
            }
        }
    }
}

__device__ inline void add_any(const DepthwiseParameters& p, const ELEMENT* x, const Elements (&dy)[COLUMNS],
                               int columns, int row, int column, int first_tap, Sums& sum) {
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        const int tap = min(first_tap + k, p.row.taps * p.column.taps - 1);
        const auto [i, j] = p.by_taps.divmod(tap);
        const int y = first_source(p.row, row) + static_cast<int>(i) * p.row.dilation;
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
            if (t >= columns) continue;
            const int at = first_source(p.column, column + t) + static_cast<int>(j) * p.column.dilation;
            const Elements loaded = read(p, x, y, at);
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) sum[k][v] += widen(loaded.at[v]) * widen(dy[t].at[v]);
        }
    }
}

KERNEL(depthwise_channels_wgrad, DepthwiseParameters, THREADS, 2) {
    SHARED_ARRAY(Sum, sums, THREADS * WIDTH);
    const Walker thread = walker_place(p);
    const int split = static_cast<int>(blockIdx.x), first_tap = static_cast<int>(blockIdx.z) * TAPS;
    const ELEMENT* const x = p.source + source_channel(p, thread.channel, 0) * p.source_map.channel;
    const ELEMENT* const dy = p.weight + thread.channel * p.result_map.channel;

    Sums sum = {};
    const int last = static_cast<int>(static_cast<long long>(p.passes) * (split + 1) / p.splits);
    int strip = static_cast<int>(static_cast<long long>(p.passes) * split / p.splits) + thread.walker;
    for (; thread.active && strip < last; strip += thread.walkers) {
        const auto [above, column_tile] = p.by_column_tiles.divmod(strip);
        const auto [n, row] = p.by_row_tiles.divmod(above);
        const int column = static_cast<int>(column_tile) * COLUMNS, columns = min(COLUMNS, p.column.results - column);
        const ELEMENT* const from = dy + n * p.result_map.image + row * p.result_map.row + column * p.result_map.column;
        Elements loaded[COLUMNS];
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
            if (t < columns) loaded[t] = load_vector<WIDTH>(from + t * p.result_map.column);
        }
        const ELEMENT* const image = x + n * p.source_map.image;
        if constexpr (UNROLLED) {
            add_unrolled(p, image, loaded, columns, static_cast<int>(row), column, first_tap, sum);
        } else {
            add_any(p, image, loaded, columns, static_cast<int>(row), column, first_tap, sum);
        }
    }

    const int line = p.lanes * WIDTH, taps = p.row.taps * p.column.taps;
    const int index = static_cast<int>(threadIdx.x), channel = static_cast<int>(blockIdx.y) * line + index;
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
#pragma unroll
        for (int v = 0; v < WIDTH; ++v) sums[threadIdx.x * WIDTH + v] = sum[k][v];
        __syncthreads();
        if (index < line && channel < p.channels && first_tap + k < taps) {
            Sum whole = 0;
            for (int walker = 0; walker < thread.walkers; ++walker) whole += sums[walker * line + index];
            p.partial[(static_cast<long long>(split) * p.channels + channel) * taps + first_tap + k] = whole;
        }
        __syncthreads();
    }
}
