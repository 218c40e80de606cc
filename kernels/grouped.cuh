// What the kernels of small groups have in common: a tile of some groups' source channels in shared memory.
//
// Macros: ELEMENT; THREADS; LAST (whether channels are neighbours in memory, not columns); LOAD (elements of the source
// that are copied at once: along columns, or channels if LAST).

#pragma once

#include "async.cuh"
#include "convolution.cuh"
#include "plane.cuh"

namespace fastconv {

using Sum = Accumulator<ELEMENT>;

// The first element that the first of some positions reads, through whichever tap.
__device__ inline int first_source(const Axis& axis, int position) {
    return position * axis.stride + axis.origin + min(0, (axis.taps - 1) * axis.dilation);
}

// Where a block is: the first group, row and column of results, and row and column of the source.
struct BlockPlace {
    int group, image, row, column, source_row, source_column;
};

// The column from which a tile is copied: so that copies are aligned, not past the first one that is read.
__device__ inline int aligned_column(int column) {
    if (LAST) return column;
    const int beyond = column % LOAD;
    return column - (beyond < 0 ? beyond + LOAD : beyond);
}

// Copies some channels of the block's groups, from `first` on, with zeros beyond their edges. Parameters have a
// source and its map, numbers of groups and of their inputs, and the tile: block_groups, chunk (channels of a group),
// source_rows, line, plane, and divisors by_fast, by_middle and by_chunk.
template <class Parameters>
__device__ inline void stage_source(const Parameters& p, Sum* tile, const Axis& rows, const Axis& columns,
                                    const BlockPlace& block, int image, int first) {
    const int fast = LAST ? p.block_groups * p.chunk / LOAD : p.line / LOAD;
    const int count = LAST ? p.source_rows * p.line * fast : p.block_groups * p.chunk * p.source_rows * fast;
    for (int index = static_cast<int>(threadIdx.x); index < count; index += THREADS) {
        const auto [above, unit] = p.by_fast.divmod(index);
        const auto [slow, middle] = p.by_middle.divmod(above);
        const int staged = LAST ? static_cast<int>(unit) * LOAD : static_cast<int>(slow);
        const int row = LAST ? static_cast<int>(slow) : static_cast<int>(middle);
        const int column = LAST ? static_cast<int>(middle) : static_cast<int>(unit) * LOAD;
        const auto [group, channel] = p.by_chunk.divmod(staged);
        const int g = block.group + static_cast<int>(group), c = first + static_cast<int>(channel);
        const int y = block.source_row + row, x = block.source_column + column;
        const bool valid = within(y, rows.size) && within(x, columns.size) &&
                           c < p.inputs && g < p.groups;
        const long long at = p.source_map.at(image, g * p.inputs + c, y, x);
        Sum* const to = tile + staged * p.plane + row * p.line + column;
        if constexpr (sizeof(ELEMENT) == sizeof(Sum) && (!LAST || LOAD == 1)) {
            copy_async<LOAD * sizeof(ELEMENT)>(to, valid ? p.source + at : p.source, valid);
        } else {
            Vector<ELEMENT, LOAD> loaded = {};
            if (valid) loaded = load_vector<LOAD>(p.source + at);
#pragma unroll
            for (int i = 0; i < LOAD; ++i) to[i * (LAST ? p.plane : 1)] = widen(loaded.at[i]);
        }
    }
    commit_async();
}

}  // namespace fastconv
