// The exact accumulator: a sum of non-negative doubles that never rounds until it is asked for a number.
//
// A double is an integer multiple of 2^-1074. The accumulator holds such an integer as 32-bit digits, each in
// an int64, so that 2^31 values fit before a carry must move. Adding is integer addition, so that any order of
// values, of threads and of shards gives the same number.
#pragma once

#include <cstdint>
#include <cstring>

#include "canon.hpp"

namespace fused_penalties {

// Digit k weighs 2^(32k - 1074). The largest double reaches bit 2097; 68 digits leave room for 2^78 of them.
constexpr int kDigits = 68;
// The layout of an accumulator as an array of int64: the digits, the count of NaN values, that of infinities.
constexpr int kLimbs = kDigits + 2;

// An accumulator as an array of kLimbs int64, wherever it lies. [first, last) bounds the digits that may differ
// from zero.
namespace limbs {

constexpr uint64_t kMantissa = (uint64_t(1) << 52) - 1;
constexpr uint64_t kDigitMask = 0xffffffffu;
constexpr uint64_t kInfinity = uint64_t(0x7ff) << 52;
constexpr uint64_t kNaN = uint64_t(0x7ff8) << 48;

FUSED_PENALTIES_HD inline double double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Adds a value that is not negative: finite, infinite, or NaN. Returns the lowest of the three digits that it may
// have touched, or kDigits.
FUSED_PENALTIES_HD inline int deposit(int64_t* limbs, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= ~(uint64_t(1) << 63);  // the sign of a NaN says nothing
    const uint32_t exponent = uint32_t(bits >> 52);
    uint64_t mantissa = bits & kMantissa;
    if (exponent == 0x7ff) {
        ++limbs[mantissa ? kDigits : kDigits + 1];
        return kDigits;
    }
    uint32_t position = 0;
    if (exponent != 0) {
        mantissa |= kMantissa + 1;
        position = exponent - 1;
    }
    const uint32_t digit = position / 32, shift = position % 32;
    const uint64_t low = mantissa << shift;
    const uint64_t high = shift ? mantissa >> (64 - shift) : 0;
    limbs[digit] += int64_t(low & kDigitMask);
    limbs[digit + 1] += int64_t(low >> 32);
    limbs[digit + 2] += int64_t(high);
    return int(digit);
}

// Moves the carries, so that every digit but the last is in [0, 2^32). Returns the new `last`.
FUSED_PENALTIES_HD inline int carry(int64_t* limbs, int first, int last) {
    for (int i = first; i < kDigits - 1; ++i) {
        const int64_t over = limbs[i] >> 32;
        if (i >= last - 1) {
            if (over == 0) break;
            last = i + 2;
        }
        limbs[i + 1] = int64_t(uint64_t(limbs[i + 1]) + uint64_t(over));  // given limbs may be anything
        limbs[i] &= int64_t(kDigitMask);
    }
    return last;
}

// The sum rounded once, to nearest, ties to even, after its carries moved. NaN before infinity before numbers.
FUSED_PENALTIES_HD inline double rounded(const int64_t* limbs, int first, int last) {
    if (limbs[kDigits]) return double_of_bits(kNaN);
    if (limbs[kDigits + 1]) return double_of_bits(kInfinity);
    int top = last - 1;
    while (top >= first && limbs[top] == 0) --top;
    if (top < first) return 0.0;
    // Only the highest digit may exceed 32 bits, and only past 2^2176, far above every double.
    if (limbs[top] >> 32) return double_of_bits(kInfinity);

    // The 64 bits from the leading one downwards, and whether anything lies below them.
    int length = 32;  // of the top digit
    while (!(limbs[top] >> (length - 1))) --length;
    uint64_t head = uint64_t(limbs[top]) << (64 - length);
    if (top >= 1) head |= uint64_t(limbs[top - 1]) << (32 - length);
    bool sticky = false;
    if (top >= 2) {
        head |= uint64_t(limbs[top - 2]) >> length;
        sticky = (uint64_t(limbs[top - 2]) & ((uint64_t(1) << length) - 1)) != 0;
    }
    for (int i = top - 3; i >= first && !sticky; --i) sticky = limbs[i] != 0;

    // head's leading bit weighs 2^(leading - 1074). Up to bit 52 the sum is an exact double as it stands.
    const int leading = 32 * top + length - 1;
    if (leading <= 52) return double_of_bits(head >> (63 - leading));
    uint64_t bits = (uint64_t(leading - 52) << 52) + (head >> 11);  // the hidden bit adds one to the exponent
    const uint64_t rest = head & 0x7ff;
    const bool up = rest > 0x400 || (rest == 0x400 && (sticky || (bits & 1)));
    bits += up;  // a carry out of the mantissa is the next exponent, which is right
    return double_of_bits(bits < kInfinity ? bits : kInfinity);
}

}  // namespace limbs

class Exact {
public:
    // Adds a value that is not negative: finite, infinite, or NaN.
    void add(double value) {
        const int digit = limbs::deposit(limbs_, value);
        if (digit == kDigits) return;
        widen(digit, digit + 3);
        if (++pending_ >= kPendingLimit) carry();
    }

    // Adds another sum.
    void add(const Exact& other) {
        if (pending_ + other.pending_ >= kPendingLimit) carry();
        for (int i = other.first_; i < other.last_; ++i)
            limbs_[i] = int64_t(uint64_t(limbs_[i]) + uint64_t(other.limbs_[i]));  // given limbs may be anything
        for (int i = kDigits; i < kLimbs; ++i) limbs_[i] = int64_t(uint64_t(limbs_[i]) + uint64_t(other.limbs_[i]));
        widen(other.first_, other.last_);
        pending_ += other.pending_ + 1;
    }

    // Adds kLimbs integers, of whatever sign and size, whose carries were never moved.
    void add_limbs(const int64_t* limbs) {
        Exact other;
        memcpy(other.limbs_, limbs, sizeof other.limbs_);
        other.widen(0, kDigits);
        other.pending_ = 1;
        other.carry();
        add(other);
    }

    // The one form of each sum: every digit but the last in [0, 2^32).
    const int64_t* canonical_limbs() {
        carry();
        return limbs_;
    }

    // The sum rounded once, to nearest, ties to even. NaN before infinity before numbers.
    double value() {
        carry();
        return limbs::rounded(limbs_, first_, last_);
    }

private:
    static constexpr uint32_t kPendingLimit = uint32_t(1) << 30;

    void widen(int first, int last) {
        if (first < first_) first_ = first;
        if (last > last_) last_ = last;
    }

    void carry() {
        if (pending_ == 0) return;
        last_ = limbs::carry(limbs_, first_, last_);
        pending_ = 0;
    }

    int64_t limbs_[kLimbs] = {};
    // Only the digits in [first_, last_) may be other than zero: the weights of one buffer need three or four.
    int first_ = kDigits;
    int last_ = 0;
    uint32_t pending_ = 0;  // values added since the carries last moved
};

// Both sums of one buffer, or of many, and the largest magnitude as the bits of a float64, where it is asked for.
struct ExactSums {
    Exact abs, square;
    uint64_t largest = 0;

    void add(const BlockSums& sums) {
        abs.add(sums.abs);
        square.add(sums.square);
    }
    void add_largest(uint64_t bits) { largest = bits > largest ? bits : largest; }
    void add(const ExactSums& other) {
        abs.add(other.abs);
        square.add(other.square);
        add_largest(other.largest);
    }
};

}  // namespace fused_penalties
