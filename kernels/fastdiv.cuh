// Division by a divisor that is known only at run time but stays the same: a multiplication and two shifts.
//
// A kernel that finds its place in a tensor divides by the same few sizes again and again, and a GPU has no
// instruction for that. T. Granlund and P. L. Montgomery, "Division by invariant integers using multiplication"
// (PLDI 1994), figure 4.1: with W bits and l = ceil(log2(divisor)),
//
//     multiplier = floor(2^W * (2^l - divisor) / divisor) + 1
//     t          = high word of multiplier * n
//     n / divisor = (t + ((n - t) >> min(l, 1))) >> max(l - 1, 0)
//
// for every n of W bits and every divisor from 1. Compiles as CUDA C++ (NVRTC: nothing is included) and as C++17.

#pragma once

#ifdef __CUDACC__
#define FASTCONV_HOST_DEVICE __host__ __device__
#else
#define FASTCONV_HOST_DEVICE
#endif

namespace fastconv {

template <class Unsigned>
struct Divided {
    Unsigned quotient;
    Unsigned remainder;
};

// The high word of a product.
FASTCONV_HOST_DEVICE inline unsigned int multiply_high(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}

FASTCONV_HOST_DEVICE inline unsigned long long multiply_high(unsigned long long a, unsigned long long b) {
#ifdef __CUDA_ARCH__
    return __umul64hi(a, b);
#else
    const unsigned long long low = 0xffffffffu;
    const unsigned long long a0 = a & low, a1 = a >> 32, b0 = b & low, b1 = b >> 32;
    const unsigned long long middle = a1 * b0 + ((a0 * b0) >> 32);
    return a1 * b1 + (middle >> 32) + ((a0 * b1 + (middle & low)) >> 32);
#endif
}

// A divisor, prepared: `unsigned int` for indices below 2^32, `unsigned long long` beyond.
//
// A kernel takes it as an argument by value. Its layout is four words of `Unsigned` in the order below, which a host
// in any language fills by the formulas above, or by this constructor.
template <class Unsigned>
struct FastDiv {
    Unsigned divisor;
    Unsigned multiplier;
    Unsigned shift1;
    Unsigned shift2;

    FastDiv() = default;

    // `d` must not be zero.
    FASTCONV_HOST_DEVICE explicit constexpr FastDiv(Unsigned d) : divisor(d), multiplier(0), shift1(0), shift2(0) {
        constexpr unsigned int bits = 8 * sizeof(Unsigned);
        unsigned int l = 0;
        while (l < bits && (static_cast<Unsigned>(1) << l) < d) ++l;
        // Long division of 2^W * (2^l - d) by d, a bit of the quotient at a time: no type of 2 W bits is needed.
        Unsigned remainder = (l < bits ? static_cast<Unsigned>(1) << l : 0) - d;
        for (unsigned int bit = 0; bit < bits; ++bit) {
            const bool carry = remainder >> (bits - 1) != 0;
            remainder <<= 1;
            multiplier <<= 1;
            if (carry || remainder >= d) {
                remainder -= d;
                multiplier |= 1;
            }
        }
        ++multiplier;
        shift1 = l < 1 ? l : 1;
        shift2 = l < 1 ? 0 : l - 1;
    }

    FASTCONV_HOST_DEVICE Unsigned divide(Unsigned n) const {
        const Unsigned t = multiply_high(multiplier, n);
        return (t + ((n - t) >> shift1)) >> shift2;
    }

    // Quotient and remainder: `const auto [row, column] = width.divmod(index);`
    FASTCONV_HOST_DEVICE Divided<Unsigned> divmod(Unsigned n) const {
        const Unsigned quotient = divide(n);
        return {quotient, n - quotient * divisor};
    }
};

}  // namespace fastconv
