// Tiles of planes in shared memory, for the depthwise kernels of arrays whose columns are neighbours in memory.
//
// Macros: those of depthwise.cuh; LOAD (elements that are copied at once), ROWS (result rows of a thread), THREADS.

#pragma once

#include "depthwise.cuh"

namespace fastconv {

// Copies the source's part of a tile into shared memory, with zeros beyond its edges: `origin(plane)` is a plane's
// first element, or null. Returns with all threads' copies done.
template <class Origin>
__device__ inline void stage(const DepthwiseParameters& p, Sum* tile, int first_row, int first_column, Origin origin) {
    const auto [line, chunk] = p.by_chunks.divmod(threadIdx.x);
    if (static_cast<int>(line) < p.staged_lines) {
        const int at = static_cast<int>(chunk) * LOAD, x = first_column + at;
        // LOAD divides the width of the source, so that a chunk is all inside or all outside.
        const bool inside = within(x, p.column.sources);
        const auto [first_plane, first] = p.by_source_rows.divmod(line);
        int plane = static_cast<int>(first_plane), row = static_cast<int>(first);
        while (plane < p.planes) {
            const int y = first_row + row;
            const ELEMENT* const from = origin(plane);
            const bool valid = inside && from != nullptr && within(y, p.row.sources);
            const ELEMENT* const element = valid ? from + y * p.source_map.row + x * p.source_map.column : p.source;
            Sum* const to = tile + (plane * p.source_rows + row) * p.line + at;
            if constexpr (sizeof(ELEMENT) == sizeof(Sum)) {
                copy_async<LOAD * sizeof(ELEMENT)>(to, element, valid);
            } else {
                Vector<ELEMENT, LOAD> loaded = {};
                if (valid) loaded = load_vector<LOAD>(element);
                Sum wide[LOAD];
#pragma unroll
                for (int i = 0; i < LOAD; ++i) wide[i] = widen(loaded.at[i]);
                store_all(to, wide);
            }
            plane += p.staged_planes;
            row += p.staged_rows;
            if (row >= p.source_rows) {
                row -= p.source_rows;
                ++plane;
            }
        }
    }
    if constexpr (sizeof(ELEMENT) == sizeof(Sum)) {
        commit_async();
        wait_async<0>();
    }
    __syncthreads();
}

// Where the tile of a block begins, in results; and where the tile of its source begins, and how many elements before
// the first one that is read, so that copies of LOAD elements are aligned.
struct TilePlace {
    int outer, row, column;
    int source_row, source_column, ahead;
};

__device__ inline TilePlace tile_place(const DepthwiseParameters& p, unsigned int index) {
    const auto [above, column_tile] = p.by_column_tiles.divmod(index);
    const auto [outer, row_tile] = p.by_row_tiles.divmod(above);
    TilePlace place;
    place.outer = static_cast<int>(outer) * p.planes;
    place.row = static_cast<int>(row_tile) * p.groups * ROWS;
    place.column = static_cast<int>(column_tile) * p.columns;
    place.source_row = first_source(p.row, place.row);
    const int first = first_source(p.column, place.column);
    place.source_column = floor_div(first, LOAD) * LOAD;
    place.ahead = first - place.source_column;
    return place;
}

// A thread's place in the tile: a column of ROWS rows.
struct ThreadPlace {
    int plane, row, column;  // row and column in the tile
    bool active;             // whether they are in the tile and in the result
};

__device__ inline ThreadPlace thread_place(const DepthwiseParameters& p, const TilePlace& tile, int planes) {
    const auto [above, column] = p.by_columns.divmod(threadIdx.x);
    const auto [plane, group] = p.by_groups.divmod(above);
    ThreadPlace place = {static_cast<int>(plane), static_cast<int>(group) * ROWS, static_cast<int>(column), false};
    place.active = place.plane < min(p.planes, planes - tile.outer) && tile.row + place.row < p.row.results &&
                   tile.column + place.column < p.column.results;
    return place;
}

}  // namespace fastconv
