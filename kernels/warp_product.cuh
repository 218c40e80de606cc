// A matrix product on tensor cores: a tile of the result in the registers of a block's warps.
//
// Operands lie in shared memory, a slice of the reduction at a time, in chunks of 16 bytes. A slice is kept as it comes
// from memory: `along` has a line's steps of the reduction side by side, otherwise a step's lines are side by side.
// Chunks of a row are permuted, so that the eight rows that an ldmatrix reads fall into different banks.

#pragma once

#include "tensorcore.cuh"

namespace fastconv {

template <class T>
using Chunk = Vector<T, vector_count<T>>;

// What mma.sync makes of an element type.
template <class T>
struct MatrixElementOf {
    using type = T;
};
template <>
struct MatrixElementOf<float> {
    using type = Tf32;
};

// A slice of an operand: `lines` rows or columns of the product, `depth` steps of the reduction.
template <class T, int lines, int depth, bool along>
struct Slice {
    static constexpr int width = (along ? depth : lines) / vector_count<T>;  // chunks in a row
    static constexpr int height = along ? lines : depth;
    static constexpr int count = width * height;
    static_assert(width == 4 || width % 8 == 0, "rows that the permutations below are made for");
    static_assert(along || width >= 8, "rows of all banks");

    // Where a chunk of a row is.
    static __device__ constexpr int place(int row, int chunk) {
        if (along) return row * width + (chunk ^ (width == 4 ? row >> 1 & 3 : row & 7));
        // Halves are read eight rows at a time, numbers of 32 bits four rows of two chunks at a time.
        return row * width + (chunk ^ (sizeof(T) == 2 ? row & 7 : (row & 3) << 1));
    }

    // Whether the eight chunks that are read at once fall into different banks, wherever they are.
    static __device__ constexpr bool spreads() {
        const int rows = along || sizeof(T) == 2 ? 8 : 4, chunks = 8 / rows;
        for (int first = 0; first < height; first += rows) {
            for (int chunk = 0; chunk < width; chunk += chunks) {
                int met = 0;
                for (int i = 0; i < 8; ++i) met |= 1 << place(first + i / chunks, chunk + i % chunks) % 8;
                if (met != 255) return false;
            }
        }
        return true;
    }
};

// A warp's part of a tile: `warp_rows` x `warp_columns`.
template <class T, int tile_rows, int tile_columns, int depth, int warp_rows, int warp_columns, bool along>
struct WarpProduct {
    using Rows = Slice<T, tile_rows, depth, along>;
    using Columns = Slice<T, tile_columns, depth, along>;
    using Element = typename MatrixElementOf<T>::type;
    static constexpr int warps_across = tile_columns / warp_columns;
    static constexpr int threads = tile_rows / warp_rows * warps_across * 32;
    static constexpr int row_parts = warp_rows / 16, column_parts = warp_columns / 8;
    // An instruction takes 32 bytes of the reduction.
    static constexpr int step = 2 * vector_count<T>, steps = depth / step;
    static_assert(warp_rows % 16 == 0 && warp_columns % 16 == 0 && depth % step == 0, "whole instructions");
    static_assert(Rows::spreads() && Columns::spreads(), "no bank is met twice");

    // As the head comment of tensorcore.cuh has them: rows 16 i, columns 8 j of the warp's part.
    float sum[row_parts][column_parts][4];
    int row, column;  // of the tile, where the warp's part begins

    __device__ WarpProduct() {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        row = warp / warps_across * warp_rows;
        column = warp % warps_across * warp_columns;
#pragma unroll
        for (int i = 0; i < row_parts; ++i) {
#pragma unroll
            for (int j = 0; j < column_parts; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
            }
        }
    }

    // Adds the product of a slice. While one step is multiplied, the operands of the next are on their way.
    __device__ void multiply(const Chunk<T>* rows, const Chunk<T>* columns) {
        unsigned int a[2][row_parts][4], b[2][column_parts / 2][4];
        load(a[0], b[0], rows, columns, 0);
#pragma unroll
        for (int k = 0; k < steps; ++k) {
            if (k + 1 < steps) load(a[(k + 1) % 2], b[(k + 1) % 2], rows, columns, k + 1);
#pragma unroll
            for (int i = 0; i < row_parts; ++i) {
#pragma unroll
                for (int j = 0; j < column_parts; ++j) {
                    const unsigned int(&pair)[4] = b[k % 2][j / 2];
                    multiply_matrices<Element>(sum[i][j], a[k % 2][i], {pair[j % 2 * 2], pair[j % 2 * 2 + 1]});
                }
            }
        }
    }

  private:
    __device__ void load(unsigned int (&a)[row_parts][4], unsigned int (&b)[column_parts / 2][4], const Chunk<T>* rows,
                         const Chunk<T>* columns, int k) const {
#pragma unroll
        for (int i = 0; i < row_parts; ++i) fragment<Rows, true>(a[i], rows, row + 16 * i, k);
#pragma unroll
        for (int j = 0; j < column_parts / 2; ++j) fragment<Columns, false>(b[j], columns, column + 16 * j, k);
    }

    // Sixteen lines at one step, four matrices of eight lines. Of rows, the second matrix is eight lines further and
    // the third half a step further; of columns it is the other way around.
    template <class S, bool lines_first>
    static __device__ void fragment(unsigned int (&registers)[4], const Chunk<T>* slice, int line, int k) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const int second = lane / 8 % 2, third = lane / 16;
        const int line_half = lines_first ? second : third, step_half = lines_first ? third : second;
        if constexpr (along) {
            load_matrices<false>(registers, slice + S::place(line + lane % 8 + 8 * line_half, 2 * k + step_half));
        } else if constexpr (sizeof(T) == 2) {
            load_matrices<true>(registers, slice + S::place(step * k + lane % 8 + 8 * step_half, line / 8 + line_half));
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int lines = lines_first ? j % 2 : j / 2, halves = lines_first ? j / 2 : j % 2;
                const int at = line + 8 * lines + lane / 4;
                registers[j] = __float_as_uint(slice[S::place(step * k + 4 * halves + lane % 4, at / 4)].at[at % 4]);
            }
        }
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int j = 0; j < 4; ++j) registers[j] = to_tf32(__uint_as_float(registers[j]));
        }
    }
};

}  // namespace fastconv
