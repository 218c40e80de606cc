// Depthwise convolution and its input gradient where columns are neighbours in memory: a block has a tile of some
// planes in shared memory, a thread a column of ROWS results in registers, and neighbouring threads have neighbouring
// columns. Macros: see depthwise_planes.cuh.

#include "depthwise_planes.cuh"

using namespace fastconv;

// The taps of kernels of known size, which a thread holds in registers.
__device__ inline void add_unrolled(const DepthwiseParameters& p, const ELEMENT* weight, const Sum* from,
                                    Sum (&sum)[ROWS]) {
    Sum held[KERNEL_HEIGHT + 1][KERNEL_WIDTH + 1];
#pragma unroll
    for (int i = 0; i < KERNEL_HEIGHT; ++i) {
#pragma unroll
        for (int j = 0; j < KERNEL_WIDTH; ++j) {
            const int tap_row = GRADIENT ? KERNEL_HEIGHT - 1 - i : i, tap_column = GRADIENT ? KERNEL_WIDTH - 1 - j : j;
            held[i][j] = widen(weight[tap_row * p.weight_map.row + tap_column * p.weight_map.column]);
        }
    }
#pragma unroll
    for (int y = 0; y < (ROWS - 1) * STEP + KERNEL_HEIGHT; ++y) {
        Sum read[KERNEL_WIDTH + 1];
#pragma unroll
        for (int j = 0; j < KERNEL_WIDTH; ++j) read[j] = from[y * p.line + j];
#pragma unroll
        for (int i = 0; i < KERNEL_HEIGHT; ++i) {
            if (y < i || (y - i) % STEP != 0 || (y - i) / STEP >= ROWS) continue;
#pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; ++j) sum[(y - i) / STEP] += read[j] * held[i][j];
        }
    }
}

// Any taps. `from` is the tile's first element that the tile's first result might read.
__device__ inline void add_any(const DepthwiseParameters& p, const ELEMENT* weight, const Sum* from,
                               const TilePlace& tile, const ThreadPlace& thread, Sum (&sum)[ROWS]) {
    const Reach columns = reach(p.column, tile.column + thread.column);
    const Sum* const first = from + columns.source - (tile.source_column + tile.ahead);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const Reach rows = reach(p.row, tile.row + thread.row + r);
        for (int i = 0; i < rows.count; ++i) {
            const Sum* const line = first + (rows.source + i * rows.source_step - tile.source_row) * p.line;
            const ELEMENT* const tap = weight + (rows.tap + i * rows.tap_step) * p.weight_map.row;
            for (int j = 0; j < columns.count; ++j) {
                sum[r] += line[j * columns.source_step] *
                          widen(tap[(columns.tap + j * columns.tap_step) * p.weight_map.column]);
            }
        }
    }
}

KERNEL(depthwise_planes, DepthwiseParameters, THREADS, 1) {
    DYNAMIC_SHARED(Sum, staged);
    const TilePlace tile = tile_place(p, blockIdx.x);
    const int planes = p.images * p.channels;
    const ThreadPlace thread = thread_place(p, tile, planes);
    const auto own = p.by_channels.divmod(tile.outer + thread.plane);
    const int image = static_cast<int>(own.quotient), channel = static_cast<int>(own.remainder);

    Sum sum[ROWS] = {};
    for (int source = 0; source < p.sources; ++source) {
        if (source > 0) __syncthreads();
        stage(p, staged, tile.source_row, tile.source_column, [&](int plane) -> const ELEMENT* {
            if (tile.outer + plane >= planes) return nullptr;
            const auto [image, channel] = p.by_channels.divmod(tile.outer + plane);
            return p.source + image * p.source_map.image + source_channel(p, channel, source) * p.source_map.channel;
        });
        if (!thread.active) continue;
        const ELEMENT* const weight = p.weight + (channel * p.sources + source) * p.weight_map.channel;
        const Sum* const from = staged + thread.plane * p.source_rows * p.line + tile.ahead;
        if constexpr (UNROLLED) {
            add_unrolled(p, weight, from + thread.row * STEP * p.line + thread.column * p.column.stride, sum);
        } else {
            add_any(p, weight, from, tile, thread, sum);
        }
    }
    if (!thread.active) return;

    const Sum bias = p.bias ? widen(p.bias[channel * p.bias_step]) : Sum(0);
    const int first = tile.row + thread.row, column = tile.column + thread.column;
    ELEMENT* const result = p.result + p.result_map.at(image, channel, first, column);
    const ELEMENT* const residual =
        p.residual ? p.residual + p.residual_map.at(image, channel, first, column) : nullptr;
    unsigned int undefined = 0;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (first + r >= p.row.results) break;
        if (GRADIENT && sum[r] != sum[r]) {
            undefined |= 1u << r;
            continue;
        }
        Sum whole = sum[r] + bias;
        if (residual) whole += widen(residual[r * p.residual_map.row]);
        result[r * p.result_map.row] = narrow<ELEMENT>(activated(whole, p.activation));
    }
    for (int r = 0; undefined != 0; ++r, undefined >>= 1) {
        if (!(undefined & 1)) continue;
        finish(p, image, channel, first + r, column, defined_gradient(p, image, channel, first + r, column));
    }
}
