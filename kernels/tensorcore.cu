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

#include "tensorcore_operands.cuh"

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
__device__ inline void store_staged(const TensorcoreParameters& p, const BlockPlace& block, const float* staged,
                                    int row, int column) {
    const Axis(&axes)[3] = block.phase->axis;
    const bool along_positions = p.along_positions;
    for (int item = static_cast<int>(threadIdx.x) % 32; item < STAGED_ROWS * Block::warp_columns / count; item += 32) {
        const int i = along_positions ? item % (STAGED_ROWS / count) * count : item / (Block::warp_columns / count);
        const int j = along_positions ? item / (STAGED_ROWS / count) : item % (Block::warp_columns / count) * count;
        if (row + i >= block.positions || column + j >= p.rows) continue;
        const Digits digits = position_digits(axes, row + i);
        const long long at = static_cast<long long>(block.group) * p.rows + column + j;
        const Phase& phase = *block.phase;
        const long long out = phase.out_origin + element_offset(p.out_strides, digits, at);
        const long long residual = phase.residual_origin + element_offset(p.residual_strides, digits, at);
        finish<count>(p, staged + (along_positions ? j * STAGED_BY_COLUMN + i : i * STAGED_BY_ROW + j), out, residual,
                      p.bias ? p.bias + p.bias_row * at : nullptr, along_positions ? 0 : p.bias_row);
    }
}

__device__ inline void replace_nan(const TensorcoreParameters& p, const BlockPlace& block, float* staged, int row,
                                   int column) {
    for (int item = static_cast<int>(threadIdx.x) % 32; item < STAGED_ROWS * Block::warp_columns; item += 32) {
        const int i = item / Block::warp_columns, j = item % Block::warp_columns;
        float& sum = staged[p.along_positions ? j * STAGED_BY_COLUMN + i : i * STAGED_BY_ROW + j];
        if (sum == sum || row + i >= block.positions || column + j >= p.rows) continue;
        sum = exact_sum(p, *block.phase, block.group, row + i, column + j);
    }
}

__device__ inline void store(const TensorcoreParameters& p, const BlockPlace& block, const Product& product,
                             float* shared) {
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

// One block at least: no register is spared for the sake of more of them.
KERNEL(tensorcore, TensorcoreParameters, THREADS, 1) {
    DYNAMIC_SHARED(Piece, shared);
    static_assert(THREADS / 32 * STAGED * sizeof(float) <= STAGES * (Rows::count + Columns::count) * sizeof(Piece),
                  "room for a warp's sums where the slices were");
    Piece* const rows = shared;
    Piece* const columns = rows + STAGES * Rows::count;

    const BlockPlace block(p, blockIdx.z);
    if (block.row >= block.rows(p)) return;
    const int slices = ceil_div(block.depth(p), Block::depth);
    const int first = static_cast<int>(static_cast<long long>(slices) * block.split / p.splits);
    const int last = static_cast<int>(static_cast<long long>(slices) * (block.split + 1) / p.splits);

    const Copies copies(p, block, columns + STAGES * Columns::count, first);
    __syncthreads();
    Product product;

    const auto start = [&](int slice, int stage) {
        if (slice < last) copies.start(slice, rows + stage * Rows::count, columns + stage * Columns::count);
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
        copies.foresee(slice + STAGES);
        product.multiply(rows + stage * Rows::count, columns + stage * Columns::count);
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
        out = element_offset(p.out_strides, digits, row);
        part_size = static_cast<long long>(p.by_line_rows.divisor) * p.line;
    } else {
        const auto [line, column_] = p.by_line_channels.divmod(index);
        const auto [group_, position_] = p.by_line_rows.divmod(line);
        group = static_cast<int>(group_), position = static_cast<int>(position_), column = static_cast<int>(column_);
        if (group >= p.groups) return;
        at = static_cast<long long>(line) * p.line + column;
        const Digits digits = position_digits(phase.axis, position);
        const long long channel = static_cast<long long>(group) * p.rows + column;
        out = phase.out_origin + element_offset(p.out_strides, digits, channel);
        residual = phase.residual_origin + element_offset(p.residual_strides, digits, channel);
        if (p.bias) bias = p.bias + p.bias_row * channel;
        part_size = static_cast<long long>(p.groups) * p.by_line_rows.divisor * p.line;
    }
    float sum = 0;
    for (int part = 0; part < p.parts; ++part) sum += p.partial[part_size * part + at];
    if (!WGRAD && p.skips_outside && sum != sum) sum = exact_sum(p, phase, group, position, column);
    finish<1>(p, &sum, out, residual, bias, 0);
}
