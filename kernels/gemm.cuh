// A matrix product on CUDA cores: a tile of the result in the registers of a block's threads.
//
// Operands come through shared memory, a slice of the reduction at a time, rows (or columns) side by side. A thread
// holds `rows` x `columns` elements of the tile, in pieces of 16 bytes that lie apart, so that what the threads of a
// warp read from shared memory falls into different banks.

#pragma once

#include "elements.cuh"

namespace fastconv {

// A is float or double.
template <class A, int tile_rows_, int tile_columns_, int tile_depth_, int rows_, int columns_>
struct Tile {
    static constexpr int tile_rows = tile_rows_, tile_columns = tile_columns_, tile_depth = tile_depth_;
    static constexpr int rows = rows_, columns = columns_;
    static constexpr int piece = vector_count<A>;
    static constexpr int row_threads = tile_rows / rows, column_threads = tile_columns / columns;
    static constexpr int threads = row_threads * column_threads;
    // One piece more a line: stores of neighbouring lines do not meet in a bank.
    static constexpr int row_line = tile_rows + piece, column_line = tile_columns + piece;
    static_assert(rows % piece == 0 && columns % piece == 0, "whole pieces");
    static_assert(threads % 32 == 0, "whole warps");

    A sum[rows][columns];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < rows; ++i) {
#pragma unroll
            for (int j = 0; j < columns; ++j) sum[i][j] = A(0);
        }
    }

    // The row of the tile that is element i of a thread.
    static __device__ int row(int thread, int i) {
        return i / piece * (row_threads * piece) + thread * piece + i % piece;
    }

    static __device__ int column(int thread, int j) {
        return j / piece * (column_threads * piece) + thread * piece + j % piece;
    }

    // Adds the product of a slice: `a` is [tile_depth][row_line], `b` is [tile_depth][column_line].
    __device__ void multiply(const A* a, const A* b, int row_thread, int column_thread) {
#pragma unroll
        for (int k = 0; k < tile_depth; ++k) {
            A left[rows], right[columns];
#pragma unroll
            for (int i = 0; i < rows; i += piece) load(left + i, a + k * row_line + row(row_thread, i));
#pragma unroll
            for (int j = 0; j < columns; j += piece) load(right + j, b + k * column_line + column(column_thread, j));
#pragma unroll
            for (int i = 0; i < rows; ++i) {
#pragma unroll
                for (int j = 0; j < columns; ++j) sum[i][j] += left[i] * right[j];
            }
        }
    }

  private:
    static __device__ void load(A* to, const A* from) {
        const Vector<A, piece> loaded = load_vector<piece>(from);
#pragma unroll
        for (int i = 0; i < piece; ++i) to[i] = loaded.at[i];
    }
};

// How a block's threads share the loading of a slice of `width` lines: along the reduction, where that is how the
// operand lies in memory, or across it. Element i of a thread is line `line(i)`, step `step(i)`.
template <int width, int depth, int threads, bool along>
struct Share {
    static constexpr int count = ceil_div(width * depth, threads);
    // How many different lines a thread meets, and how many different steps.
    static constexpr int lines = along ? count : (width > threads ? width / threads : 1);
    static constexpr int steps = along ? 1 : count / lines;
    static_assert(width * depth % threads == 0, "whole shares");
    static_assert(along ? threads % depth == 0 : (width % threads == 0 || threads % width == 0), "whole lines");

    static __device__ int line(int i) {
        const int index = static_cast<int>(threadIdx.x) + i * threads;
        return along ? index / depth : index % width;
    }

    static __device__ int step(int i) {
        const int index = static_cast<int>(threadIdx.x) + i * threads;
        return along ? index % depth : index / width;
    }
};

}  // namespace fastconv
