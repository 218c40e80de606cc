// Copies from global to shared memory that do not wait and pass no register: cp.async, of sm_80 and newer.
//
//     copy_async<16>(to, from, valid);   // both addresses multiples of 16; zeros if not valid, and `from` is not read
//     commit_async();                    // what was started since the last commit is one group
//     wait_async<1>();                   // all groups but the newest one have arrived, of this thread's own
//     __syncthreads();                   // and now of every thread's

#pragma once

#include "platform.cuh"

namespace fastconv {

template <int bytes>
__device__ inline void copy_async(void* to, const void* from, bool valid = true) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async moves");
#ifdef FASTCONV_EMULATED
    ::emulation::copy_later(to, from, bytes, valid ? bytes : 0);
#else
    const unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
    const int size = valid ? bytes : 0;
    // 16 bytes bypass the first-level cache.
    if constexpr (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(size) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(size), "n"(bytes)
                     : "memory");
    }
#endif
}

__device__ inline void commit_async() {
#ifdef FASTCONV_EMULATED
    ::emulation::commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int pending>
__device__ inline void wait_async() {
#ifdef FASTCONV_EMULATED
    ::emulation::wait_for_copies(pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace fastconv
