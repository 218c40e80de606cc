// Adds up the parts of a depthwise weight gradient, always in the same order, and rounds them.

#include "depthwise.cuh"

using namespace fastconv;

KERNEL(depthwise_sum, DepthwiseParameters, THREADS) {
    const unsigned int taps = p.row.taps * p.column.taps, count = p.channels * taps;
    const unsigned int index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    Sum sum = 0;
    for (int split = 0; split < p.splits; ++split) sum += p.partial[static_cast<long long>(split) * count + index];
    const unsigned int channel = index / taps;
    const auto [i, j] = p.by_taps.divmod(index - channel * taps);
    p.result[channel * p.weight_map.channel + i * p.weight_map.row + j * p.weight_map.column] = narrow<ELEMENT>(sum);
}
