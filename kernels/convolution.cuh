// What kernels know of a convolution's geometry: axes, strides, and where windows reach into padding.

#pragma once

#include "epilogue.cuh"
#include "fastdiv.cuh"

namespace fastconv {

enum PaddingMode : int { zeros, reflect, replicate, circular };

// One spatial axis of a gather: the window at position t reads element t * stride + origin + j * dilation through
// tap j. A convolution's own words for it; those of its input gradient differ (fastconv/backends/cuda/geometry.py).
struct Axis {
    int positions;
    int taps;
    int stride;
    int origin;
    int dilation;
    int size;
    FastDiv<unsigned int> by_positions;
    FastDiv<unsigned int> by_taps;
};

// Elements from one entry to the next along each of a result's axes, in one of the arrays that take part.
struct Strides {
    long long group;
    long long row;
    long long outer;
    long long axis[3];
    long long position[3];
};

// The element of a line that stands for one beyond its ends. At most one whole line beyond, as problems allow.
__device__ inline int folded(int at, int size, int mode) {
    if (mode == replicate) return at < 0 ? 0 : (at < size ? at : size - 1);
    if (mode == reflect) return at < 0 ? -at : (at < size ? at : 2 * (size - 1) - at);
    return at < 0 ? at + size : (at < size ? at : at - size);
}

// The elements of a padded line that stand for element i: `count` of them, some perhaps outside of the line.
struct Preimages {
    int first;
    int count;
    int mode;
    int size;
    int before;

    __device__ Preimages(int i, int size_, int before_, int padded, int mode_)
        : first(before_ + i), count(3), mode(mode_), size(size_), before(before_) {
        if (mode == zeros) count = 1;
        if (mode == replicate) {
            const int last = i == size - 1 ? padded - 1 : first;
            if (i == 0) first = 0;
            count = last - first + 1;
        }
    }

    // The k-th, or -1.
    __device__ int at(int k, int padded) const {
        if (mode == replicate || k == 0) return first + k;
        const int i = first - before;
        int result;
        if (mode == circular) {
            result = k == 1 ? first - size : first + size;
        } else {
            // The edges themselves are not repeated.
            if (k == 1 ? i == 0 : i == size - 1) return -1;
            result = k == 1 ? before - i : before + 2 * (size - 1) - i;
        }
        return result >= 0 && result < padded ? result : -1;
    }
};

}  // namespace fastconv
