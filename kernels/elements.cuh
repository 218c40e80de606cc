// Elements as they lie in memory, and the types that sums are kept in.
//
// The half types are bits with two conversions: everything is computed in `Accumulator<T>`. No CUDA header is needed,
// which a machine with nothing but CuPy may lack.

#pragma once

#include "platform.cuh"

namespace fastconv {

struct Half {
    unsigned short bits;
};

struct BFloat16 {
    unsigned short bits;
};

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(static_cast<unsigned int>(x.bits) << 16); }

__device__ inline float widen(Half x) {
#ifdef FASTCONV_EMULATED
    return static_cast<float>(emulation_bits<_Float16>(x.bits));
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
#endif
}

// Rounds to nearest, ties to even.
template <class T>
__device__ T narrow(Accumulator<T> x);

template <>
__device__ inline float narrow<float>(float x) {
    return x;
}

template <>
__device__ inline double narrow<double>(double x) {
    return x;
}

template <>
__device__ inline Half narrow<Half>(float x) {
#ifdef FASTCONV_EMULATED
    return {emulation_bits<unsigned short>(static_cast<_Float16>(x))};
#else
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
#endif
}

template <>
__device__ inline BFloat16 narrow<BFloat16>(float x) {
#ifdef FASTCONV_EMULATED
    const unsigned int bits = __float_as_uint(x);
    if (x != x) return {static_cast<unsigned short>(bits >> 16 | 0x40)};
    return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
#endif
}

// Neighbours that move in one instruction: the address must be a multiple of the size.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
    T at[count];
};

// Elements of 16 bytes.
template <class T>
constexpr int vector_count = 16 / sizeof(T);

template <int count, class T>
__device__ inline Vector<T, count> load_vector(const T* from) {
    return *reinterpret_cast<const Vector<T, count>*>(from);
}

template <int count, class T>
__device__ inline void store_vector(T* to, const Vector<T, count>& value) {
    *reinterpret_cast<Vector<T, count>*>(to) = value;
}

// Neighbours that may be more than 16 bytes: as many accesses as that takes.
template <int count, class T>
__device__ inline void load_all(T (&to)[count], const T* from) {
    constexpr int piece = count < vector_count<T> ? count : vector_count<T>;
#pragma unroll
    for (int i = 0; i < count; i += piece) {
        const Vector<T, piece> loaded = load_vector<piece>(from + i);
#pragma unroll
        for (int j = 0; j < piece; ++j) to[i + j] = loaded.at[j];
    }
}

template <int count, class T>
__device__ inline void store_all(T* to, const T (&from)[count]) {
    constexpr int piece = count < vector_count<T> ? count : vector_count<T>;
#pragma unroll
    for (int i = 0; i < count; i += piece) {
        Vector<T, piece> stored;
#pragma unroll
        for (int j = 0; j < piece; ++j) stored.at[j] = from[i + j];
        store_vector<piece>(to + i, stored);
    }
}

}  // namespace fastconv
