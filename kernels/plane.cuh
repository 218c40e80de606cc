// Words for arrays of planes: images, channels, rows and columns.

#pragma once

#include "platform.cuh"

namespace fastconv {

// Elements from one entry to the next along each axis.
struct Map {
    long long image;
    long long channel;
    long long row;
    long long column;

    __device__ long long at(int image_, int channel_, int row_, int column_) const {
        return image * image_ + channel * channel_ + row * row_ + column * column_;
    }
};

// Whether an index is one of a line of so many.
__device__ inline bool within(int at, int size) {
    return static_cast<unsigned int>(at) < static_cast<unsigned int>(size);
}

}  // namespace fastconv
