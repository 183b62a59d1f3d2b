// From sums to penalties: which number is rounded, to what, and when. TensorFlow, Keras and the contrib layers disagree
// about the factor 1/2 but agree on the dtype: the coefficient is rounded to the weight's dtype before it multiplies,
// which is why Keras' default L1() of ten ones prints 0.099999994. Every regularizer comes down to one form,
//
//     value = l1 * sum(|w|) + l2 * sum(w**2)
//
// with no factor 1/2 in it (a convention that has one halves its l2), and every value is made like this:
//
// - a coefficient is rounded to the weight's dtype, float32 for 16-bit weights;
// - a coefficient that is zero then means that its term is absent, even beside an infinite sum;
// - products and their sum are float64, each rounded by itself;
// - of several buffers the float64 terms are added exactly and rounded once, so neither the order of the buffers nor a
//   grouping of them changes a bit;
// - the result is rounded once more, to the result dtype: float32 for float16, bfloat16 and float32 weights, float64
//   for float64, and for several buffers float64 if one of them is. What does not fit becomes inf.
//
// What only the host does expects the default floating-point environment.
#pragma once

#include <cmath>
#include <vector>

#include "canon.hpp"
#include "exact.hpp"

namespace fused_penalties {
namespace canon {

// A coefficient that is zero leaves its term out, whatever it is multiplied by.
FUSED_PENALTIES_HD inline double times(double coefficient, double factor) {
    return coefficient != 0 ? multiply(coefficient, factor) : 0;
}

// The float64 penalty of a buffer. The coefficients are rounded already.
FUSED_PENALTIES_HD inline double term(double l1, double l2, double abs, double square) {
    return add(times(l1, abs), times(l2, square));
}

}  // namespace canon

// A number as float32, or as float64 where it is `wide`: how results and coefficients are rounded. Of NaNs, whose signs
// and payloads processors don't agree on, there is one.
inline double rounded(double value, bool wide) {
    if (value != value) return limbs::double_of_bits(limbs::kNaN);
    return wide ? value : double(float(value));
}

// A coefficient as it multiplies weights of this dtype.
inline double rounded_coefficient(double value, DType dtype) { return rounded(value, computed_in_double(dtype)); }

// The sum of float64 terms of either sign, rounded once, whatever their order. A NaN, or infinities of both signs, give
// NaN; else an infinity gives itself; a sum that is too large gives an infinity.
class Total {
public:
    void add(double term) {
        if (std::isfinite(term)) {
            (term < 0 ? minus_ : plus_).add(term);  // which takes its magnitude
        } else {
            not_finite_ += term;
        }
    }

    double value() {
        if (not_finite_ != 0) return rounded(not_finite_, true);
        const int64_t *plus = plus_.canonical_limbs(), *minus = minus_.canonical_limbs();
        int top = kDigits - 1;
        while (top > 0 && plus[top] == minus[top]) --top;
        const bool negative = plus[top] < minus[top];
        int64_t difference[kLimbs];
        for (int k = 0; k < kLimbs; ++k) difference[k] = negative ? minus[k] - plus[k] : plus[k] - minus[k];
        Exact exact;
        exact.add_limbs(difference);
        return negative ? -exact.value() : exact.value();
    }

private:
    Exact plus_, minus_;
    double not_finite_ = 0;
};

inline double total_of(const std::vector<double>& terms) {
    Total total;
    for (double term : terms) total.add(term);
    return total.value();
}

}  // namespace fused_penalties
