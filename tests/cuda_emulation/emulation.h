// CUDA C++ as plain C++: what a kernel sees of the device, for g++.
//
// The threads of a block are fibres of one operating system thread, so they run one at a time, from one rendezvous
// (barrier, shuffle, vote, matrix instruction) to the next, in an order that the launch chooses. Shared memory and
// global memory are heap blocks of exactly the right size, which AddressSanitizer guards. runtime.cpp has the rest.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define FASTCONV_EMULATED 1
#define __device__
#define __host__
#define __restrict__
#define __forceinline__ inline
#define __noinline__

struct uint3 {
    unsigned int x, y, z;
};
using dim3 = uint3;
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned int x, y;
};
struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

// Where in the source a rendezvous stands: threads that meet must stand at the same one.
struct Site {
    const char* what;
    const char* file;
    int line;
};

// What the lanes of a warp brought to a rendezvous. Valid until the lane's next one.
struct Meeting {
    static constexpr std::size_t most = 64;
    unsigned int mask;
    alignas(16) unsigned char brought[32][most];

    template <class T>
    T from(int lane) const {
        T value;
        std::memcpy(&value, brought[lane], sizeof(T));
        return value;
    }
};

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void barrier(Site site);
// Sums what the threads of a block bring to a barrier.
int barrier_sum(Site site, int value);
const Meeting& meet(unsigned int mask, const void* data, std::size_t bytes, Site site);
int lane();
// Memory that the block shares: one piece a key.
void* shared(const void* key, std::size_t bytes);
void* dynamic_shared();
void copy_later(void* to, const void* from, std::size_t bytes, std::size_t valid);
void commit_copies();
void wait_for_copies(unsigned int pending);

template <class T>
const Meeting& meet(unsigned int mask, const T& value, Site site) {
    static_assert(sizeof(T) <= Meeting::most, "too much for a rendezvous");
    return meet(mask, &value, sizeof(T), site);
}

template <class T>
void check_aligned(const T* pointer, std::size_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % bytes) {
        fail("an access of %zu bytes at an address that is not a multiple of it", bytes);
    }
}

struct Registration {
    Registration(const char* name, std::size_t bytes, unsigned int threads, void (*run)(const void*));
};

constexpr unsigned int first_of(unsigned int first, unsigned int = 0) { return first; }

}  // namespace emulation

#define EMULATION_SITE(what) \
    ::emulation::Site { what, file, line }
#define EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_HERE) { ::emulation::barrier(EMULATION_SITE("__syncthreads")); }

inline int __syncthreads_count(int predicate, EMULATION_HERE) {
    return ::emulation::barrier_sum(EMULATION_SITE("__syncthreads_count"), predicate != 0);
}

inline int __syncthreads_or(int predicate, EMULATION_HERE) {
    return ::emulation::barrier_sum(EMULATION_SITE("__syncthreads_or"), predicate != 0) != 0;
}

inline int __syncthreads_and(int predicate, EMULATION_HERE) {
    return ::emulation::barrier_sum(EMULATION_SITE("__syncthreads_and"), predicate == 0) == 0;
}

inline void __syncwarp(unsigned int mask = 0xffffffffu, EMULATION_HERE) {
    ::emulation::meet(mask, 0, EMULATION_SITE("__syncwarp"));
}

// The four shuffles differ in whom a lane asks.
#define EMULATION_SHUFFLE(name, argument, source, outside)                                                     \
    template <class T>                                                                                         \
    T name(unsigned int mask, T value, int argument, int width = 32, EMULATION_HERE) {                         \
        const ::emulation::Meeting& all = ::emulation::meet(mask, value, EMULATION_SITE(#name));               \
        const int lane = ::emulation::lane(), first = lane / width * width, asked = (source);                  \
        if (outside) return value;                                                                             \
        if (!(all.mask >> asked & 1)) ::emulation::fail(#name ": lane %d asks lane %d, which is not in the mask", \
                                                        lane, asked);                                          \
        return all.from<T>(asked);                                                                             \
    }
EMULATION_SHUFFLE(__shfl_sync, source, first + (source & (width - 1)), false)
EMULATION_SHUFFLE(__shfl_up_sync, delta, lane - delta, asked < first)
EMULATION_SHUFFLE(__shfl_down_sync, delta, lane + delta, asked >= first + width)
EMULATION_SHUFFLE(__shfl_xor_sync, bits, lane ^ bits, asked >= first + width)

inline unsigned int __ballot_sync(unsigned int mask, int predicate, EMULATION_HERE) {
    const ::emulation::Meeting& all = ::emulation::meet(mask, predicate, EMULATION_SITE("__ballot_sync"));
    unsigned int votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) votes |= static_cast<unsigned int>(all.from<int>(lane) != 0) << lane;
    }
    return votes;
}

inline int __any_sync(unsigned int mask, int predicate, EMULATION_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned int mask, int predicate, EMULATION_HERE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

inline unsigned int __activemask() { return 0xffffffffu; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// One thread runs at a time, so plain code is atomic. There are none for floating point: sums would depend on order.
#define EMULATION_ATOMIC(name, T, result)   \
    inline T name(T* address, T value) {    \
        const T old = *address;             \
        *address = (result);                \
        return old;                         \
    }
#define EMULATION_ATOMICS(T)                                      \
    EMULATION_ATOMIC(atomicAdd, T, old + value)                   \
    EMULATION_ATOMIC(atomicMax, T, old > value ? old : value)     \
    EMULATION_ATOMIC(atomicMin, T, old < value ? old : value)     \
    EMULATION_ATOMIC(atomicExch, T, value)
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned int)
EMULATION_ATOMICS(unsigned long long)

template <class T>
T atomicCAS(T* address, T expected, T value) {
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

template <class T>
T __ldg(const T* pointer) {
    return *pointer;
}

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned int>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<unsigned long long>(a) * b >> 32);
}

template <class To, class From>
To emulation_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}
inline int __float_as_int(float x) { return emulation_bits<int>(x); }
inline unsigned int __float_as_uint(float x) { return emulation_bits<unsigned int>(x); }
inline float __int_as_float(int x) { return emulation_bits<float>(x); }
inline float __uint_as_float(unsigned int x) { return emulation_bits<float>(x); }

template <class T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
    return a < b ? b : a;
}
using std::abs;
using std::exp;
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::isinf;
using std::isnan;
using std::log;
using std::pow;
using std::sqrt;
using std::tanh;
inline float __fdividef(float a, float b) { return a / b; }

// kernels/platform.cuh says what these are on a device.
#define KERNEL(name, Parameters, ...)                                                                              \
    static void name(const Parameters& p);                                                                         \
    static const ::emulation::Registration name##_registration(                                                    \
        #name, sizeof(Parameters), ::emulation::first_of(__VA_ARGS__),                                             \
        [](const void* parameters) { name(*static_cast<const Parameters*>(parameters)); });                        \
    static void name(const Parameters& p)

#define SHARED_ARRAY(T, name, count)                 \
    static const char name##_key = 0;                \
    T* const name = static_cast<T*>(::emulation::shared(&name##_key, sizeof(T) * (count)))

#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulation::dynamic_shared())
