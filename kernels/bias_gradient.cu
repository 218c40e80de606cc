// The gradient of a bias: sums of dy over all that share an entry of it.
//
// Results are (position, channel) or (channel), items (image) or (image, position): `positions` are digits of one of
// the two. A block sums a share of the items for one result, or for 32 neighbouring ones where channels lie side by
// side. Shares are added by a second kernel, always in the same order.
//
// Macros: ELEMENT, WIDE (32 results a block), BY_POSITION (positions are digits of results).

#include "convolution.cuh"

using namespace fastconv;

using Sum = Accumulator<ELEMENT>;

struct BiasGradientParameters {
    const ELEMENT* dy;
    ELEMENT* db;
    Sum* partial;  // [share][result]

    long long dy_image, dy_channel, dy_axis[3];
    long long db_channel, db_axis[3];
    long long items;
    unsigned int results;
    int shares;
    FastDiv<unsigned int> by_channels;
    FastDiv<unsigned long long> by_positions[3];
};

constexpr int THREADS = 256;
constexpr int LANES = WIDE ? 32 : 1;

// Elements to a result's first item, and to its place in db.
struct Result {
    long long dy;
    long long db;
};

__device__ inline Result result_place(const BiasGradientParameters& p, unsigned int result) {
    const auto [position, channel] = p.by_channels.divmod(result);
    Result place = {p.dy_channel * channel, p.db_channel * channel};
    unsigned long long index = position;
    if (BY_POSITION) {
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            const auto [quotient, remainder] = p.by_positions[i].divmod(index);
            place.dy += p.dy_axis[i] * static_cast<long long>(remainder);
            place.db += p.db_axis[i] * static_cast<long long>(remainder);
            index = quotient;
        }
    }
    return place;
}

__device__ inline long long item_offset(const BiasGradientParameters& p, long long item) {
    unsigned long long index = static_cast<unsigned long long>(item);
    long long offset = 0;
    if (!BY_POSITION) {
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            const auto [quotient, remainder] = p.by_positions[i].divmod(index);
            offset += p.dy_axis[i] * static_cast<long long>(remainder);
            index = quotient;
        }
    }
    return offset + p.dy_image * static_cast<long long>(index);
}

KERNEL(bias_gradient, BiasGradientParameters, THREADS) {
    SHARED_ARRAY(Sum, sums, THREADS);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % LANES;
    const unsigned int result = blockIdx.x * LANES + lane;
    const long long first = p.items * blockIdx.y / p.shares, last = p.items * (blockIdx.y + 1) / p.shares;
    Sum sum = 0;
    if (result < p.results) {
        const ELEMENT* const dy = p.dy + result_place(p, result).dy;
        for (long long item = first + thread / LANES; item < last; item += THREADS / LANES) {
            sum += widen(dy[item_offset(p, item)]);
        }
    }
    sums[thread] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half >= LANES; half /= 2) {
        if (thread < half) sums[thread] += sums[thread + half];
        __syncthreads();
    }
    if (thread >= LANES || result >= p.results) return;
    if (p.shares > 1) {
        p.partial[static_cast<long long>(blockIdx.y) * p.results + result] = sums[thread];
    } else {
        p.db[result_place(p, result).db] = narrow<ELEMENT>(sums[thread]);
    }
}

KERNEL(bias_gradient_sum, BiasGradientParameters, THREADS) {
    const unsigned int result = blockIdx.x * THREADS + threadIdx.x;
    if (result >= p.results) return;
    Sum sum = 0;
    for (int share = 0; share < p.shares; ++share) sum += p.partial[static_cast<long long>(share) * p.results + result];
    p.db[result_place(p, result).db] = narrow<ELEMENT>(sum);
}
