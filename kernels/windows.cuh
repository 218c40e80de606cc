// The windows of pools and unfold along three axes, which elements they read, and how threads share results out.

#pragma once

#include "elements.cuh"
#include "fastdiv.cuh"

namespace fastconv {

constexpr int THREADS = 256;

// A range of elements or windows: first, first + step, ... below stop.
struct Span {
    int first;
    int stop;
    int step;

    __device__ int count() const { return stop > first ? (stop - first + step - 1) / step : 0; }
    __device__ bool has(int at) const { return at >= first && at < stop; }
};

// One axis of windows. Window o reads element o * stride - before + j * dilation for every j below `kernel`; one of an
// uneven axis, as adaptive pools have them, those from floor(o * size / out) to ceil((o + 1) * size / out).
struct WindowAxis {
    int size;
    int out;
    int kernel;  // elements of a window, at most
    int stride;
    int dilation;
    int before;
    int counted;  // where an average stops to count padding
    int uneven;
    FastDiv<unsigned int> by_kernel;
    FastDiv<unsigned int> by_stride;
    FastDiv<unsigned int> by_dilation;
    FastDiv<unsigned long long> by_size;
    FastDiv<unsigned long long> by_out;

    // The elements that a window reads.
    __device__ Span elements(int window) const {
        if (uneven) return stretched(window, size, by_out);
        const int start = window * stride - before;
        const int stop = start + (kernel - 1) * dilation + 1;
        return {start < 0 ? start + rounded_up(-start) : start, stop < size ? stop : size, dilation};
    }

    // The windows that reach over an element; those of a dilated axis may yet skip it.
    __device__ Span windows(int element) const {
        if (uneven) return stretched(element, out, by_size);
        const int last = element + before, reach = (kernel - 1) * dilation;
        const int stop = static_cast<int>(by_stride.divide(last)) + 1;
        const int first = last > reach ? static_cast<int>(by_stride.divide(last - reach + stride - 1)) : 0;
        return {first, stop < out ? stop : out, 1};
    }

    // Whether a window that reaches over an element reads it.
    __device__ bool reads(int window, int element) const { return dilation == 1 || tap(window, element) >= 0; }

    // The tap through which a window reads an element that it reaches over, or -1.
    __device__ int tap(int window, int element) const {
        const auto [tap, rest] = by_dilation.divmod(element + before - window * stride);
        return rest ? -1 : static_cast<int>(tap);
    }

    // What an average counts of a window.
    __device__ int counts(int window, bool with_padding) const {
        if (uneven || !with_padding) return elements(window).count();
        const int start = window * stride - before;
        const int left = static_cast<int>(by_dilation.divide(max(counted - start, 0) + dilation - 1));
        return left < kernel ? left : kernel;
    }

private:
    __device__ int rounded_up(int n) const {
        return dilation == 1 ? n : static_cast<int>(by_dilation.divide(n + dilation - 1)) * dilation;
    }

    // Windows and elements of an uneven axis reach over one another by the same rule.
    __device__ static Span stretched(int at, int length, const FastDiv<unsigned long long>& by) {
        const unsigned long long begin = static_cast<unsigned long long>(at) * length;
        return {static_cast<int>(by.divide(begin)), static_cast<int>(by.divide(begin + length + by.divisor - 1)), 1};
    }
};

// Elements from one entry to the next along each axis of an array.
struct MapStrides {
    long long image;
    long long channel;
    long long axis[3];

    __device__ long long at(int i, int c, int d, int h, int w) const {
        return image * i + channel * c + axis[0] * d + axis[1] * h + axis[2] * w;
    }
};

// How the entries of an array are shared out: a thread has `rows` entries along the middle axis, of a few channels.
struct Units {
    int images;
    int group;  // images that a row of the grid has, so that indices stay below 2^31
    int first;  // image
    int rows;
    int channels_fastest;
    FastDiv<unsigned int> by_channels;
    FastDiv<unsigned int> by_axis[3];
};

// A thread's place in an array.
struct Unit {
    int image;
    int channel;
    int d, h, w;
    bool valid;
};

template <int channels>
__device__ inline Unit unit_at(const Units& units, unsigned int index) {
    unsigned int channel = 0, at[3];
    const auto split = [&index](const FastDiv<unsigned int>& by) {
        const auto [quotient, remainder] = by.divmod(index);
        index = quotient;
        return remainder;
    };
    if (units.channels_fastest) channel = split(units.by_channels);
#pragma unroll
    for (int i = 2; i >= 0; --i) at[i] = split(units.by_axis[i]);
    if (!units.channels_fastest) channel = split(units.by_channels);
    Unit unit;
    unit.image = static_cast<int>(blockIdx.y) * units.group + static_cast<int>(index);
    unit.valid = static_cast<int>(index) < units.group && unit.image < units.images;
    unit.image += units.first;
    unit.channel = static_cast<int>(channel) * channels;
    unit.d = static_cast<int>(at[0]);
    unit.h = static_cast<int>(at[1]) * units.rows;
    unit.w = static_cast<int>(at[2]);
    return unit;
}

template <int channels>
__device__ inline Unit own_unit(const Units& units) {
    return unit_at<channels>(units, blockIdx.x * THREADS + threadIdx.x);
}

}  // namespace fastconv
