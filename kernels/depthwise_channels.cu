// Depthwise convolution and its input gradient where channels are neighbours in memory: a thread has COLUMNS results of
// a vector of channels in registers. The block's weights are in shared memory, taps one after another. Macros: see
// depthwise_channels.cuh.

#include "depthwise_channels.cuh"

using namespace fastconv;

using Results = Sum[COLUMNS][WIDTH];

// Elements from one tap's weights to the next: stores of neighbouring taps do not meet in a bank.
__device__ inline int tap_line(const DepthwiseParameters& p) { return p.lanes * WIDTH + vector_count<Sum>; }

__device__ inline void stage_weight(const DepthwiseParameters& p, Sum* staged, int source) {
    const int taps = p.row.taps * p.column.taps, first = static_cast<int>(blockIdx.y) * p.lanes * WIDTH;
    const int count = min(p.lanes * WIDTH, p.channels - first) * taps;
    for (int index = static_cast<int>(threadIdx.x); index < count; index += THREADS) {
        const int channel = index / taps, tap = index - channel * taps;
        const auto [i, j] = p.by_taps.divmod(tap);
        const ELEMENT weight = p.weight[((first + channel) * p.sources + source) * p.weight_map.channel +
                                        i * p.weight_map.row + j * p.weight_map.column];
        staged[(UNROLLED && GRADIENT ? taps - 1 - tap : tap) * tap_line(p) + channel] = widen(weight);
    }
}

__device__ inline void add_unrolled(const DepthwiseParameters& p, const ELEMENT* image, const Sum* weight, int row,
                                    int column, Results& sum) {
    constexpr int WINDOW = (COLUMNS - 1) * STEP + KERNEL_WIDTH;
    const int first_row = first_source(p.row, row), first_column = first_source(p.column, column);
    // A row of taps at a time: all of them at once take more registers than there are.
#pragma unroll 1
    for (int i = 0; i < KERNEL_HEIGHT; ++i) {
        Elements window[WINDOW + 1];
#pragma unroll
        for (int x = 0; x < WINDOW; ++x) window[x] = read(p, image, first_row + i, first_column + x);
#pragma unroll
        for (int j = 0; j < KERNEL_WIDTH; ++j) {
            Sum tap[WIDTH];
            load_all(tap, weight + (i * KERNEL_WIDTH + j) * tap_line(p));
#pragma unroll
            for (int t = 0; t < COLUMNS; ++t) {
#pragma unroll
                for (int v = 0; v < WIDTH; ++v) sum[t][v] += widen(window[t * STEP + j].at[v]) * tap[v];
            }
        }
    }
}

__device__ inline void add_any(const DepthwiseParameters& p, const ELEMENT* image, const Sum* weight, int row,
                               int column, Results& sum) {
    const Reach rows = reach(p.row, row);
#pragma unroll
    for (int t = 0; t < COLUMNS; ++t) {
        const Reach columns = reach(p.column, column + t);
        for (int i = 0; i < rows.count; ++i) {
            for (int j = 0; j < columns.count; ++j) {
                const int tap = (rows.tap + i * rows.tap_step) * p.column.taps + columns.tap + j * columns.tap_step;
                const Elements loaded =
                    read(p, image, rows.source + i * rows.source_step, columns.source + j * columns.source_step);
                Sum held[WIDTH];
                load_all(held, weight + tap * tap_line(p));
#pragma unroll
                for (int v = 0; v < WIDTH; ++v) sum[t][v] += widen(loaded.at[v]) * held[v];
            }
        }
    }
}

// Stores a vector of results. Returns which of them are NaN, a bit each, and stay to be done.
__device__ inline unsigned int finish(const DepthwiseParameters& p, int image, int channel, int row, int column,
                                      const Sum (&sum)[WIDTH]) {
    unsigned int undefined = 0;
    Elements residual = {}, result;
    if (p.residual) residual = load_vector<WIDTH>(p.residual + p.residual_map.at(image, channel, row, column));
#pragma unroll
    for (int v = 0; v < WIDTH; ++v) {
        Sum whole = sum[v];
        if (GRADIENT && whole != whole) undefined |= 1u << v;
        if (p.bias) whole += widen(p.bias[(channel + v) * p.bias_step]);
        if (p.residual) whole += widen(residual.at[v]);
        result.at[v] = narrow<ELEMENT>(activated(whole, p.activation));
    }
    store_vector(p.result + p.result_map.at(image, channel, row, column), result);
    return undefined;
}

KERNEL(depthwise_channels, DepthwiseParameters, THREADS, 2) {
    DYNAMIC_SHARED(Sum, staged);
    const Walker thread = walker_place(p);
    for (int pass = 0; pass < p.passes; ++pass) {
        const unsigned int index = (blockIdx.x * p.passes + pass) * thread.walkers + thread.walker;
        const auto [above, column_tile] = p.by_column_tiles.divmod(index);
        const auto [n, y] = p.by_row_tiles.divmod(above);
        const int image = static_cast<int>(n), row = static_cast<int>(y);
        const int column = static_cast<int>(column_tile) * COLUMNS;
        const bool active = thread.active && image < p.images;

        Results sum = {};
        for (int source = 0; source < p.sources; ++source) {
            if (pass == 0 || p.sources > 1) {
                __syncthreads();
                stage_weight(p, staged, source);
                __syncthreads();
            }
            if (!active) continue;
            const ELEMENT* const from = p.source + image * p.source_map.image +
                                        source_channel(p, thread.channel, source) * p.source_map.channel;
            const Sum* const weight = staged + thread.lane * WIDTH;
            if constexpr (UNROLLED) {
                add_unrolled(p, from, weight, row, column, sum);
            } else {
                add_any(p, from, weight, row, column, sum);
            }
        }
        if (!active) continue;
        static_assert(COLUMNS * WIDTH <= 32, "a bit for each result");
        unsigned int undefined = 0;
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
            if (column + t >= p.column.results) break;
            undefined |= finish(p, image, thread.channel, row, column + t, sum[t]) << (t * WIDTH);
        }
        for (int bit = 0; undefined != 0; ++bit, undefined >>= 1) {
            if (!(undefined & 1)) continue;
            const int channel = thread.channel + bit % WIDTH, x = column + bit / WIDTH;
            finish(p, image, channel, row, x, defined_gradient(p, image, channel, row, x));
        }
    }
}
