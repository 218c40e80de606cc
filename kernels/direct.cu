// Convolution of any kind as an implicit matrix product on CUDA cores.
//
// All directions are one gather. Positions P = (image, t) and taps Q = (channel, j) meet in the element
// b[image, channel, t * stride + origin + j * dilation], and
//
//     fprop, dgrad:   out[row, P] = sum over Q of a[row, Q] * b[P, Q]          a: weight     b: x or dy
//     wgrad:          out[row, Q] = sum over P of a[row, P] * b[P, Q]          a: dy         b: x
//
// An input gradient with strides is several gathers of stride 1, its phases, each with the taps that reach it, so that
// no inserted zero is multiplied. A locally connected layer is a gather a position: t comes with the block, and the
// strides of `position` say how arrays move on with it.
//
// Macros: ELEMENT, RESULT (element types); TILE (rows, columns, depth of a block's tile; rows, columns of a thread's);
// WGRAD, FOLDED (padding other than zeros), AXES (2 or 3), A_ALONG, B_ALONG (whether the operand's elements lie along
// the reduction), OFFSET (int, or long long for arrays of 2^30 elements and more).

#include "async.cuh"
#include "convolution.cuh"
#include "gemm.cuh"

using namespace fastconv;

constexpr int MAX_PHASES = 8;

// Which neighbours of a thread's tile are whole pieces of 16 bytes in the result.
enum Packing : int { SCATTERED, PACKED_COLUMNS, PACKED_ROWS };

struct Phase {
    Axis axis[3];
    long long a_origin;
    long long out_origin;
    long long residual_origin;
};

struct DirectParameters {
    const ELEMENT* a;
    const ELEMENT* b;
    RESULT* out;
    const ELEMENT* bias;
    const ELEMENT* residual;
    Accumulator<ELEMENT>* partial;  // sums of parts of the reduction, if it is split

    Strides a_strides, out_strides, bias_strides, residual_strides;
    long long b_group, b_channel, b_image, b_axis[3];

    int images, channels, rows, groups;
    int local;            // positions come with the block
    int skips_outside;    // taps outside of b have no part in a sum, not even that of zero times infinity
    int channels_fastest;  // of Q
    int rows_fastest;     // neighbouring threads hold neighbouring rows
    int padding_mode;
    int activation;
    int splits;
    int row_tiles;
    int packed;  // a `Packing`
    FastDiv<unsigned int> by_channels, by_row_tiles, by_column_tiles, by_groups, by_split_columns;
    Phase phase[MAX_PHASES];
};

using Sum = Accumulator<ELEMENT>;
using Offset = OFFSET;
using Block = Tile<Sum, TILE>;

constexpr int THREADS = Block::threads;
constexpr int DEPTH = Block::tile_depth;
constexpr int FIRST_AXIS = 3 - AXES;

// Elements that are summed as they are go to shared memory without passing a register, several slices ahead.
template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;
constexpr bool ASYNC = same<ELEMENT, Sum>;
constexpr int STAGES = ASYNC ? 4 : 2;
constexpr int AHEAD = STAGES - 1;

struct Slice {
    static constexpr int a_size = DEPTH * Block::row_line, b_size = DEPTH * Block::column_line;
};

using AShare = Share<Block::tile_rows, DEPTH, THREADS, A_ALONG>;
using BShare = Share<Block::tile_columns, DEPTH, THREADS, B_ALONG>;

// A place in P or Q: its share of the offsets into both operands, and of the coordinates in b. One beyond the end of P
// or Q has a coordinate that no other brings back inside.
struct alignas(16) Place {
    Offset a;
    Offset b;
    int at[AXES];

    static constexpr int beyond = -(1 << 30);

    __device__ bool valid() const { return at[0] != beyond; }
};

// Digits of an index, the last axis fastest.
struct Digits {
    int outer;
    int axis[3];
};

__device__ inline Digits position_digits(const Axis (&axes)[3], unsigned int index) {
    Digits digits;
#pragma unroll
    for (int i = 2; i >= FIRST_AXIS; --i) {
        const auto [quotient, remainder] = axes[i].by_positions.divmod(index);
        digits.axis[i] = static_cast<int>(remainder);
        index = quotient;
    }
    digits.outer = static_cast<int>(index);
    return digits;
}

__device__ inline Digits tap_digits(const DirectParameters& p, const Axis (&axes)[3], unsigned int index) {
    Digits digits;
    if (p.channels_fastest) {
        const auto [quotient, remainder] = p.by_channels.divmod(index);
        digits.outer = static_cast<int>(remainder);
        index = quotient;
    }
#pragma unroll
    for (int i = 2; i >= FIRST_AXIS; --i) {
        const auto [quotient, remainder] = axes[i].by_taps.divmod(index);
        digits.axis[i] = static_cast<int>(remainder);
        index = quotient;
    }
    if (!p.channels_fastest) digits.outer = static_cast<int>(index);
    return digits;
}

// Elements from an array's origin to the digits' element.
__device__ inline long long offset(const Strides& strides, const Digits& digits) {
    long long result = strides.outer * digits.outer;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) result += strides.axis[i] * digits.axis[i];
    return result;
}

// Where a block is: its tile, and what all of its elements have in common.
struct BlockPlace {
    int row, column, group, split;
    Digits local;
    const Phase* phase;
    unsigned int positions, taps;  // sizes of P and Q
};

__device__ inline BlockPlace block_place(const DirectParameters& p) {
    BlockPlace block;
    block.phase = &p.phase[blockIdx.z];
    const Axis(&axes)[3] = block.phase->axis;
    const auto [above, row_tile] = p.by_row_tiles.divmod(blockIdx.x);
    const auto [rest, column_tile] = p.by_column_tiles.divmod(above);
    const auto [position, group] = p.by_groups.divmod(rest);
    block.row = static_cast<int>(row_tile) * Block::tile_rows;
    block.column = static_cast<int>(column_tile) * Block::tile_columns;
    block.group = static_cast<int>(group);
    block.split = static_cast<int>(blockIdx.y);
    block.local = {0, {0, 0, 0}};
    if (p.local) block.local = position_digits(axes, position);
    block.positions = p.images;
    block.taps = p.channels;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) {
        if (!p.local) block.positions *= axes[i].positions;
        block.taps *= axes[i].taps;
    }
    return block;
}

__device__ inline Place position_place(const DirectParameters& p, const BlockPlace& block, unsigned int index) {
    const Axis(&axes)[3] = block.phase->axis;
    Digits digits = block.local;
    if (p.local) {
        digits.outer = static_cast<int>(index);
    } else {
        digits = position_digits(axes, index);
    }
    Place place;
    place.b = static_cast<Offset>(p.b_image * digits.outer);
    place.a = static_cast<Offset>(p.local ? p.a_strides.outer * digits.outer : offset(p.a_strides, digits));
#pragma unroll
    for (int i = 0; i < AXES; ++i) {
        const Axis& axis = axes[FIRST_AXIS + i];
        place.at[i] = digits.axis[FIRST_AXIS + i] * axis.stride + axis.origin;
        if (!FOLDED) place.b += static_cast<Offset>(p.b_axis[FIRST_AXIS + i] * place.at[i]);
    }
    if (index >= block.positions) place.at[0] = Place::beyond;
    return place;
}

__device__ inline Place tap_place(const DirectParameters& p, const BlockPlace& block, unsigned int index) {
    const Axis(&axes)[3] = block.phase->axis;
    const Digits digits = tap_digits(p, axes, index);
    Place place;
    bool valid = index < block.taps;
    place.b = static_cast<Offset>(p.b_channel * digits.outer);
    place.a = static_cast<Offset>(offset(p.a_strides, digits));
#pragma unroll
    for (int i = 0; i < AXES; ++i) {
        const Axis& axis = axes[FIRST_AXIS + i];
        place.at[i] = digits.axis[FIRST_AXIS + i] * axis.dilation;
        if (!FOLDED) place.b += static_cast<Offset>(p.b_axis[FIRST_AXIS + i] * place.at[i]);
        if (p.local && p.skips_outside) {
            const int at = block.local.axis[FIRST_AXIS + i] * axis.stride + axis.origin + place.at[i];
            valid = valid && at >= 0 && at < axis.size;
        }
    }
    if (!valid) place.at[0] = Place::beyond;
    return place;
}

// Where in b a position and a tap meet, and whether that is an element of it.
struct Meeting {
    Offset at;
    bool inside;
};

__device__ inline Meeting meeting(const DirectParameters& p, const Axis (&axes)[3], const Place& one, const Place& other) {
    Meeting result = {one.b + other.b, true};
    if (FOLDED) result.inside = one.valid() && other.valid();
#pragma unroll
    for (int i = 0; i < AXES; ++i) {
        const int coordinate = one.at[i] + other.at[i], size = axes[FIRST_AXIS + i].size;
        if (FOLDED) {
            const int at = folded(result.inside ? coordinate : 0, size, p.padding_mode);
            result.at += static_cast<Offset>(p.b_axis[FIRST_AXIS + i] * at);
        } else {
            result.inside = result.inside && static_cast<unsigned int>(coordinate) < static_cast<unsigned int>(size);
        }
    }
    return result;
}

// What a sum becomes: `residual` is the offset of its column there.
__device__ inline RESULT finished(const DirectParameters& p, const BlockPlace& block, Sum sum, int row,
                                  long long residual) {
    if (p.bias) {
        long long at = p.bias_strides.group * block.group + p.bias_strides.row * row;
#pragma unroll
        for (int i = FIRST_AXIS; i < 3; ++i) at += p.bias_strides.position[i] * block.local.axis[i];
        sum += widen(p.bias[at]);
    }
    if (p.residual) sum += widen(p.residual[residual + p.residual_strides.row * row]);
    return narrow<RESULT>(activated(sum, p.activation));
}

// The offset of a column's first row in the result, or in an array of its shape.
__device__ inline long long column_offset(const DirectParameters& p, const Strides& strides, const BlockPlace& block,
                                          unsigned int column) {
    const Axis(&axes)[3] = block.phase->axis;
    long long result = strides.group * block.group;
    if (WGRAD) {
        result += offset(strides, tap_digits(p, axes, column));
    } else if (p.local) {
        result += strides.outer * static_cast<int>(column);
    } else {
        result += offset(strides, position_digits(axes, column));
    }
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) result += strides.position[i] * block.local.axis[i];
    return result;
}

// A sum by its definition, without the products of zeros that stand for elements outside: where one of these met an
// infinity, the sum of a tile is NaN.
__device__ inline Sum exact_sum(const DirectParameters& p, const BlockPlace& block, int row, unsigned int column) {
    const Axis(&axes)[3] = block.phase->axis;
    const ELEMENT* const a = p.a + p.a_strides.group * block.group + block.phase->a_origin + p.a_strides.row * row;
    const ELEMENT* const b = p.b + p.b_group * block.group;
    const Place position = position_place(p, block, column);
    Sum sum = 0;
#pragma unroll 1
    for (unsigned int index = 0; index < block.taps; ++index) {
        const Place tap = tap_place(p, block, index);
        const auto [at, inside] = meeting(p, axes, position, tap);
        if (inside) sum += widen(a[tap.a]) * widen(b[at]);
    }
    return sum;
}

KERNEL(direct, DirectParameters, THREADS) {
    SHARED_ARRAY(Sum, a_slices, STAGES * Slice::a_size);
    SHARED_ARRAY(Sum, b_slices, STAGES * Slice::b_size);
    SHARED_ARRAY(Place, steps, STAGES * DEPTH);

    const BlockPlace block = block_place(p);
    const Axis(&axes)[3] = block.phase->axis;
    const unsigned int columns = WGRAD ? block.taps : block.positions;
    const unsigned int depth = WGRAD ? block.positions : block.taps;
    if (static_cast<unsigned int>(block.column) >= columns) return;
    const int slices = static_cast<int>((depth + DEPTH - 1) / DEPTH);
    const int first = static_cast<int>(static_cast<long long>(slices) * block.split / p.splits);
    const int last = static_cast<int>(static_cast<long long>(slices) * (block.split + 1) / p.splits);

    long long a_origin = p.a_strides.group * block.group + block.phase->a_origin;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) a_origin += p.a_strides.position[i] * block.local.axis[i];
    const ELEMENT* const a = p.a + a_origin;
    const ELEMENT* const b = p.b + p.b_group * block.group;

    // What lies beyond the last row or column is computed, from other elements, and not stored.
    Offset rows[AShare::lines];
#pragma unroll
    for (int i = 0; i < AShare::lines; ++i) {
        rows[i] = static_cast<Offset>(p.a_strides.row * min(block.row + AShare::line(i), p.rows - 1));
    }
    Place places[BShare::lines];
#pragma unroll
    for (int i = 0; i < BShare::lines; ++i) {
        const unsigned int column = block.column + BShare::line(i);
        places[i] = WGRAD ? tap_place(p, block, column) : position_place(p, block, column);
    }

    ELEMENT a_loaded[ASYNC ? 1 : AShare::count], b_loaded[ASYNC ? 1 : BShare::count];

    const auto find_steps = [&](int slice, int step) {
        const unsigned int index = static_cast<unsigned int>(slice) * DEPTH + step;
        steps[slice % STAGES * DEPTH + step] = WGRAD ? position_place(p, block, index) : tap_place(p, block, index);
    };
    const auto load = [&](int slice) {
        const Place* const of = steps + slice % STAGES * DEPTH;
        Sum* const a_to = a_slices + slice % STAGES * Slice::a_size;
        Sum* const b_to = b_slices + slice % STAGES * Slice::b_size;
#pragma unroll
        for (int i = 0; i < AShare::count; ++i) {
            const Place& step = of[AShare::step(i)];
            const ELEMENT* const from = a + rows[i % AShare::lines] + step.a;
            if constexpr (ASYNC) {
                copy_async<sizeof(Sum)>(a_to + AShare::step(i) * Block::row_line + AShare::line(i), from, step.valid());
            } else {
                a_loaded[i] = step.valid() ? *from : narrow<ELEMENT>(0);
            }
        }
#pragma unroll
        for (int i = 0; i < BShare::count; ++i) {
            const auto [at, inside] = meeting(p, axes, places[i % BShare::lines], of[BShare::step(i)]);
            if constexpr (ASYNC) {
                copy_async<sizeof(Sum)>(b_to + BShare::step(i) * Block::column_line + BShare::line(i), b + at, inside);
            } else {
                b_loaded[i] = inside ? b[at] : narrow<ELEMENT>(0);
            }
        }
    };
    const auto keep = [&](int slice) {
        if constexpr (!ASYNC) {
            Sum* const a_to = a_slices + slice % STAGES * Slice::a_size;
            Sum* const b_to = b_slices + slice % STAGES * Slice::b_size;
#pragma unroll
            for (int i = 0; i < AShare::count; ++i) {
                a_to[AShare::step(i) * Block::row_line + AShare::line(i)] = widen(a_loaded[i]);
            }
#pragma unroll
            for (int i = 0; i < BShare::count; ++i) {
                b_to[BShare::step(i) * Block::column_line + BShare::line(i)] = widen(b_loaded[i]);
            }
        }
    };

    const int thread = static_cast<int>(threadIdx.x);
    const int row_thread = p.rows_fastest ? thread % Block::row_threads : thread / Block::column_threads;
    const int column_thread = p.rows_fastest ? thread / Block::row_threads : thread % Block::column_threads;
    Block tile;
    tile.clear();

    // While one slice is multiplied, the next ones are on their way, and the steps of the one after these are found.
    if (thread < STAGES * DEPTH) find_steps(first + thread / DEPTH, thread % DEPTH);
    __syncthreads();
    for (int slice = first; slice < first + AHEAD; ++slice) {
        if (slice < last) {
            load(slice);
            keep(slice);
        }
        if constexpr (ASYNC) commit_async();
    }
    for (int slice = first; slice < last; ++slice) {
        if constexpr (ASYNC) wait_async<AHEAD - 1>();
        __syncthreads();
        const int next = slice + AHEAD;
        if (next < last) load(next);
        if constexpr (ASYNC) commit_async();
        tile.multiply(a_slices + slice % STAGES * Slice::a_size, b_slices + slice % STAGES * Slice::b_size, row_thread,
                      column_thread);
        if (thread < DEPTH) find_steps(next + 1, thread);
        if (next < last) keep(next);
    }
    if constexpr (ASYNC) wait_async<0>();

    bool any_nan = false;
    constexpr int PIECE = Block::piece;
#pragma unroll
    for (int j0 = 0; j0 < Block::columns; j0 += PIECE) {
        const unsigned int first_column = block.column + Block::column(column_thread, j0);
        long long out[PIECE], residual[PIECE];
#pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            const unsigned int column = min(first_column + j, columns - 1);
            out[j] = residual[j] = 0;
            if (p.splits > 1) {
                out[j] = (static_cast<long long>(block.split) * p.groups + block.group) * p.rows * columns + column;
            } else {
                out[j] = block.phase->out_origin + column_offset(p, p.out_strides, block, column);
                if (p.residual) {
                    residual[j] = block.phase->residual_origin + column_offset(p, p.residual_strides, block, column);
                }
            }
        }
#pragma unroll
        for (int i0 = 0; i0 < Block::rows; i0 += PIECE) {
            const int first_row = block.row + Block::row(row_thread, i0);
            if (first_row >= p.rows || first_column >= columns) continue;
            RESULT values[PIECE][PIECE];
#pragma unroll
            for (int i = 0; i < PIECE; ++i) {
                const int row = min(first_row + i, p.rows - 1);
#pragma unroll
                for (int j = 0; j < PIECE; ++j) {
                    const Sum sum = tile.sum[i0 + i][j0 + j];
                    any_nan = any_nan || sum != sum;
                    if (p.splits == 1) values[i][j] = finished(p, block, sum, row, residual[j]);
                }
            }
            // Pieces of 16 bytes where they lie so in memory, else one by one.
#pragma unroll
            for (int e = 0; e < PIECE; ++e) {
                Vector<RESULT, PIECE> packed;
#pragma unroll
                for (int f = 0; f < PIECE; ++f) packed.at[f] = p.packed == PACKED_ROWS ? values[f][e] : values[e][f];
                if (p.packed == PACKED_COLUMNS && first_row + e < p.rows) {
                    store_vector(p.out + out[0] + p.out_strides.row * (first_row + e), packed);
                } else if (p.packed == PACKED_ROWS && first_column + e < columns) {
                    store_vector(p.out + out[e] + first_row, packed);
                } else if (p.packed == SCATTERED) {
#pragma unroll
                    for (int j = 0; j < PIECE; ++j) {
                        if (first_row + e >= p.rows || first_column + j >= columns) continue;
                        const long long at = out[j];
                        if (p.splits > 1) {
                            p.partial[at + static_cast<long long>(first_row + e) * columns] = tile.sum[i0 + e][j0 + j];
                        } else {
                            p.out[at + p.out_strides.row * (first_row + e)] = values[e][j];
                        }
                    }
                }
            }
        }
    }
    if (WGRAD || FOLDED || p.local || !p.skips_outside || p.splits > 1 || !any_nan) return;
#pragma unroll 1
    for (int e = 0; e < Block::rows * Block::columns; ++e) {
        const int row = block.row + Block::row(row_thread, e % Block::rows);
        const unsigned int column = block.column + Block::column(column_thread, e / Block::rows);
        if (row >= p.rows || column >= columns) continue;
        const long long out = block.phase->out_origin + column_offset(p, p.out_strides, block, column);
        long long residual = 0;
        if (p.residual) residual = block.phase->residual_origin + column_offset(p, p.residual_strides, block, column);
        p.out[out + p.out_strides.row * row] = finished(p, block, exact_sum(p, block, row, column), row, residual);
    }
}

// Adds up the parts of a split reduction, always in the same order, and finishes the result.
KERNEL(direct_sum, DirectParameters, 256) {
    BlockPlace block;
    block.phase = &p.phase[0];
    block.local = {0, {0, 0, 0}};
    block.positions = p.images;
    block.taps = p.channels;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) {
        block.positions *= block.phase->axis[i].positions;
        block.taps *= block.phase->axis[i].taps;
    }
    const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    const unsigned int columns = p.by_split_columns.divisor;
    const long long count = static_cast<long long>(p.groups) * p.rows * columns;
    if (index >= count) return;
    const long long line = index / columns;
    const unsigned int column = static_cast<unsigned int>(index - line * columns);
    block.group = static_cast<int>(line / p.rows);
    const int row = static_cast<int>(line - static_cast<long long>(block.group) * p.rows);
    Sum sum = 0;
    for (int split = 0; split < p.splits; ++split) sum += p.partial[split * count + index];
    if (!WGRAD && !FOLDED && p.skips_outside && sum != sum) sum = exact_sum(p, block, row, column);
    const long long residual = p.residual ? block.phase->residual_origin + column_offset(p, p.residual_strides, block, column) : 0;
    const long long out = block.phase->out_origin + column_offset(p, p.out_strides, block, column);
    p.out[out + p.out_strides.row * row] = finished(p, block, sum, row, residual);
}
