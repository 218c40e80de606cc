// Convolution of small groups of channels, and its input gradient: a block has the weights of some groups and a tile of
// their source channels in shared memory, a thread OUTPUTS channels of a column of ROWS results in registers. Tiles are
// made of whole groups, so that no product is with padding. What is gathered: see Axis in convolution.cuh.
//
// Macros: see grouped.cuh; OUTPUTS, ROWS; STORE (channels that are stored at once); GRADIENT.

#include "grouped.cuh"

using namespace fastconv;

constexpr int MAX_PHASES = 4;

struct Phase {
    Axis row, column;
    long long weight_origin;
    long long result_origin;
    long long residual_origin;
};

struct GroupedParameters {
    const ELEMENT* source;
    const ELEMENT* weight;
    ELEMENT* result;
    const ELEMENT* bias;
    const ELEMENT* residual;

    Map source_map;
    Map result_map;  // rows and columns: from one of a phase to the next
    Map residual_map;
    long long weight_group, weight_output, weight_input, weight_row, weight_column, bias_step;

    int images, groups, inputs, outputs;  // channels of a group of the source and of the result
    int activation;

    // A block's tile: so many groups and images; columns and groups of rows; source channels of a group at a time.
    int block_groups, passes, columns, row_groups, chunk, output_blocks;
    int source_rows, line, plane;  // of a source channel in shared memory
    FastDiv<unsigned int> by_columns, by_row_groups, by_output_blocks, by_fast, by_middle, by_chunk, by_outputs;
    FastDiv<unsigned int> by_row_tiles, by_column_tiles;

    Phase phase[MAX_PHASES];
};

__device__ inline BlockPlace block_place(const GroupedParameters& p, const Phase& phase) {
    const auto [above, column_tile] = p.by_column_tiles.divmod(blockIdx.x);
    const auto [images, row_tile] = p.by_row_tiles.divmod(above);
    BlockPlace block;
    block.group = static_cast<int>(blockIdx.y) * p.block_groups;
    block.image = static_cast<int>(images) * p.passes;
    block.row = static_cast<int>(row_tile) * p.row_groups * ROWS;
    block.column = static_cast<int>(column_tile) * p.columns;
    block.source_row = first_source(phase.row, block.row);
    block.source_column = aligned_column(first_source(phase.column, block.column));
    return block;
}

// Copies the weights of some source channels: [group][channel][tap][output], outputs padded with zeros.
__device__ inline void stage_weight(const GroupedParameters& p, Sum* staged, const Phase& phase,
                                    const BlockPlace& block, int first) {
    const int outputs = p.output_blocks * OUTPUTS, taps = phase.row.taps * phase.column.taps;
    const int channels = p.chunk * p.block_groups, count = channels * outputs * taps;
    for (int index = static_cast<int>(threadIdx.x); index < count; index += THREADS) {
        // Taps are neighbours in memory: neighbouring threads take those.
        const int above = index / taps, tap = index - above * taps;
        const auto [line, output] = p.by_outputs.divmod(above);
        const auto [group, channel] = p.by_chunk.divmod(line);
        const auto [i, j] = phase.column.by_taps.divmod(tap);
        const int g = block.group + static_cast<int>(group), c = first + static_cast<int>(channel);
        Sum weight = 0;
        if (g < p.groups && c < p.inputs && static_cast<int>(output) < p.outputs) {
            weight = widen(p.weight[phase.weight_origin + g * p.weight_group + output * p.weight_output +
                                    c * p.weight_input + i * p.weight_row + j * p.weight_column]);
        }
        staged[(static_cast<int>(line) * taps + tap) * outputs + static_cast<int>(output)] = weight;
    }
}

// A thread's results: their channels, and their place in the block's tile.
struct ThreadPlace {
    int group, output, row, column;
    bool active;
};

__device__ inline ThreadPlace thread_place(const GroupedParameters& p, const Phase& phase, const BlockPlace& block) {
    const auto [above, column] = p.by_columns.divmod(threadIdx.x);
    const auto [rest, row_group] = p.by_row_groups.divmod(above);
    const auto [group, output_block] = p.by_output_blocks.divmod(rest);
    ThreadPlace thread = {static_cast<int>(group), static_cast<int>(output_block) * OUTPUTS,
                          static_cast<int>(row_group) * ROWS, static_cast<int>(column), false};
    thread.active = thread.group < min(p.block_groups, p.groups - block.group) &&
                    block.row + thread.row < phase.row.positions &&
                    block.column + thread.column < phase.column.positions;
    return thread;
}

__device__ inline void add(const GroupedParameters& p, const Phase& phase, const Sum* tile, const Sum* weight,
                           int channels, Sum (&sum)[ROWS][OUTPUTS]) {
    const int outputs = p.output_blocks * OUTPUTS, step = phase.row.stride * p.line;
    for (int c = 0; c < channels; ++c) {
        for (int i = 0; i < phase.row.taps; ++i) {
            const Sum* read = tile + c * p.plane + i * phase.row.dilation * p.line;
            for (int j = 0; j < phase.column.taps; ++j) {
                Sum held[OUTPUTS];
                load_all(held, weight);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const Sum value = read[r * step];
#pragma unroll
                    for (int k = 0; k < OUTPUTS; ++k) sum[r][k] += value * held[k];
                }
                read += phase.column.dilation;
                weight += outputs;
            }
        }
    }
}

// An input gradient by its definition: it has no products with the zeros beyond the edges of dy, which are NaN if the
// weight is infinite.
__device__ inline Sum defined_gradient(const GroupedParameters& p, const Phase& phase, int image, int group, int output,
                                       int row, int column) {
    Sum sum = 0;
    for (int c = 0; c < p.inputs; ++c) {
        const ELEMENT* const from = p.source + p.source_map.at(image, group * p.inputs + c, 0, 0);
        const ELEMENT* const weight = p.weight + phase.weight_origin + group * p.weight_group +
                                      output * p.weight_output + c * p.weight_input;
        for (int i = 0; i < phase.row.taps; ++i) {
            const int y = row * phase.row.stride + phase.row.origin + i * phase.row.dilation;
            if (!within(y, phase.row.size)) continue;
            for (int j = 0; j < phase.column.taps; ++j) {
                const int x = column * phase.column.stride + phase.column.origin + j * phase.column.dilation;
                if (!within(x, phase.column.size)) continue;
                sum += widen(from[y * p.source_map.row + x * p.source_map.column]) *
                       widen(weight[i * p.weight_row + j * p.weight_column]);
            }
        }
    }
    return sum;
}

// Stores `count` results of neighbouring channels, after what the epilogue adds.
template <int count>
__device__ inline void store(const GroupedParameters& p, const Phase& phase, int image, int channel, int row,
                             int column, const Sum* sum) {
    Vector<ELEMENT, count> stored, residual = {};
    const ELEMENT* const added = p.residual + phase.residual_origin;
    if (p.residual) residual = load_vector<count>(added + p.residual_map.at(image, channel, row, column));
#pragma unroll
    for (int e = 0; e < count; ++e) {
        Sum whole = sum[e];
        if (p.bias) whole += widen(p.bias[(channel + e) * p.bias_step]);
        if (p.residual) whole += widen(residual.at[e]);
        stored.at[e] = narrow<ELEMENT>(activated(whole, p.activation));
    }
    store_vector(p.result + phase.result_origin + p.result_map.at(image, channel, row, column), stored);
}

KERNEL(grouped, GroupedParameters, THREADS, 2) {
    DYNAMIC_SHARED(Sum, staged);
    const Phase& phase = p.phase[blockIdx.z];
    const BlockPlace block = block_place(p, phase);
    if (block.row >= phase.row.positions || block.column >= phase.column.positions) return;
    const ThreadPlace thread = thread_place(p, phase, block);
    const int taps = phase.row.taps * phase.column.taps, outputs = p.output_blocks * OUTPUTS;
    Sum* const tile = staged;
    constexpr int whole = vector_count<Sum>;  // what the weights' addresses are multiples of
    Sum* const weights = staged + ceil_div(p.block_groups * p.chunk * p.plane, whole) * whole;
    // The tap of the lowest index need not read the lowest element.
    const int ahead_row = phase.row.origin + block.row * phase.row.stride - block.source_row;
    const int ahead_column = phase.column.origin + block.column * phase.column.stride - block.source_column;
    const Sum* const read = tile + thread.group * p.chunk * p.plane +
                            (ahead_row + thread.row * phase.row.stride) * p.line + ahead_column +
                            thread.column * phase.column.stride;
    const Sum* const weight = weights + thread.group * p.chunk * taps * outputs + thread.output;

    for (int image = block.image; image < min(block.image + p.passes, p.images); ++image) {
        Sum sum[ROWS][OUTPUTS] = {};
        for (int first = 0; first < p.inputs; first += p.chunk) {
            stage_source(p, tile, phase.row, phase.column, block, image, first);
            if (image == block.image || p.chunk < p.inputs) stage_weight(p, weights, phase, block, first);
            wait_async<0>();
            __syncthreads();
            if (thread.active) add(p, phase, read, weight, min(p.chunk, p.inputs - first), sum);
            __syncthreads();
        }
        if (!thread.active) continue;
        const int group = block.group + thread.group, column = block.column + thread.column;
        static_assert(ROWS * OUTPUTS <= 32, "a bit for each result");
        unsigned int undefined = 0;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = block.row + thread.row + r;
            if (row >= phase.row.positions) break;
#pragma unroll
            for (int k = 0; k < OUTPUTS; ++k) {
                if (thread.output + k >= p.outputs) break;
                if (GRADIENT && sum[r][k] != sum[r][k]) undefined |= 1u << (r * OUTPUTS + k);
                if (k % STORE) continue;
                store<STORE>(p, phase, image, group * p.outputs + thread.output + k, row, column, sum[r] + k);
            }
        }
        for (int bit = 0; undefined != 0; ++bit, undefined >>= 1) {
            if (!(undefined & 1)) continue;
            const int row = block.row + thread.row + bit / OUTPUTS, output = thread.output + bit % OUTPUTS;
            const Sum defined = defined_gradient(p, phase, image, group, output, row, column);
            store<1>(p, phase, image, group * p.outputs + output, row, column, &defined);
        }
    }
}
