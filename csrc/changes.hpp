// The one list of changes, which training makes of weights and gradients, element by element: for both backends what
// each takes, when it changes nothing, and its formula in plain scalar code, with the order of its roundings. The
// formulas are the reference that the vector bodies and the GPU's kernels must equal bit for bit.
//
// Everything is computed in R: float32 for float16, bfloat16 and float32 weights, float64 for float64. Products
// and sums are rounded one by one, never fused. A result that is NaN is the quiet NaN with no payload and no
// sign, since processors do not agree on another. Storing to 16 bits rounds once more, to nearest even.
//
// A new change starts here: its name, and what the switches below say of it. The compiler then names every other
// switch that has to know it.
#pragma once

#include <cmath>

#include "convention.hpp"

namespace fused_penalties {

// Each is of buffers with strengths l1 and l2, and takes one number. `decay` and `clip` share a formula, scale.
enum class ChangeKind : uint8_t {
    gradient,         // of the penalty, times `number`, the upstream gradient; added to gradients
    stored_gradient,  // the same in the place of gradients, whatever they hold, as if added to +0
    proximal,         // a proximal step of the length `number`, of the weights
    decay,            // a step of the length `number` down the l2 term's gradient, of the weights
    clip,             // gradients times `number`, which is 1 unless they are too long
};

// What a change computes with: made in float64 from the strengths and the number, then rounded to R by whoever uses it.
struct Factors {
    double x, y;
};

// True if it reads one buffer, the weights, and changes another. Else it changes what it reads.
FUSED_PENALTIES_HD constexpr bool reads_weights(ChangeKind kind) {
    switch (kind) {
        case ChangeKind::gradient:
        case ChangeKind::stored_gradient: return true;
        case ChangeKind::proximal:
        case ChangeKind::decay:
        case ChangeKind::clip: return false;
    }
    return false;
}

// False if it can change nothing in a buffer of these strengths, whatever the number is.
FUSED_PENALTIES_HD constexpr bool concerns(ChangeKind kind, double l1, double l2) {
    switch (kind) {
        case ChangeKind::gradient:
        case ChangeKind::proximal: return l1 != 0 || l2 != 0;
        case ChangeKind::decay: return l2 != 0;
        case ChangeKind::stored_gradient:
        case ChangeKind::clip: return true;
    }
    return true;
}

namespace canon {

// The number for `clip`: what gradients of this L2 norm are multiplied by, to have at most the norm wanted. NaN
// remains.
FUSED_PENALTIES_HD inline double clip_number(double norm, double max_norm) {
    const double number = max_norm / add(norm, 1e-6);
    return number >= 1 ? 1 : number;
}

FUSED_PENALTIES_HD inline Factors factors_of(ChangeKind kind, double l1, double l2, double number) {
    switch (kind) {
        case ChangeKind::gradient:
        case ChangeKind::stored_gradient: return {times(l1, number), times(l2, multiply(2.0, number))};
        // A step or rate of 0 changes nothing, also where a coefficient is too large for its dtype: 0 * inf would be
        // NaN.
        case ChangeKind::proximal:
            if (number == 0) return {0, 1};
            return {multiply(number, l1), add(1.0, times(l2, multiply(2.0, number)))};
        case ChangeKind::decay:
            if (number == 0) return {1, 0};
            return {add(1.0, -multiply(multiply(2.0, number), l2)), 0};
        case ChangeKind::clip: return {number, 0};
    }
    return {0, 0};
}

// True if a factor is this value once it is rounded to what a dtype is computed in.
FUSED_PENALTIES_HD inline bool rounds_to(DType dtype, double factor, double value) {
    return computed_in_double(dtype) ? factor == value : float(factor) == float(value);
}

// True if the penalty has no gradient, whatever the weights are: NaN too.
FUSED_PENALTIES_HD inline bool is_flat(DType dtype, Factors factors) {
    return rounds_to(dtype, factors.x, 0) && rounds_to(dtype, factors.y, 0);
}

// True if every element would stay as it is.
FUSED_PENALTIES_HD inline bool is_idle(ChangeKind kind, DType dtype, Factors factors) {
    switch (kind) {
        case ChangeKind::gradient: return is_flat(dtype, factors);
        case ChangeKind::stored_gradient:
        case ChangeKind::proximal: return false;
        case ChangeKind::decay:
        case ChangeKind::clip: return rounds_to(dtype, factors.x, 1);
    }
    return false;
}

template <class Real>
FUSED_PENALTIES_HD inline Real quiet(Real value) {
    return value == value ? value : Real(NAN);
}

// x·sign(w) for a w that is neither 0 nor NaN, by the bits.
FUSED_PENALTIES_HD inline float times_sign(float x, float w) {
    return float_of_bits(bits_of_float(x) ^ (bits_of_float(w) & 0x80000000u));
}
FUSED_PENALTIES_HD inline double times_sign(double x, double w) { return w < 0 ? -x : x; }

// g + (y·w + x·sign(w)), where sign(±0) is 0. A factor that is zero leaves its term out.
template <class Real>
FUSED_PENALTIES_HD inline Real gradient(Real w, Real g, Real x, Real y) {
    if (y == 0) return quiet(add(g, w == 0 ? Real(0) : w == w ? times_sign(x, w) : w));
    const Real u = multiply(y, w);
    if (x == 0) return quiet(add(g, u));
    const Real both = add(u, times_sign(x, w));
    return quiet(add(g, w == 0 ? u : both));
}

// What the gradient makes of a g that is +0. With two factors of zero that is +0 again, whatever w is; it is never -0.
template <class Real>
FUSED_PENALTIES_HD inline Real stored_gradient(Real w, Real x, Real y) {
    return x == 0 && y == 0 ? Real(0) : gradient(w, Real(0), x, y);
}

// sign(w)·max(|w| - x, 0) / y, where what the maximum cuts off is +0.
template <class Real>
FUSED_PENALTIES_HD inline Real proximal(Real w, Real x, Real y) {
    if (w != w) return quiet(w);
    const Real rest = add(magnitude(w), -x);
    if (!(rest > 0)) return 0;
    return quiet(w < 0 ? -(rest / y) : rest / y);
}

// w·x.
template <class Real>
FUSED_PENALTIES_HD inline Real scale(Real w, Real x) {
    return quiet(multiply(w, x));
}

}  // namespace canon
}  // namespace fused_penalties
