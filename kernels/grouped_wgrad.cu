// Weight gradient of small groups of channels: a block has tiles of some groups' x and dy in shared memory, one after
// another; a thread has the sums of OUTPUTS channels of dy and TAPS neighbouring taps of a row of the kernel, for one
// channel of x. The parts that blocks have of the images are added up by `grouped_wgrad_sum`, always in the same order.
//
// Macros: see grouped.cuh; OUTPUTS, TAPS.

#include "grouped.cuh"

using namespace fastconv;

struct GroupedWgradParameters {
    const ELEMENT* source;  // x
    const ELEMENT* dy;
    ELEMENT* result;
    Sum* partial;

    Map source_map, dy_map;
    long long weight_output, weight_input, weight_row, weight_column;

    int groups, inputs, outputs;  // channels of a group of x and of dy
    // A block's tile: so many groups, and rows and columns of dy.
    int block_groups, rows, columns, chunk;
    int source_rows, line, plane;  // of a channel of x in shared memory
    // A group's units: blocks of outputs, blocks of taps, rows of the kernel, channels of x. So many threads have them.
    int units, group_threads, output_blocks;
    int tiles, splits;
    FastDiv<unsigned int> by_fast, by_middle, by_chunk, by_columns, by_rows, by_outputs;
    FastDiv<unsigned int> by_group_threads, by_inputs, by_tap_blocks, by_taps, by_row_tiles, by_column_tiles;

    Axis row, column;
};

// The sums that a thread has: its group in the block, channels of dy and of x in the group, row and first of its taps.
struct Unit {
    int group, output, input, i, j;
    bool active;
};

__device__ inline Unit own_unit(const GroupedWgradParameters& p, const BlockPlace& block) {
    const auto [group, index] = p.by_group_threads.divmod(threadIdx.x);
    const int at = static_cast<int>(blockIdx.z) * p.group_threads + static_cast<int>(index);
    const auto [lines, input] = p.by_inputs.divmod(at);
    const auto [blocks, i] = p.row.by_taps.divmod(lines);
    const auto [output_block, tap_block] = p.by_tap_blocks.divmod(blocks);
    Unit unit = {static_cast<int>(group), static_cast<int>(output_block) * OUTPUTS, static_cast<int>(input),
                 static_cast<int>(i),     static_cast<int>(tap_block) * TAPS,       false};
    unit.active = unit.group < min(p.block_groups, p.groups - block.group) && at < p.units;
    return unit;
}

// Copies a tile of dy: [group][row][column][output], outputs padded with zeros.
__device__ inline void stage_dy(const GroupedWgradParameters& p, Sum* staged, const BlockPlace& block) {
    const int padded = p.output_blocks * OUTPUTS, count = p.block_groups * p.rows * p.columns * padded;
    for (int index = static_cast<int>(threadIdx.x); index < count; index += THREADS) {
        // Neighbouring threads take neighbours in memory.
        const auto [slow, fast] = (LAST ? p.by_outputs : p.by_columns).divmod(index);
        const auto [slower, middle] = (LAST ? p.by_columns : p.by_rows).divmod(slow);
        const auto [group_, last] = (LAST ? p.by_rows : p.by_outputs).divmod(slower);
        const int group = static_cast<int>(group_), output = static_cast<int>(LAST ? fast : last);
        const int row = static_cast<int>(LAST ? last : middle), column = static_cast<int>(LAST ? middle : fast);
        const int g = block.group + group, y = block.row + row, x = block.column + column;
        Sum value = 0;
        if (g < p.groups && output < p.outputs && y < p.row.positions && x < p.column.positions) {
            value = widen(p.dy[p.dy_map.at(block.image, g * p.outputs + output, y, x)]);
        }
        staged[((group * p.rows + row) * p.columns + column) * padded + output] = value;
    }
}

// Adds the products of a tile: x from where the first of the thread's taps reads it.
__device__ inline void add(const GroupedWgradParameters& p, const Sum* x, const Sum* dy, int rows, int columns,
                           const int (&taps)[TAPS], Sum (&sum)[TAPS][OUTPUTS]) {
    const int padded = p.output_blocks * OUTPUTS;
    for (int r = 0; r < rows; ++r) {
        const Sum* read = x + r * p.row.stride * p.line;
        const Sum* from = dy + r * p.columns * padded;
        // More at a time take more registers than two blocks side by side have.
#pragma unroll 4
        for (int q = 0; q < columns; ++q) {
            Sum held[OUTPUTS];
            load_all(held, from);
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                const Sum value = read[taps[t]];
#pragma unroll
                for (int k = 0; k < OUTPUTS; ++k) sum[t][k] += value * held[k];
            }
            read += p.column.stride;
            from += padded;
        }
    }
}

KERNEL(grouped_wgrad, GroupedWgradParameters, THREADS, 2) {
    DYNAMIC_SHARED(Sum, staged);
    const int split = static_cast<int>(blockIdx.x);
    BlockPlace block = {};
    block.group = static_cast<int>(blockIdx.y) * p.block_groups;
    const Unit unit = own_unit(p, block);
    constexpr int whole = vector_count<Sum>;  // what the addresses of dy are multiples of
    Sum* const dy = staged + ceil_div(p.block_groups * p.inputs * p.plane, whole) * whole;
    const Sum* const own_x =
        staged + (unit.group * p.inputs + unit.input) * p.plane + unit.i * p.row.dilation * p.line;
    const Sum* const own_dy = dy + unit.group * p.rows * p.columns * p.output_blocks * OUTPUTS + unit.output;
    int taps[TAPS];
#pragma unroll
    for (int t = 0; t < TAPS; ++t) taps[t] = min(unit.j + t, p.column.taps - 1) * p.column.dilation;

    Sum sum[TAPS][OUTPUTS] = {};
    const int last = static_cast<int>(static_cast<long long>(p.tiles) * (split + 1) / p.splits);
    for (int tile = static_cast<int>(static_cast<long long>(p.tiles) * split / p.splits); tile < last; ++tile) {
        const auto [above, column_tile] = p.by_column_tiles.divmod(tile);
        const auto [image, row_tile] = p.by_row_tiles.divmod(above);
        block.image = static_cast<int>(image);
        block.row = static_cast<int>(row_tile) * p.rows;
        block.column = static_cast<int>(column_tile) * p.columns;
        block.source_row = first_source(p.row, block.row);
        const int first_column = first_source(p.column, block.column);
        block.source_column = aligned_column(first_column);
        stage_source(p, staged, p.row, p.column, block, block.image, 0);
        stage_dy(p, dy, block);
        wait_async<0>();
        __syncthreads();
        // Not the zeros beyond the edges of dy times what x has there, which may be infinite.
        const int rows = min(p.rows, p.row.positions - block.row);
        const int columns = min(p.columns, p.column.positions - block.column);
        if (unit.active) add(p, own_x + first_column - block.source_column, own_dy, rows, columns, taps, sum);
        __syncthreads();
    }
    if (!unit.active) return;
    const int all = p.row.taps * p.column.taps;
    const long long count = static_cast<long long>(p.groups) * p.outputs * p.inputs * all;
#pragma unroll
    for (int k = 0; k < OUTPUTS; ++k) {
        if (unit.output + k >= p.outputs) break;
        const long long output = (block.group + unit.group) * static_cast<long long>(p.outputs) + unit.output + k;
        Sum* const to = p.partial + split * count + (output * p.inputs + unit.input) * all + unit.i * p.column.taps;
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            if (unit.j + t < p.column.taps) to[unit.j + t] = sum[t][k];
        }
    }
}

KERNEL(grouped_wgrad_sum, GroupedWgradParameters, THREADS) {
    const unsigned int index = blockIdx.x * THREADS + threadIdx.x;
    const unsigned int count = static_cast<unsigned int>(p.groups * p.outputs) * p.inputs * p.by_taps.divisor;
    if (index >= count) return;
    Sum sum = 0;
    for (int split = 0; split < p.splits; ++split) sum += p.partial[static_cast<long long>(split) * count + index];
    const auto [line, tap] = p.by_taps.divmod(index);
    const auto [output, input] = p.by_inputs.divmod(line);
    const auto [i, j] = p.column.by_taps.divmod(tap);
    p.result[output * p.weight_output + input * p.weight_input + i * p.weight_row + j * p.weight_column] =
        narrow<ELEMENT>(sum);
}
