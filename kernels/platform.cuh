// How a kernel is declared and gets its shared memory. tests/cuda_emulation/emulation.h has the same names for g++.
//
//     struct CopyParameters { const float* x; float* y; long long count; };
//
//     KERNEL(copy, CopyParameters, 256) {        // at most 256 threads a block; further __launch_bounds__ may follow
//         SHARED_ARRAY(float, tile, 256);        // of a size known at compile time
//         DYNAMIC_SHARED(float, buffer);         // of the size the launch says; one a kernel
//         ... p.x, p.y, p.count ...
//     }
//
// A kernel has one parameter: a struct that begins with its pointers. Nothing is included that NVRTC does not have.

#pragma once

#ifndef FASTCONV_EMULATED

#define KERNEL(name, Parameters, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Parameters p)

#define SHARED_ARRAY(T, name, count)                     \
    __shared__ __align__(16) unsigned char name##_bytes[sizeof(T) * (count)]; \
    T* const name = reinterpret_cast<T*>(name##_bytes)

#define DYNAMIC_SHARED(T, name)                        \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
    T* const name = reinterpret_cast<T*>(dynamic_shared_bytes)

#endif

namespace fastconv {

template <bool condition, class A, class B>
struct Conditional {
    using type = A;
};
template <class A, class B>
struct Conditional<false, A, B> {
    using type = B;
};

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace fastconv
