// The adjoint of padding that repeats elements: what was summed over a padded map goes back to the elements that the
// padding repeated.
//
// Macros: ELEMENT.

#include "convolution.cuh"

using namespace fastconv;

struct FoldParameters {
    const Accumulator<ELEMENT>* padded;
    ELEMENT* out;
    const ELEMENT* bias;
    const ELEMENT* residual;

    long long count;
    long long padded_image, padded_channel, padded_axis[3];
    long long out_image, out_channel, out_axis[3];
    long long residual_image, residual_channel, residual_axis[3];
    long long bias_channel;
    FastDiv<unsigned long long> by_channels, by_size[3];
    int size[3], before[3], padded_size[3];
    int padding_mode;
    int activation;
    int channels_fastest;
};

KERNEL(fold_padding, FoldParameters, 256, 2) {
    const unsigned long long start = static_cast<unsigned long long>(blockIdx.x) * 256 + threadIdx.x;
    if (start >= static_cast<unsigned long long>(p.count)) return;
    unsigned long long index = start;
    int channel = 0, at[3];
    const auto take = [&](const FastDiv<unsigned long long>& by) {
        const auto [quotient, remainder] = by.divmod(index);
        index = quotient;
        return static_cast<int>(remainder);
    };
    if (p.channels_fastest) channel = take(p.by_channels);
#pragma unroll
    for (int i = 2; i >= 0; --i) at[i] = take(p.by_size[i]);
    if (!p.channels_fastest) channel = take(p.by_channels);
    const long long image = static_cast<long long>(index);

    const Preimages depth(at[0], p.size[0], p.before[0], p.padded_size[0], p.padding_mode);
    const Preimages height(at[1], p.size[1], p.before[1], p.padded_size[1], p.padding_mode);
    const Preimages width(at[2], p.size[2], p.before[2], p.padded_size[2], p.padding_mode);
    const Accumulator<ELEMENT>* const padded = p.padded + p.padded_image * image + p.padded_channel * channel;
    Accumulator<ELEMENT> sum = 0;
    for (int i = 0; i < depth.count; ++i) {
        const int d = depth.at(i, p.padded_size[0]);
        for (int j = 0; j < height.count; ++j) {
            const int h = height.at(j, p.padded_size[1]);
            for (int k = 0; k < width.count; ++k) {
                const int w = width.at(k, p.padded_size[2]);
                if (d < 0 || h < 0 || w < 0) continue;
                sum += padded[p.padded_axis[0] * d + p.padded_axis[1] * h + p.padded_axis[2] * w];
            }
        }
    }
    if (p.bias) sum += widen(p.bias[p.bias_channel * channel]);
    if (p.residual) {
        sum += widen(p.residual[p.residual_image * image + p.residual_channel * channel + p.residual_axis[0] * at[0] +
                                p.residual_axis[1] * at[1] + p.residual_axis[2] * at[2]]);
    }
    p.out[p.out_image * image + p.out_channel * channel + p.out_axis[0] * at[0] + p.out_axis[1] * at[1] +
          p.out_axis[2] * at[2]] = narrow<ELEMENT>(activated(sum, p.activation));
}
