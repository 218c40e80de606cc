// Winograd's convolution F(4x4, 3x3) in single precision, and its input gradient: 36 multiplications for each pair of
// channels give 4x4 results. Transformed inputs and products stay on the chip: a block has TILES tiles of the result of
// OUTPUTS channels, and for a slice of DEPTH source channels at a time it transforms the tiles of the source into
// shared memory, and multiplies them there with weights that `winograd_weight` transformed beforehand. The threads that
// multiply hold all of the block's sums in registers: eight of them have one of the 36 products.
//
// The points are 0, 5/8, -5/8, 3/2, -3/2 and infinity, by whose rounding fastconv/backends/cpu/winograd/points.py chose
// them; rows of the transforms are in that order. A transform smears NaN and infinity over its tile: a result that is
// not finite is computed again, by its definition.
//
// Macro: GRADIENT (whether the result is dx).

#include "async.cuh"
#include "convolution.cuh"
#include "plane.cuh"

using namespace fastconv;

constexpr int TILES = 24, OUTPUTS = 32, DEPTH = 8, PRODUCTS = 36;
constexpr int THREADS = PRODUCTS * 8;
// A thread's sums: nine warps leave it 168 registers. Lines of shared memory, whose neighbours' banks do not meet.
constexpr int THREAD_OUTPUTS = 16, THREAD_TILES = 6;
constexpr int WEIGHT_LINE = OUTPUTS + 4, DATA_LINE = TILES + 4;

struct WinogradParameters {
    const float* source;
    const float* weight;
    float* result;
    const float* bias;
    const float* residual;
    float* transformed;  // weights: [input][product][output], padded to whole slices and blocks

    Map source_map, result_map, residual_map;
    long long weight_output, weight_input, weight_row, weight_column, bias_step;

    int images, inputs, outputs, padded_inputs, padded_outputs;
    int source_rows, source_columns, result_rows, result_columns;
    int before_row, before_column;
    int activation;
    int channels_fastest;  // whether neighbouring channels of the source are neighbours in memory
    unsigned int tiles;
    FastDiv<unsigned int> by_output_blocks, by_tile_rows, by_tile_columns, by_padded_outputs;
};

constexpr float A = 0.625f, B = 1.5f;  // the points
constexpr float AA = A * A, BB = B * B;

// Six values of a tile, `step` apart, transformed in their place.
__device__ inline void transform_data(float* d, int step) {
    const float d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const float even_a = d4 - BB * d2, odd_a = A * d3 - A * BB * d1;
    const float even_b = d4 - AA * d2, odd_b = B * d3 - AA * B * d1;
    d[0] = AA * BB * d0 - (AA + BB) * d2 + d4;
    d[step] = even_a + odd_a;
    d[2 * step] = even_a - odd_a;
    d[3 * step] = even_b + odd_b;
    d[4 * step] = even_b - odd_b;
    d[5 * step] = AA * BB * d1 - (AA + BB) * d3 + d5;
}

// Three taps to six values.
__device__ inline void transform_filter(float g0, float g1, float g2, float* to, int step) {
    constexpr float a = 1 / (2 * AA * (AA - BB)), b = 1 / (2 * BB * (BB - AA));
    to[0] = g0 * (1 / (AA * BB));
    to[step] = a * (g0 + AA * g2 + A * g1);
    to[2 * step] = a * (g0 + AA * g2 - A * g1);
    to[3 * step] = b * (g0 + BB * g2 + B * g1);
    to[4 * step] = b * (g0 + BB * g2 - B * g1);
    to[5 * step] = g2;
}

// Six products, `step` apart, to four results.
__device__ inline void transform_output(const float* m, int step, float* to, int to_step) {
    const float even_a = m[step] + m[2 * step], odd_a = m[step] - m[2 * step];
    const float even_b = m[3 * step] + m[4 * step], odd_b = m[3 * step] - m[4 * step];
    to[0] = m[0] + even_a + even_b;
    to[to_step] = A * odd_a + B * odd_b;
    to[2 * to_step] = AA * even_a + BB * even_b;
    to[3 * to_step] = A * AA * odd_a + B * BB * odd_b + m[5 * step];
}

KERNEL(winograd_weight, WinogradParameters, 256) {
    const unsigned int index = blockIdx.x * 256 + threadIdx.x;
    const auto [c, k] = p.by_padded_outputs.divmod(index);
    const int input = static_cast<int>(c), output = static_cast<int>(k);
    if (input >= p.padded_inputs) return;
    float half[6][3] = {}, whole[PRODUCTS];
    const bool valid = input < p.inputs && output < p.outputs;
    const float* const weight = p.weight + input * p.weight_input + output * p.weight_output;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
        float taps[3] = {};
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int row = GRADIENT ? 2 - i : i, column = GRADIENT ? 2 - j : j;
            if (valid) taps[i] = weight[row * p.weight_row + column * p.weight_column];
        }
        transform_filter(taps[0], taps[1], taps[2], &half[0][j], 3);
    }
    float* const to = p.transformed + static_cast<long long>(input) * PRODUCTS * p.padded_outputs + output;
#pragma unroll
    for (int i = 0; i < 6; ++i) transform_filter(half[i][0], half[i][1], half[i][2], whole + 6 * i, 1);
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) to[static_cast<long long>(i) * p.padded_outputs] = whole[i];
}

struct TilePlace {
    int image, row, column;  // of the first result
    bool valid;
};

__device__ inline TilePlace tile_place(const WinogradParameters& p, unsigned int tile) {
    const auto [above, column] = p.by_tile_columns.divmod(tile);
    const auto [image, row] = p.by_tile_rows.divmod(above);
    return {static_cast<int>(image), static_cast<int>(row) * 4, static_cast<int>(column) * 4, tile < p.tiles};
}

// Copies the transformed weights of a slice: [product][input][output].
__device__ inline void stage_weight(const WinogradParameters& p, float* staged, int first_input, int first_output) {
    const float* const from =
        p.transformed + static_cast<long long>(first_input) * PRODUCTS * p.padded_outputs + first_output;
    constexpr int pieces = OUTPUTS / 4;
#pragma unroll
    for (int i = 0; i < DEPTH * PRODUCTS * pieces / THREADS; ++i) {
        const int index = static_cast<int>(threadIdx.x) + i * THREADS;
        const int line = index / pieces, piece = index % pieces;  // a line is a product of an input
        const int input = line / PRODUCTS, product = line % PRODUCTS;
        copy_async<16>(staged + (product * DEPTH + input) * WEIGHT_LINE + piece * 4,
                       from + static_cast<long long>(line) * p.padded_outputs + piece * 4);
    }
    commit_async();
}

// Transforms one tile of one channel of the source into [product][input][tile].
__device__ inline void stage_tile(const WinogradParameters& p, float* staged, const TilePlace& place, int input,
                                  int tile, int first_input) {
    const int channel = first_input + input, row = place.row - p.before_row, column = place.column - p.before_column;
    const bool valid = place.valid && channel < p.inputs;
    float* const to = staged + input * DATA_LINE + tile;
    constexpr int STEP = DEPTH * DATA_LINE;  // from one product to the next
    // Half of the rows at a time, by way of shared memory: all sums of the block are in registers.
#pragma unroll 1
    for (int first = 0; first < 6; first += 3) {
        float d[18];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int y = row + first + i;
            const bool row_valid = valid && within(y, p.source_rows);
            const float* const from = p.source + p.source_map.at(place.image, channel, y, column);
#pragma unroll
            for (int j = 0; j < 6; ++j) {
                const bool inside = row_valid && within(column + j, p.source_columns);
                d[6 * i + j] = inside ? from[j * p.source_map.column] : 0.0f;
            }
            transform_data(d + 6 * i, 1);
        }
#pragma unroll
        for (int i = 0; i < 18; ++i) to[(6 * first + i) * STEP] = d[i];
    }
#pragma unroll 2
    for (int j = 0; j < 6; ++j) transform_data(to + j * STEP, 6 * STEP);
}

// A result by its definition. That of an input gradient has no products beyond the edges of dy.
__device__ inline float defined(const WinogradParameters& p, int image, int output, int row, int column) {
    float sum = 0;
    for (int c = 0; c < p.inputs; ++c) {
        const float* const weight = p.weight + c * p.weight_input + output * p.weight_output;
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) {
                const int y = row - p.before_row + i, x = column - p.before_column + j;
                const bool inside = within(y, p.source_rows) && within(x, p.source_columns);
                if (GRADIENT && !inside) continue;
                const float value = inside ? p.source[p.source_map.at(image, c, y, x)] : 0.0f;
                sum += value * weight[(GRADIENT ? 2 - i : i) * p.weight_row + (GRADIENT ? 2 - j : j) * p.weight_column];
            }
        }
    }
    return sum;
}

// From the 36 sums of a tile, `step` apart, to its results in memory.
__device__ inline void finish(const WinogradParameters& p, const TilePlace& place, int output, const float* sums,
                              int step) {
    float half[6][4], y[16];
#pragma unroll
    for (int j = 0; j < 6; ++j) transform_output(sums + j * step, 6 * step, &half[j][0], 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) transform_output(&half[0][i], 4, y + 4 * i, 1);
    const float bias = p.bias ? p.bias[output * p.bias_step] : 0.0f;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 16; ++i) finite = finite && fabs(y[i]) <= 3.4028234e38f;
    const auto store = [&p, &place, output, bias](int row, int column, float sum) {
        sum += bias;
        if (p.residual) sum += p.residual[p.residual_map.at(place.image, output, row, column)];
        p.result[p.result_map.at(place.image, output, row, column)] = activated(sum, p.activation);
    };
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int row = place.row + i / 4, column = place.column + i % 4;
        if (finite && row < p.result_rows && column < p.result_columns) store(row, column, y[i]);
    }
    for (int i = 0; i < (finite ? 0 : 16); ++i) {
        const int row = place.row + i / 4, column = place.column + i % 4;
        if (row < p.result_rows && column < p.result_columns) {
            store(row, column, defined(p, place.image, output, row, column));
        }
    }
}

KERNEL(winograd, WinogradParameters, THREADS) {
    DYNAMIC_SHARED(float, staged);
    float* const weights = staged;
    float* const data = staged + PRODUCTS * DEPTH * WEIGHT_LINE;
    const auto [tile_block, output_block] = p.by_output_blocks.divmod(blockIdx.x);
    const int first_output = static_cast<int>(output_block) * OUTPUTS, thread = static_cast<int>(threadIdx.x);

    // As one who transforms: a tile and a channel of the slice; the last warps have none.
    const int own_tile = p.channels_fastest ? thread / DEPTH : thread % TILES;
    const int own_input = p.channels_fastest ? thread % DEPTH : thread / TILES;
    const TilePlace place = tile_place(p, tile_block * TILES + own_tile);
    // As one who multiplies: a product, some outputs and some tiles of it.
    const int product = thread / 8, output = thread % 8 / 4 * THREAD_OUTPUTS, tile = thread % 4 * THREAD_TILES;
    const float* const left = weights + product * DEPTH * WEIGHT_LINE + output;
    const float* const right = data + product * DEPTH * DATA_LINE + tile;

    float sum[THREAD_OUTPUTS][THREAD_TILES] = {};
    for (int first = 0; first < p.padded_inputs; first += DEPTH) {
        stage_weight(p, weights, first, first_output);
        if (thread < TILES * DEPTH) stage_tile(p, data, place, own_input, own_tile, first);
        wait_async<0>();
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < DEPTH; ++c) {
            float u[THREAD_OUTPUTS], v[THREAD_TILES];
#pragma unroll
            for (int i = 0; i < THREAD_OUTPUTS; i += 4) {
                const Vector<float, 4> piece = load_vector<4>(left + c * WEIGHT_LINE + i);
#pragma unroll
                for (int e = 0; e < 4; ++e) u[i + e] = piece.at[e];
            }
#pragma unroll
            for (int i = 0; i < THREAD_TILES; i += 2) {
                const Vector<float, 2> piece = load_vector<2>(right + c * DATA_LINE + i);
#pragma unroll
                for (int e = 0; e < 2; ++e) v[i + e] = piece.at[e];
            }
#pragma unroll
            for (int i = 0; i < THREAD_OUTPUTS; ++i) {
#pragma unroll
                for (int j = 0; j < THREAD_TILES; ++j) sum[i][j] += u[i] * v[j];
            }
        }
        __syncthreads();
    }

    // The sums of eight outputs at a time meet in shared memory: [product][output][tile].
    constexpr int SOME = 4, LEAF = TILES + 1;
    const int meeting = thread / TILES, meeting_tile = thread % TILES;
    const TilePlace own = tile_place(p, tile_block * TILES + meeting_tile);
#pragma unroll
    for (int part = 0; part < THREAD_OUTPUTS; part += SOME) {
#pragma unroll
        for (int i = 0; i < SOME; ++i) {
#pragma unroll
            for (int j = 0; j < THREAD_TILES; ++j) {
                staged[(product * 2 * SOME + output / THREAD_OUTPUTS * SOME + i) * LEAF + tile + j] = sum[part + i][j];
            }
        }
        __syncthreads();
        const int channel = first_output + meeting / SOME * THREAD_OUTPUTS + part + meeting % SOME;
        if (meeting < 2 * SOME && own.valid && channel < p.outputs) {
            finish(p, own, channel, staged + meeting * LEAF + meeting_tile, 2 * SOME * LEAF);
        }
        __syncthreads();
    }
}
