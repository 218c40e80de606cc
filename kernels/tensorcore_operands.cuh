// What a block of tensorcore.cu knows: its parameters, its place in the product, where positions and taps are, and the
// copies of its operands to shared memory. The macros are that file's.

#pragma once

#include "async.cuh"
#include "convolution.cuh"
#include "warp_product.cuh"

using namespace fastconv;

constexpr int MAX_PHASES = 8;

struct Phase {
    Axis axis[3];
    int matrix_origin;
    long long out_origin;
    long long residual_origin;
};

struct TensorcoreParameters {
    const ELEMENT* gathered;
    const ELEMENT* matrix;
    ELEMENT* out;
    const ELEMENT* bias;
    const ELEMENT* residual;
    float* partial;  // sums of parts of the reduction: [part][group][row of the product][line]

    Strides out_strides, residual_strides;
    long long bias_row;
    int gathered_group, gathered_image, gathered_axis[3];
    int matrix_group, matrix_line, matrix_axis[3];

    int images, rows, groups;
    int chunks;           // of a tap's channels
    int channels;         // of those the first
    int skips_outside;    // taps outside have no part in a sum, not even that of zero times infinity
    int along_positions;  // neighbouring threads store neighbouring positions
    int in_vectors;       // a thread stores 16 bytes
    int taps_fastest;     // wgrad: of the result's elements
    int activation;
    int splits;
    int first_part, parts;
    int line;
    FastDiv<unsigned int> by_chunks, by_row_tiles, by_column_tiles;
    FastDiv<unsigned int> by_line_channels, by_line_rows, by_taps;  // of `tensorcore_sum`
    Phase phase[MAX_PHASES];
};

// Of the tile that the macro says.
template <int tile_rows_, int tile_columns_, int depth_, int warp_rows_, int warp_columns_>
struct Shape {
    static constexpr int tile_rows = tile_rows_, tile_columns = tile_columns_, depth = depth_;
    static constexpr int warp_rows = warp_rows_, warp_columns = warp_columns_;
    using Product = WarpProduct<ELEMENT, tile_rows, tile_columns, depth, warp_rows, warp_columns, !WGRAD>;
};
using Block = Shape<TILE>;
using Product = Block::Product;
using Rows = Product::Rows;
using Columns = Product::Columns;
using Piece = Chunk<ELEMENT>;

constexpr int THREADS = Product::threads;
constexpr int FIRST_AXIS = 3 - AXES;
constexpr int ROW_COPIES = Rows::count / THREADS, COLUMN_COPIES = Columns::count / THREADS;
static_assert(Rows::count % THREADS == 0 && Columns::count % THREADS == 0, "whole shares");
static_assert(THREADS % Rows::width == 0 && THREADS % Columns::width == 0, "one chunk of a row");

// Digits of an index, the last axis fastest.
struct Digits {
    int outer;
    int axis[3];
};

template <FastDiv<unsigned int> Axis::*by>
__device__ inline Digits digits_of(const Axis (&axes)[3], unsigned int index) {
    Digits digits;
#pragma unroll
    for (int i = 2; i >= FIRST_AXIS; --i) {
        const auto [quotient, remainder] = (axes[i].*by).divmod(index);
        digits.axis[i] = static_cast<int>(remainder);
        index = quotient;
    }
    digits.outer = static_cast<int>(index);
    return digits;
}

__device__ inline Digits position_digits(const Axis (&axes)[3], unsigned int index) {
    return digits_of<&Axis::by_positions>(axes, index);
}

__device__ inline Digits tap_digits(const Axis (&axes)[3], unsigned int index) {
    return digits_of<&Axis::by_taps>(axes, index);
}

__device__ inline long long element_offset(const Strides& strides, const Digits& digits, long long row) {
    long long result = strides.row * row + strides.outer * digits.outer;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) result += strides.axis[i] * digits.axis[i];
    return result;
}

// Where a block is, and the sizes of its product.
struct BlockPlace {
    int row, column, group, split;
    const Phase* phase;
    int positions, taps;

    __device__ BlockPlace(const TensorcoreParameters& p, unsigned int phase_index) {
        phase = &p.phase[phase_index];
        const auto [above, column_tile] = p.by_column_tiles.divmod(blockIdx.x);
        const auto [group_, row_tile] = p.by_row_tiles.divmod(above);
        row = static_cast<int>(row_tile) * Block::tile_rows;
        column = static_cast<int>(column_tile) * Block::tile_columns;
        group = static_cast<int>(group_);
        split = static_cast<int>(blockIdx.y);
        positions = p.images;
        taps = 1;
#pragma unroll
        for (int i = FIRST_AXIS; i < 3; ++i) {
            positions *= phase->axis[i].positions;
            taps *= phase->axis[i].taps;
        }
    }

    __device__ int rows(const TensorcoreParameters& p) const { return WGRAD ? p.rows : positions; }
    __device__ int depth(const TensorcoreParameters& p) const {
        return WGRAD ? positions : taps * p.chunks * vector_count<ELEMENT>;
    }
};

// A position or a tap: its share of the offset into the gathered array, and of the coordinates there.
struct Place {
    // The first coordinate of a position beyond the last: no tap meets it in an element.
    static constexpr int beyond = -(1 << 30);

    int offset;
    int at[AXES];

    __device__ static Place of_position(const TensorcoreParameters& p, const Axis (&axes)[3], unsigned int index) {
        const Digits digits = position_digits(axes, index);
        Place place;
        place.offset = p.gathered_image * digits.outer;
#pragma unroll
        for (int i = 0; i < AXES; ++i) {
            const Axis& axis = axes[FIRST_AXIS + i];
            place.at[i] = digits.axis[FIRST_AXIS + i] * axis.stride + axis.origin;
            place.offset += p.gathered_axis[FIRST_AXIS + i] * place.at[i];
        }
        return place;
    }

    __device__ static Place of_tap(const TensorcoreParameters& p, const Axis (&axes)[3], const Digits& digits) {
        Place place;
        place.offset = 0;
#pragma unroll
        for (int i = 0; i < AXES; ++i) {
            place.at[i] = digits.axis[FIRST_AXIS + i] * axes[FIRST_AXIS + i].dilation;
            place.offset += p.gathered_axis[FIRST_AXIS + i] * place.at[i];
        }
        return place;
    }

    // Whether a position and a tap meet in an element: in zero padding they do not.
    __device__ bool meets(const Place& other, const Axis (&axes)[3]) const {
        bool inside = true;
#pragma unroll
        for (int i = 0; i < AXES; ++i) {
            const unsigned int coordinate = static_cast<unsigned int>(at[i] + other.at[i]);
            inside = inside && coordinate < static_cast<unsigned int>(axes[FIRST_AXIS + i].size);
        }
        return inside;
    }
};

// Aligned so that one access reads it, if its size allows.
struct alignas(AXES == 2 ? 16 : 4) Tap {
    Place place;
    int matrix;

    __device__ Tap(const TensorcoreParameters& p, const Axis (&axes)[3], unsigned int index) {
        const Digits digits = tap_digits(axes, index);
        place = Place::of_tap(p, axes, digits);
        matrix = 0;
#pragma unroll
        for (int i = FIRST_AXIS; i < 3; ++i) matrix += p.matrix_axis[i] * digits.axis[i];
    }
};

// The operands of a group, of a phase's first tap.
struct Operands {
    const Piece* gathered;
    const Piece* matrix;

    __device__ Operands(const TensorcoreParameters& p, const Phase& phase, int group) {
        const long long index = group;
        gathered = reinterpret_cast<const Piece*>(p.gathered) + p.gathered_group * index;
        matrix = reinterpret_cast<const Piece*>(p.matrix) + p.matrix_group * index + phase.matrix_origin;
    }
};

// Which chunk of which row of a slice is a thread's i-th: one chunk of several rows.
template <class S>
__device__ inline int chunk_of() {
    return static_cast<int>(threadIdx.x) % S::width;
}
template <class S>
__device__ inline int row_of(int i) {
    return static_cast<int>(threadIdx.x) / S::width + i * (THREADS / S::width);
}

// Starts the copies of a slice, for a convolution or an input gradient: rows are positions, columns result channels.
struct ForwardCopies : Operands {
    const Axis (&axes)[3];
    const Tap* taps;
    FastDiv<unsigned int> by_chunks;
    unsigned int steps;  // chunks of the reduction
    Place positions[ROW_COPIES];
    int lines[COLUMN_COPIES];
    static constexpr int none = -2147483647 - 1;

    // Shared memory has room for every tap. The block must meet before the first copies.
    __device__ ForwardCopies(const TensorcoreParameters& p, const BlockPlace& block, void* shared, int)
        : Operands(p, *block.phase, block.group), axes(block.phase->axis), by_chunks(p.by_chunks) {
        Tap* const table = static_cast<Tap*>(shared);
        taps = table;
        steps = static_cast<unsigned int>(block.taps) * p.chunks;
        for (int tap = static_cast<int>(threadIdx.x); tap < block.taps; tap += THREADS) table[tap] = Tap(p, axes, tap);
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const int index = block.row + row_of<Rows>(i);
            positions[i] = Place::of_position(p, axes, index);
            if (index >= block.positions) positions[i].at[0] = Place::beyond;
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const int index = block.column + row_of<Columns>(i);
            lines[i] = index < p.rows ? p.matrix_line * index : none;
        }
    }

    __device__ void foresee(int) const {}

    __device__ void start(int slice, Piece* rows, Piece* columns) const {
        static_assert(WGRAD || Rows::width == Columns::width, "one chunk of both operands");
        const int chunk = chunk_of<Rows>();
        const unsigned int step = static_cast<unsigned int>(slice) * Rows::width + chunk;
        const bool valid = step < steps;
        const auto [index, channel] = by_chunks.divmod(valid ? step : 0);
        const Tap tap = taps[index];
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const bool inside = valid && positions[i].meets(tap.place, axes);
            const int at = positions[i].offset + tap.place.offset + static_cast<int>(channel);
            copy_async<16>(rows + Rows::place(row_of<Rows>(i), chunk), gathered + (inside ? at : 0), inside);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const bool inside = valid && lines[i] != none;
            const int at = inside ? lines[i] + tap.matrix + static_cast<int>(channel) : 0;
            copy_async<16>(columns + Columns::place(row_of<Columns>(i), chunk), matrix + at, inside);
        }
    }
};

// The same for a weight gradient: rows are channels of dy, columns taps, and the reduction goes over positions.
struct WeightCopies : Operands {
    struct alignas(16) Position {
        Place place;
    };
    static constexpr int depth = Rows::height;

    const TensorcoreParameters& p;
    const Axis (&axes)[3];
    Position* table;  // of the slices that are on their way, and of the next one
    int positions;
    bool row_valid, column_valid;
    Place tap;

    // Shared memory has room for the positions of all stages. The block must meet before the first copies.
    __device__ WeightCopies(const TensorcoreParameters& p_, const BlockPlace& block, void* shared, int first)
        : Operands(p_, *block.phase, block.group),
          p(p_),
          axes(block.phase->axis),
          table(static_cast<Position*>(shared)),
          positions(block.positions) {
        constexpr int count = vector_count<ELEMENT>;
        const int row = block.row / count + chunk_of<Rows>();
        row_valid = row * count < p.rows;
        matrix += row_valid ? row : 0;
        const int column = block.column / count + chunk_of<Columns>();
        column_valid = column < block.taps * p.chunks;
        const auto [index, channel] = p.by_chunks.divmod(column_valid ? column : 0);
        gathered += channel;
        tap = Place::of_tap(p, axes, tap_digits(axes, index));
        for (int i = threadIdx.x; i < STAGES * depth; i += THREADS) find(first + i / depth, i % depth);
    }

    __device__ void find(int slice, int step) const {
        const unsigned int index = static_cast<unsigned int>(slice) * depth + step;
        Place place = Place::of_position(p, axes, index);
        if (index >= static_cast<unsigned int>(positions)) place.at[0] = Place::beyond;
        table[slice % STAGES * depth + step].place = place;
    }

    // Finds the positions of a slice whose copies start after the block's next meeting.
    __device__ void foresee(int slice) const {
        if (static_cast<int>(threadIdx.x) < depth) find(slice, static_cast<int>(threadIdx.x));
    }

    __device__ void start(int slice, Piece* rows, Piece* columns) const {
        const int first = slice * depth;
        const Position* const found = table + slice % STAGES * depth;
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const int row = row_of<Rows>(i), position = first + row;
            const bool inside = row_valid && position < positions;
            copy_async<16>(rows + Rows::place(row, chunk_of<Rows>()), matrix + (inside ? p.matrix_line * position : 0),
                           inside);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const int row = row_of<Columns>(i);
            const Place place = found[row].place;
            const bool inside = column_valid && place.meets(tap, axes);
            copy_async<16>(columns + Columns::place(row, chunk_of<Columns>()),
                           gathered + (inside ? place.offset + tap.offset : 0), inside);
        }
    }
};

using Copies = Conditional<WGRAD, WeightCopies, ForwardCopies>::type;
