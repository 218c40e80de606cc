// The epilogue of a forward pass: bias, residual and activation on a sum, before it is rounded and stored.
//
// The activations are those of fastconv/epilogue.py, NaN included: it passes through every one of them.

#pragma once

#include "elements.cuh"

namespace fastconv {

enum Activation : int { identity, relu, leaky_relu, relu6, sigmoid, hyperbolic_tangent };

// The accumulator of a sum is float or double; -ftz is off, so small results stay what they are.
template <class A>
__device__ inline A activated(A z, int activation) {
    switch (activation) {
        case relu: return z < A(0) ? A(0) : z;
        case leaky_relu: return z < A(0) ? z * A(0.01) : z;
        case relu6: return z < A(0) ? A(0) : (z > A(6) ? A(6) : z);
        case sigmoid: {
            // exp of a negative number alone: no overflow on either side.
            const A small = exp(z < A(0) ? z : -z);
            return (z < A(0) ? small : A(1)) / (A(1) + small);
        }
        case hyperbolic_tangent: return tanh(z);
        default: return z;
    }
}

}  // namespace fastconv
