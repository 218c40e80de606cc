// What the kernels of depthwise convolution share: a result channel is a sum over taps of one source channel, or of a
// few (an input gradient with a channel multiplier). A convolution moves more bytes than it computes here, so that
// all is about reading each element once.
//
// Macros: ELEMENT; GRADIENT (whether the result is dx); KERNEL_HEIGHT, KERNEL_WIDTH (taps, for kernels of dilation 1
// that a thread unrolls; 0 and 0 for any other), STEP (their stride; 1 if GRADIENT).

#pragma once

#include "async.cuh"
#include "convolution.cuh"
#include "plane.cuh"

namespace fastconv {

// One spatial axis, in the words of the convolution: results and sources are dx and dy if GRADIENT.
struct DepthwiseAxis {
    int results;
    int sources;
    int taps;
    int stride;
    int dilation;
    int before;
    int period;   // of an input gradient: every so-manieth tap reaches an element of dx,
    int advance;  // and the elements of dy that they reach lie so far apart
};

struct DepthwiseParameters {
    const ELEMENT* source;  // x, or dy of an input gradient
    const ELEMENT* weight;  // w; dy of a weight gradient
    ELEMENT* result;
    const ELEMENT* bias;
    const ELEMENT* residual;
    Accumulator<ELEMENT>* partial;  // sums of parts of a weight gradient

    Map source_map;
    Map result_map;  // of dy in a weight gradient
    Map residual_map;
    Map weight_map;  // of dw, too; no image
    long long bias_step;

    DepthwiseAxis row, column;
    int images, channels;  // of the result
    int repeats;           // result channels that read one source channel
    int sources;           // source channels that a result channel sums over
    int activation;
    int splits;

    // A block's tile. Planes: of so many planes, so many groups of rows, so many columns. Channels: so many lanes.
    int planes, groups, columns, lanes;
    int source_rows, line;  // of the tile of the source in shared memory
    int staged_lines, staged_planes, staged_rows;  // what the block's threads copy at once; as planes and rows
    int passes;
    FastDiv<unsigned int> by_channels, by_repeats, by_columns, by_groups, by_lanes, by_taps, by_chunks, by_source_rows;
    FastDiv<unsigned int> by_row_tiles, by_column_tiles;
};

using Sum = Accumulator<ELEMENT>;

constexpr bool UNROLLED = KERNEL_HEIGHT > 0;

__device__ inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// The first element of the source that results from `at` on read, if any does; perhaps beyond its ends.
__device__ inline int first_source(const DepthwiseAxis& axis, int at) {
    if (!GRADIENT) return at * axis.stride - axis.before;
    return floor_div(at + axis.before - (axis.taps - 1) * axis.dilation, axis.stride);
}

// The taps that reach a result, and the elements of the source that they read.
struct Reach {
    int tap, tap_step, count;
    int source, source_step;
};

__device__ inline Reach reach(const DepthwiseAxis& axis, int at) {
    if (!GRADIENT) return {0, 1, axis.taps, at * axis.stride - axis.before, axis.dilation};
    const int start = at + axis.before;
    int tap = 0;
    while (tap < axis.period && (start - tap * axis.dilation) % axis.stride != 0) ++tap;
    const int count = tap == axis.period || tap >= axis.taps ? 0 : (axis.taps - tap + axis.period - 1) / axis.period;
    return {tap, axis.period, count, (start - tap * axis.dilation) / axis.stride, -axis.advance};
}

__device__ inline int source_channel(const DepthwiseParameters& p, int channel, int source) {
    return static_cast<int>(p.by_repeats.divide(channel)) * p.sources + source;
}

// An input gradient by its definition. Tiles have zeros beyond the edges of dy, and zero times an infinite weight is
// NaN: so what comes out as NaN is computed again, over the elements that there are.
__device__ inline Sum defined_gradient(const DepthwiseParameters& p, int image, int channel, int row, int column) {
    const Reach rows = reach(p.row, row), columns = reach(p.column, column);
    Sum sum = 0;
    for (int source = 0; source < p.sources; ++source) {
        const ELEMENT* const from = p.source + image * p.source_map.image +
                                    source_channel(p, channel, source) * p.source_map.channel;
        const ELEMENT* const weight = p.weight + (channel * p.sources + source) * p.weight_map.channel;
        for (int i = 0; i < rows.count; ++i) {
            const int y = rows.source + i * rows.source_step;
            if (!within(y, p.row.sources)) continue;
            for (int j = 0; j < columns.count; ++j) {
                const int x = columns.source + j * columns.source_step;
                if (!within(x, p.column.sources)) continue;
                sum += widen(from[y * p.source_map.row + x * p.source_map.column]) *
                       widen(weight[(rows.tap + i * rows.tap_step) * p.weight_map.row +
                                    (columns.tap + j * columns.tap_step) * p.weight_map.column]);
            }
        }
    }
    return sum;
}

// One result: the epilogue on a sum, rounded and stored.
__device__ inline void finish(const DepthwiseParameters& p, int image, int channel, int row, int column, Sum sum) {
    if (p.bias) sum += widen(p.bias[channel * p.bias_step]);
    if (p.residual) sum += widen(p.residual[p.residual_map.at(image, channel, row, column)]);
    p.result[p.result_map.at(image, channel, row, column)] = narrow<ELEMENT>(activated(sum, p.activation));
}

}  // namespace fastconv
