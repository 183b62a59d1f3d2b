// What training does to a weight or a gradient, element by element, in plain scalar code: the reference for the
// vector bodies, and the formulas with the order of their roundings.
//
// Everything is computed in R: float32 for float16, bfloat16 and float32 weights, float64 for float64. Products
// and sums are rounded one by one, never fused. A result that is NaN is the quiet NaN with no payload and no
// sign, since processors do not agree on another. Storing to 16 bits rounds once more, to nearest even.
//
// A change has two factors, computed in float64 and then rounded to R by whoever uses them:
//   gradient  x = upstream·l1, y = 2·upstream·l2   (one that is zero leaves its term out, two the gradient)
//   proximal  x = step·l1, y = 1 + 2·step·l2
//   scale     x, which w is multiplied by          (1 leaves w as it is); decay's is 1 - 2·rate·l2
#pragma once

#include <cmath>

#include "canon.hpp"

namespace fused_penalties {

// The two numbers that the change of a buffer needs.
struct Factors {
    double x, y;
};

namespace canon {

// A coefficient that is zero leaves its term out, whatever it is multiplied by.
FUSED_PENALTIES_HD inline double times(double coefficient, double factor) {
    return coefficient != 0 ? multiply(coefficient, factor) : 0;
}

// The float64 penalty of a buffer.
FUSED_PENALTIES_HD inline double term(double l1, double l2, double abs, double square) {
    return add(times(l1, abs), times(l2, square));
}

FUSED_PENALTIES_HD inline Factors gradient_factors(double l1, double l2, double upstream) {
    return {times(l1, upstream), times(l2, multiply(2.0, upstream))};
}
FUSED_PENALTIES_HD inline Factors proximal_factors(double l1, double l2, double step) {
    if (step == 0) return {0, 1};  // also where a coefficient is too large for its dtype: 0 * inf would be NaN
    return {multiply(step, l1), add(1.0, times(l2, multiply(2.0, step)))};
}
FUSED_PENALTIES_HD inline Factors decay_factors(double l2, double rate) {
    if (rate == 0) return {1, 0};  // as above
    return {add(1.0, -multiply(multiply(2.0, rate), l2)), 0};
}

// The type in which an element type is computed.
template <class Type>
using Compute = typename std::conditional<std::is_same<Type, Float64>::value, double, float>::type;

template <class Real>
FUSED_PENALTIES_HD inline Real quiet(Real value) {
    return value == value ? value : Real(NAN);
}

FUSED_PENALTIES_HD inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// x·sign(w) for a w that is neither 0 nor NaN, by the bits.
FUSED_PENALTIES_HD inline float times_sign(float x, float w) {
    return float_of_bits(bits_of_float(x) ^ (bits_of_float(w) & 0x80000000u));
}
FUSED_PENALTIES_HD inline double times_sign(double x, double w) { return w < 0 ? -x : x; }

// g + (y·w + x·sign(w)), where sign(±0) is 0.
template <class Real>
FUSED_PENALTIES_HD inline Real gradient(Real w, Real g, Real x, Real y) {
    if (y == 0) return quiet(add(g, w == 0 ? Real(0) : w == w ? times_sign(x, w) : w));
    const Real u = multiply(y, w);
    if (x == 0) return quiet(add(g, u));
    const Real both = add(u, times_sign(x, w));
    return quiet(add(g, w == 0 ? u : both));
}

// sign(w)·max(|w| - x, 0) / y, where what the maximum cuts off is +0.
template <class Real>
FUSED_PENALTIES_HD inline Real proximal(Real w, Real x, Real y) {
    if (w != w) return quiet(w);
    const Real rest = add(magnitude(w), -x);
    if (!(rest > 0)) return 0;
    return quiet(w < 0 ? -(rest / y) : rest / y);
}

template <class Real>
FUSED_PENALTIES_HD inline Real scale(Real w, Real x) {
    return quiet(multiply(w, x));
}

// Both take a value that `quiet` has seen. Static, as needs_wide_lanes is.
static FUSED_PENALTIES_HD inline uint16_t bfloat_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static FUSED_PENALTIES_HD inline uint16_t half_of_float(float value) {
#if defined(__CUDA_ARCH__)
    return value == value ? __half_as_ushort(__float2half_rn(value)) : 0x7e00;
#else
    const uint32_t bits = bits_of_float(value);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return sign | 0x7e00;
    if (rest >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
    const int exponent = int(rest >> 23);
    if (exponent < 102) return sign;  // below half of the smallest subnormal
    // The mantissa with its leading one, and how many of its bits a half has no room for.
    const uint32_t mantissa = (rest & 0x7fffff) | 0x800000;
    const int shift = exponent < 113 ? 126 - exponent : 13;
    const uint32_t kept = mantissa >> shift, lost = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
    const uint32_t rounded = kept + (lost > tie || (lost == tie && (kept & 1)));
    // The leading one, or the carry into its place, adds one to the exponent.
    const uint32_t biased = exponent < 113 ? 0 : uint32_t(exponent - 113) << 10;
    return sign | uint16_t(biased + rounded);
#endif
}

// How an element type is written.
FUSED_PENALTIES_HD inline void write(Float16, uint16_t* p, float value) {
    const uint16_t bits = half_of_float(value);
    memcpy(p, &bits, sizeof bits);
}
FUSED_PENALTIES_HD inline void write(BFloat16, uint16_t* p, float value) {
    const uint16_t bits = bfloat_of_float(value);
    memcpy(p, &bits, sizeof bits);
}
FUSED_PENALTIES_HD inline void write(Float32, float* p, float value) { memcpy(p, &value, sizeof value); }
FUSED_PENALTIES_HD inline void write(Float64, double* p, double value) { memcpy(p, &value, sizeof value); }

}  // namespace canon
}  // namespace fused_penalties
