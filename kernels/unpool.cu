// Maximum unpooling: every element goes where its index says, zeros elsewhere; where indices repeat, the last stays.
//
// So that the last one stays in whatever order threads come, elements first lay claim to their places (`unpool_claim`),
// numbered in memory order from 1; then every place takes what is its own (`unpool_fill`). The gradient is a plain
// gather (`unpool_gradient`). An index outside the map names no place: to say so would mean to wait for the GPU.
//
// Macros: ELEMENT.

#include "windows.cuh"

using namespace fastconv;

struct UnpoolParameters {
    const ELEMENT* from;  // x; in the gradient dy
    const long long* indices;
    ELEMENT* to;  // y; in the gradient dx
    unsigned int* claims;

    Units units;
    MapStrides from_strides, index_strides, to_strides;
    int small[3], large[3];  // sizes of x and of y
    FastDiv<unsigned int> by_small[2], by_large[2];  // rows and columns
    long long places;  // of a map of y: an index beyond them names none
    long long claims_image, claims_channel, claims_place;
    long long claims_count;
};

// The offset of a map's element that a flat index names.
__device__ inline long long offset(const MapStrides& strides, const FastDiv<unsigned int> (&by)[2],
                                   unsigned int index) {
    const auto [line, w] = by[1].divmod(index);
    const auto [d, h] = by[0].divmod(line);
    return strides.at(0, 0, static_cast<int>(d), static_cast<int>(h), static_cast<int>(w));
}

__device__ inline long long claims_of(const UnpoolParameters& p, const Unit& unit) {
    return p.claims_image * (unit.image - p.units.first) + p.claims_channel * unit.channel;
}

KERNEL(unpool_clear, UnpoolParameters, THREADS) {
    const long long threads = static_cast<long long>(gridDim.x) * THREADS;
    for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < p.claims_count; i += threads) {
        p.claims[i] = 0;
    }
}

// Units: the elements of x.
KERNEL(unpool_claim, UnpoolParameters, THREADS) {
    const Unit unit = own_unit<1>(p.units);
    if (!unit.valid) return;
    const long long place = p.indices[p.index_strides.at(unit.image, unit.channel, unit.d, unit.h, unit.w)];
    if (place < 0 || place >= p.places) return;
    const int own = (unit.d * p.small[1] + unit.h) * p.small[2] + unit.w;
    atomicMax(p.claims + claims_of(p, unit) + p.claims_place * place, static_cast<unsigned int>(own) + 1);
}

// Units: the elements of y.
KERNEL(unpool_fill, UnpoolParameters, THREADS) {
    const Unit unit = own_unit<1>(p.units);
    if (!unit.valid) return;
    const long long place = (static_cast<long long>(unit.d) * p.large[1] + unit.h) * p.large[2] + unit.w;
    const unsigned int owner = p.claims[claims_of(p, unit) + p.claims_place * place];
    ELEMENT value = narrow<ELEMENT>(0);
    if (owner) {
        const ELEMENT* const from = p.from + p.from_strides.at(unit.image, unit.channel, 0, 0, 0);
        value = from[offset(p.from_strides, p.by_small, owner - 1)];
    }
    p.to[p.to_strides.at(unit.image, unit.channel, unit.d, unit.h, unit.w)] = value;
}

// Units: the elements of x.
KERNEL(unpool_gradient, UnpoolParameters, THREADS) {
    const Unit unit = own_unit<1>(p.units);
    if (!unit.valid) return;
    const long long place = p.indices[p.index_strides.at(unit.image, unit.channel, unit.d, unit.h, unit.w)];
    const ELEMENT* const from = p.from + p.from_strides.at(unit.image, unit.channel, 0, 0, 0);
    const bool valid = place >= 0 && place < p.places;
    p.to[p.to_strides.at(unit.image, unit.channel, unit.d, unit.h, unit.w)] =
        valid ? from[offset(p.from_strides, p.by_large, static_cast<unsigned int>(place))] : narrow<ELEMENT>(0);
}
