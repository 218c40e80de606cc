// The matrix instructions of a warp: ldmatrix, and mma.sync of sm_80 and newer with sums in float.
//
// Registers are as the PTX manual lays them out. With g = lane / 4 and t = lane % 4, of D (16x8) = A (16xk) * B (kx8) + C:
//
//     c[0], c[1]: row g, columns 2t and 2t + 1          c[2], c[3]: row g + 8
//     k = 16, two halves a register, at columns 2t and 2t + 1 (A) or rows 2t and 2t + 1 (B):
//         a[0]: row g        a[1]: row g + 8        a[2], a[3]: as these, 8 columns further
//         b[0]: column g     b[1]: 8 rows further
//     k = 8, TF32, one number a register, at column t (A) or row t (B):
//         a[0]: row g        a[1]: row g + 8        a[2], a[3]: 4 columns further
//         b[0]: column g     b[1]: 4 rows further

#pragma once

#include "elements.cuh"

namespace fastconv {

struct Tf32 {};

// Four 8x8 matrices of 16-bit elements. Lane i holds the address of row i % 8 of matrix i / 8: 16 bytes, aligned to
// that. Register j of a lane is then the pair at row lane / 4, columns 2 (lane % 4) and one further, of matrix j;
// transposed, the pair at column lane / 4, rows 2 (lane % 4) and one further.
template <bool transposed>
__device__ inline void load_matrices(unsigned int (&registers)[4], const void* row);

// d = a * b + d. `T` is Half, BFloat16 (k = 16) or Tf32 (k = 8, the bits of floats, of which the first 19 count).
template <class T>
__device__ inline void multiply_matrices(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]);

// The bits of a float rounded to TF32.
__device__ inline unsigned int to_tf32(float x);

#ifdef FASTCONV_EMULATED

template <bool transposed>
inline void load_matrices(unsigned int (&registers)[4], const void* row) {
    ::emulation::check_aligned(static_cast<const char*>(row), 16);
    struct Row {
        unsigned short at[8];
    } own;
    std::memcpy(&own, row, sizeof own);
    const ::emulation::Meeting& all = ::emulation::meet(0xffffffffu, own, {"ldmatrix", __FILE__, __LINE__});
    const int lane = ::emulation::lane(), g = lane / 4, t = lane % 4;
    for (int j = 0; j < 4; ++j) {
        unsigned int pair[2];
        for (int i = 0; i < 2; ++i) {
            pair[i] = transposed ? all.from<Row>(8 * j + 2 * t + i).at[g] : all.from<Row>(8 * j + g).at[2 * t + i];
        }
        registers[j] = pair[0] | pair[1] << 16;
    }
}

template <class T>
inline float matrix_element(unsigned int bits, int index) {
    return widen(T{static_cast<unsigned short>(bits >> 16 * index)});
}
template <>
inline float matrix_element<Tf32>(unsigned int bits, int) {
    return __uint_as_float(bits & 0xffffe000u);
}

template <class T>
inline void multiply_matrices(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    struct Operands {
        unsigned int a[4], b[2];
    } own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const ::emulation::Meeting& all = ::emulation::meet(0xffffffffu, own, {"mma.sync", __FILE__, __LINE__});
    constexpr int packed = sizeof(T) == 2 ? 2 : 1;
    const int lane = ::emulation::lane();
    Operands rows[4], columns[2][4];
    for (int t = 0; t < 4; ++t) {
        rows[t] = all.from<Operands>(lane / 4 * 4 + t);
        for (int i = 0; i < 2; ++i) columns[i][t] = all.from<Operands>((lane % 4 * 2 + i) * 4 + t);
    }
    for (int i = 0; i < 4; ++i) {
        float sum = 0;
        for (int half = 0; half < 2; ++half) {
            for (int t = 0; t < 4; ++t) {
                for (int e = 0; e < packed; ++e) {
                    sum += matrix_element<T>(rows[t].a[2 * half + i / 2], e) *
                           matrix_element<T>(columns[i % 2][t].b[half], e);
                }
            }
        }
        d[i] += sum;
    }
}

inline unsigned int to_tf32(float x) {
    const unsigned int bits = __float_as_uint(x);
    return x != x ? bits : (bits + 0x1000u) & 0xffffe000u;
}

#else

template <bool transposed>
__device__ inline void load_matrices(unsigned int (&registers)[4], const void* row) {
    const unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(row));
    if constexpr (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    }
}

#define FASTCONV_MULTIPLY_MATRICES(T, shape_and_types)                                                                \
    template <>                                                                                                       \
    __device__ inline void multiply_matrices<T>(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) { \
        asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                     \
            "{%0, %1, %2, %3};"                                                                                       \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                      \
    }
FASTCONV_MULTIPLY_MATRICES(Half, "m16n8k16.row.col.f32.f16.f16.f32")
FASTCONV_MULTIPLY_MATRICES(BFloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FASTCONV_MULTIPLY_MATRICES(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FASTCONV_MULTIPLY_MATRICES

__device__ inline unsigned int to_tf32(float x) {
    unsigned int bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

#endif

}  // namespace fastconv
