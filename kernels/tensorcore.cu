// Convolution as an implicit matrix product on tensor cores, with sums in single precision.
//
// The gathered array (x; dy in an input gradient) has its channels side by side, in chunks of 16 bytes that cp.async
// moves; what lies otherwise in memory was packed by pack.cu before. Positions P = (image, t) and taps Q = (j, channel)
// meet in its element [image, t * stride + origin + j * dilation, channel], and
//
//     fprop, dgrad:   out[P, row] = sum over Q of gathered[P, Q] * matrix[row, Q]      matrix: packed weight
//     wgrad:          out[row, Q] = sum over P of matrix[P, row] * gathered[P, Q]      matrix: dy
//
// An input gradient with strides is several gathers of stride 1, its phases, each with the taps that reach it.
//
// Macros: ELEMENT (float for TF32); TILE (rows, columns, depth of a block's tile; rows, columns of a warp's); STAGES
// (slices of the reduction in shared memory); WGRAD; AXES (2 or 3). All offsets are in chunks, so that 32 bits do.

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
using Piece = Chunk<ELEMENT>;

constexpr int THREADS = Product::threads;
constexpr int FIRST_AXIS = 3 - AXES;
constexpr int ROW_COPIES = Product::Rows::count / THREADS, COLUMN_COPIES = Product::Columns::count / THREADS;
static_assert(Product::Rows::count % THREADS == 0 && Product::Columns::count % THREADS == 0, "whole shares");
static_assert(THREADS % Product::Rows::width == 0 && THREADS % Product::Columns::width == 0, "one chunk of a row");

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

__device__ inline long long offset(const Strides& strides, const Digits& digits) {
    long long result = strides.outer * digits.outer;
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
    __device__ int columns(const TensorcoreParameters& p) const { return WGRAD ? taps * p.chunks * vector_count<ELEMENT> : p.rows; }
    __device__ int depth(const TensorcoreParameters& p) const {
        return WGRAD ? positions : taps * p.chunks * vector_count<ELEMENT>;
    }
};

// A position or a tap: its share of the offset into the gathered array, and of the coordinates there.
struct Place {
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

struct Tap {
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
        gathered = reinterpret_cast<const Piece*>(p.gathered) + static_cast<long long>(p.gathered_group) * group;
        matrix = reinterpret_cast<const Piece*>(p.matrix) + static_cast<long long>(p.matrix_group) * group + phase.matrix_origin;
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
    int lines[COLUMN_COPIES];  // negative: none

    // `table` has room for every tap. The block must meet before the first copies.
    __device__ ForwardCopies(const TensorcoreParameters& p, const BlockPlace& block, Tap* table)
        : Operands(p, *block.phase, block.group), axes(block.phase->axis), taps(table), by_chunks(p.by_chunks) {
        steps = static_cast<unsigned int>(block.taps) * p.chunks;
        for (int tap = static_cast<int>(threadIdx.x); tap < block.taps; tap += THREADS) table[tap] = Tap(p, axes, tap);
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const int index = block.row + row_of<Product::Rows>(i);
            positions[i] = Place::of_position(p, axes, index);
            // Beyond the last position: where no tap meets anything.
            if (index >= block.positions) positions[i].at[0] = -(1 << 30);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const int index = block.column + row_of<Product::Columns>(i);
            lines[i] = index < p.rows ? p.matrix_line * index : -1;
        }
    }

    __device__ void start(int slice, Piece* rows, Piece* columns) const {
        static_assert(WGRAD || Product::Rows::width == Product::Columns::width, "a thread's chunk is one of both operands");
        const int chunk = chunk_of<Product::Rows>();
        const unsigned int step = static_cast<unsigned int>(slice) * Product::Rows::width + chunk;
        const bool valid = step < steps;
        const auto [index, channel] = by_chunks.divmod(valid ? step : 0);
        const Tap tap = taps[index];
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const bool inside = valid && positions[i].meets(tap.place, axes);
            const int at = positions[i].offset + tap.place.offset + static_cast<int>(channel);
            copy_async<16>(rows + Product::Rows::place(row_of<Product::Rows>(i), chunk), gathered + (inside ? at : 0), inside);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const bool inside = valid && lines[i] >= 0;
            const int at = lines[i] + tap.matrix + static_cast<int>(channel);
            copy_async<16>(columns + Product::Columns::place(row_of<Product::Columns>(i), chunk), matrix + (inside ? at : 0), inside);
        }
    }
};

// The same for a weight gradient: rows are channels of dy, columns taps, and the reduction goes over positions.
struct WeightCopies : Operands {
    const TensorcoreParameters& p;
    const Axis (&axes)[3];
    int positions;
    bool row_valid, column_valid;
    Place tap;

    __device__ WeightCopies(const TensorcoreParameters& p_, const BlockPlace& block, Tap*)
        : Operands(p_, *block.phase, block.group), p(p_), axes(block.phase->axis), positions(block.positions) {
        constexpr int count = vector_count<ELEMENT>;
        const int row = block.row / count + chunk_of<Product::Rows>();
        row_valid = row * count < p.rows;
        matrix += row_valid ? row : 0;
        const int column = block.column / count + chunk_of<Product::Columns>();
        column_valid = column < block.taps * p.chunks;
        const auto [index, channel] = p.by_chunks.divmod(column_valid ? column : 0);
        gathered += channel;
        tap = Place::of_tap(p, axes, tap_digits(axes, index));
    }

    __device__ void start(int slice, Piece* rows, Piece* columns) const {
        const int first = slice * Product::Rows::height;
#pragma unroll
        for (int i = 0; i < ROW_COPIES; ++i) {
            const int row = row_of<Product::Rows>(i), position = first + row;
            const bool inside = row_valid && position < positions;
            copy_async<16>(rows + Product::Rows::place(row, chunk_of<Product::Rows>()),
                           matrix + (inside ? p.matrix_line * position : 0), inside);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; ++i) {
            const int row = row_of<Product::Columns>(i), position = first + row;
            const Place place = Place::of_position(p, axes, position);
            const bool inside = column_valid && position < positions && place.meets(tap, axes);
            copy_async<16>(columns + Product::Columns::place(row, chunk_of<Product::Columns>()),
                           gathered + (inside ? place.offset + tap.offset : 0), inside);
        }
    }
};

using Copies = Conditional<WGRAD, WeightCopies, ForwardCopies>::type;

// A sum by its definition, without the products of zeros that stand for elements outside: where one of these met an
// infinity, the sum of a tile is NaN.
__device__ inline float exact_sum(const TensorcoreParameters& p, const Phase& phase, int group, int position, int row) {
    const Axis(&axes)[3] = phase.axis;
    const Operands operands(p, phase, group);
    const Place place = Place::of_position(p, axes, position);
    int taps = 1;
#pragma unroll
    for (int i = FIRST_AXIS; i < 3; ++i) taps *= axes[i].taps;
    float sum = 0;
#pragma unroll 1
    for (int index = 0; index < taps; ++index) {
        const Tap tap(p, axes, index);
        if (!place.meets(tap.place, axes)) continue;
        const ELEMENT* const gathered = operands.gathered[place.offset + tap.place.offset].at;
        const ELEMENT* const matrix = operands.matrix[p.matrix_line * row + tap.matrix].at;
#pragma unroll 1
        for (int channel = 0; channel < p.channels; ++channel) sum += widen(gathered[channel]) * widen(matrix[channel]);
    }
    return sum;
}

// Bias, residual and activation on `count` sums that lie side by side in memory, as their result does.
template <int count>
__device__ inline void finish(const TensorcoreParameters& p, const float* sums, long long out, long long residual,
                              const ELEMENT* bias, long long bias_step) {
    Vector<ELEMENT, count> added, result;
    if (p.residual) added = load_vector<count>(p.residual + residual);
#pragma unroll
    for (int i = 0; i < count; ++i) {
        float sum = sums[i];
        if (bias) sum += widen(bias[bias_step * i]);
        if (p.residual) sum += widen(added.at[i]);
        result.at[i] = narrow<ELEMENT>(activated(sum, p.activation));
    }
    store_vector<count>(p.out + out, result);
}

// A warp's sums go through shared memory, some rows at a time, so that its lanes store what is side by side.
constexpr int STAGED_ROWS = Block::warp_rows < 32 ? Block::warp_rows : 32;
// Lines longer by what puts the lanes' stores into different banks.
constexpr int STAGED_BY_ROW = Block::warp_columns + 8, STAGED_BY_COLUMN = STAGED_ROWS + 4;
constexpr int STAGED = STAGED_ROWS * STAGED_BY_ROW > Block::warp_columns * STAGED_BY_COLUMN
                           ? STAGED_ROWS * STAGED_BY_ROW
                           : Block::warp_columns * STAGED_BY_COLUMN;

template <int count>
__device__ inline void store_staged(const TensorcoreParameters& p, const BlockPlace& block, const float* staged, int row,
                                    int column) {
    const Axis(&axes)[3] = block.phase->axis;
    const bool along_positions = p.along_positions;
    for (int item = static_cast<int>(threadIdx.x) % 32; item < STAGED_ROWS * Block::warp_columns / count; item += 32) {
        const int i = along_positions ? item % (STAGED_ROWS / count) * count : item / (Block::warp_columns / count);
        const int j = along_positions ? item / (STAGED_ROWS / count) : item % (Block::warp_columns / count) * count;
        if (row + i >= block.positions || column + j >= p.rows) continue;
        const Digits digits = position_digits(axes, row + i);
        const long long at = static_cast<long long>(block.group) * p.rows + column + j;
        const long long out = block.phase->out_origin + offset(p.out_strides, digits) + p.out_strides.row * at;
        const long long residual = block.phase->residual_origin + offset(p.residual_strides, digits) + p.residual_strides.row * at;
        finish<count>(p, staged + (along_positions ? j * STAGED_BY_COLUMN + i : i * STAGED_BY_ROW + j), out, residual,
                      p.bias ? p.bias + p.bias_row * at : nullptr, along_positions ? 0 : p.bias_row);
    }
}

__device__ inline void replace_nan(const TensorcoreParameters& p, const BlockPlace& block, float* staged, int row, int column) {
    for (int item = static_cast<int>(threadIdx.x) % 32; item < STAGED_ROWS * Block::warp_columns; item += 32) {
        const int i = item / Block::warp_columns, j = item % Block::warp_columns;
        float& sum = staged[p.along_positions ? j * STAGED_BY_COLUMN + i : i * STAGED_BY_ROW + j];
        if (sum == sum || row + i >= block.positions || column + j >= p.rows) continue;
        sum = exact_sum(p, *block.phase, block.group, row + i, column + j);
    }
}

__device__ inline void store(const TensorcoreParameters& p, const BlockPlace& block, const Product& product, float* shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float* const staged = shared + static_cast<int>(threadIdx.x) / 32 * STAGED;
    const int row_step = p.along_positions ? 1 : STAGED_BY_ROW, column_step = p.along_positions ? STAGED_BY_COLUMN : 1;
#pragma unroll
    for (int part = 0; part < Product::row_parts; part += STAGED_ROWS / 16) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < STAGED_ROWS / 16; ++i) {
#pragma unroll
            for (int j = 0; j < Product::column_parts; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = 16 * i + lane / 4 + e / 2 * 8, column = 8 * j + lane % 4 * 2 + e % 2;
                    staged[row * row_step + column * column_step] = product.sum[part + i][j][e];
                }
            }
        }
        __syncwarp();
        const int row = block.row + product.row + 16 * part, column = block.column + product.column;
        if (p.skips_outside) {
            replace_nan(p, block, staged, row, column);
            __syncwarp();
        }
        if (p.in_vectors) {
            store_staged<vector_count<ELEMENT>>(p, block, staged, row, column);
        } else {
            store_staged<1>(p, block, staged, row, column);
        }
    }
}

// Sums of a part of the reduction, as they are.
__device__ inline void store_partial(const TensorcoreParameters& p, const BlockPlace& block, const Product& product) {
    const int lane = static_cast<int>(threadIdx.x) % 32, rows = block.rows(p);
    const long long first = (static_cast<long long>(p.first_part + block.split) * p.groups + block.group) * rows;
#pragma unroll
    for (int i = 0; i < 2 * Product::row_parts; ++i) {
        const int row = block.row + product.row + 8 * i + lane / 4;
        if (row >= rows) continue;
        float* const line = p.partial + (first + row) * p.line;
#pragma unroll
        for (int j = 0; j < Product::column_parts; ++j) {
            const int column = block.column + product.column + 8 * j + lane % 4 * 2;
            const float(&sum)[4] = product.sum[i / 2][j];
            if (column < p.line) store_vector<2>(line + column, Vector<float, 2>{sum[i % 2 * 2], sum[i % 2 * 2 + 1]});
        }
    }
}

KERNEL(tensorcore, TensorcoreParameters, THREADS) {
    DYNAMIC_SHARED(Piece, shared);
    Piece* const rows = shared;
    Piece* const columns = rows + STAGES * Product::Rows::count;

    const BlockPlace block(p, blockIdx.z);
    if (block.row >= block.rows(p)) return;
    const int slices = ceil_div(block.depth(p), Block::depth);
    const int first = static_cast<int>(static_cast<long long>(slices) * block.split / p.splits);
    const int last = static_cast<int>(static_cast<long long>(slices) * (block.split + 1) / p.splits);

    const Copies copies(p, block, reinterpret_cast<Tap*>(columns + STAGES * Product::Columns::count));
    __syncthreads();
    Product product;

    const auto start = [&](int slice, int stage) {
        if (slice < last) copies.start(slice, rows + stage * Product::Rows::count, columns + stage * Product::Columns::count);
        commit_async();
    };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) start(first + stage, stage);
    int stage = 0;
    for (int slice = first; slice < last; ++slice) {
        wait_async<STAGES - 2>();
        // The slice is there for all threads, and they are done with the one before it, whose place is taken now.
        __syncthreads();
        start(slice + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
        product.multiply(rows + stage * Product::Rows::count, columns + stage * Product::Columns::count);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    wait_async<0>();
    if (WGRAD || p.splits > 1) {
        store_partial(p, block, product);
    } else {
        __syncthreads();
        store(p, block, product, reinterpret_cast<float*>(shared));
    }
}

// Adds up the parts of the reduction, always in the same order, and finishes the result.
KERNEL(tensorcore_sum, TensorcoreParameters, 256) {
    const Phase& phase = p.phase[0];
    const unsigned int index = blockIdx.x * 256u + threadIdx.x;
    // In the order of the result's elements; a weight gradient's are [row][channel][tap] or [row][tap][channel].
    long long at, out, residual = 0, part_size;
    const ELEMENT* bias = nullptr;
    int group = 0, position = 0, column = 0;
    if (WGRAD) {
        const unsigned int taps = p.by_taps.divisor, count = p.by_line_rows.divisor * p.channels * taps;
        if (index >= count) return;
        const auto [rest, inner] = p.taps_fastest ? p.by_taps.divmod(index) : p.by_line_channels.divmod(index);
        const auto [row, outer] = p.taps_fastest ? p.by_line_channels.divmod(rest) : p.by_taps.divmod(rest);
        const unsigned int tap = p.taps_fastest ? inner : outer, channel = p.taps_fastest ? outer : inner;
        at = static_cast<long long>(row) * p.line + tap * (p.chunks * vector_count<ELEMENT>) + channel;
        Digits digits = tap_digits(phase.axis, tap);
        digits.outer = static_cast<int>(channel);
        out = offset(p.out_strides, digits) + p.out_strides.row * row;
        part_size = static_cast<long long>(p.by_line_rows.divisor) * p.line;
    } else {
        const auto [line, column_] = p.by_line_channels.divmod(index);
        const auto [group_, position_] = p.by_line_rows.divmod(line);
        group = static_cast<int>(group_), position = static_cast<int>(position_), column = static_cast<int>(column_);
        if (group >= p.groups) return;
        at = static_cast<long long>(line) * p.line + column;
        const Digits digits = position_digits(phase.axis, position);
        const long long channel = static_cast<long long>(group) * p.rows + column;
        out = phase.out_origin + offset(p.out_strides, digits) + p.out_strides.row * channel;
        residual = phase.residual_origin + offset(p.residual_strides, digits) + p.residual_strides.row * channel;
        if (p.bias) bias = p.bias + p.bias_row * channel;
        part_size = static_cast<long long>(p.groups) * p.by_line_rows.divisor * p.line;
    }
    float sum = 0;
    for (int part = 0; part < p.parts; ++part) sum += p.partial[part_size * part + at];
    if (!WGRAD && p.skips_outside && sum != sum) sum = exact_sum(p, phase, group, position, column);
    finish<1>(p, &sum, out, residual, bias, 0);
}
