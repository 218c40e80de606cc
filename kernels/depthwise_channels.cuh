// For the depthwise kernels of arrays whose channels are neighbours in memory: neighbouring threads have neighbouring
// vectors of channels, so that every access is whole, and windows overlap in the first-level cache.
//
// Macros: those of depthwise.cuh; WIDTH (channels of a vector), COLUMNS (neighbouring columns of a thread), THREADS.

#pragma once

#include "depthwise.cuh"

namespace fastconv {

using Elements = Vector<ELEMENT, WIDTH>;

// The source's elements at a place, zeros beyond its edges.
__device__ inline Elements read(const DepthwiseParameters& p, const ELEMENT* image, int row, int column) {
    Elements none = {};
    if (!within(row, p.row.sources) || !within(column, p.column.sources)) return none;
    return load_vector<WIDTH>(image + row * p.source_map.row + column * p.source_map.column);
}

// A thread's lane, which is its channels, and which of the block's walkers over positions it is.
struct Walker {
    int lane, walker, walkers, channel;
    bool active;
};

__device__ inline Walker walker_place(const DepthwiseParameters& p) {
    const auto [walker, lane] = p.by_lanes.divmod(threadIdx.x);
    const int channel = (static_cast<int>(blockIdx.y) * p.lanes + static_cast<int>(lane)) * WIDTH;
    const int walkers = THREADS / p.lanes;
    return {static_cast<int>(lane), static_cast<int>(walker), walkers, channel,
            static_cast<int>(walker) < walkers && channel < p.channels};
}

}  // namespace fastconv
