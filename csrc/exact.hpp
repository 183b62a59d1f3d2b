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

class Exact {
public:
    // Adds a value that is not negative: finite, infinite, or NaN.
    FUSED_PENALTIES_HD void add(double value) {
        uint64_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits &= ~(uint64_t(1) << 63);  // the sign of a NaN says nothing
        const uint32_t exponent = uint32_t(bits >> 52);
        uint64_t mantissa = bits & kMantissa;
        if (exponent == 0x7ff) {
            ++limbs_[mantissa ? kDigits : kDigits + 1];
            return;
        }
        uint32_t position = 0;
        if (exponent != 0) {
            mantissa |= kMantissa + 1;
            position = exponent - 1;
        }
        const uint32_t digit = position / 32, shift = position % 32;
        const uint64_t low = mantissa << shift;
        const uint64_t high = shift ? mantissa >> (64 - shift) : 0;
        limbs_[digit] += int64_t(low & kDigitMask);
        limbs_[digit + 1] += int64_t(low >> 32);
        limbs_[digit + 2] += int64_t(high);
        widen(int(digit), int(digit) + 3);
        if (++pending_ >= kPendingLimit) carry();
    }

    // Adds another sum.
    FUSED_PENALTIES_HD void add(const Exact& other) {
        if (pending_ + other.pending_ >= kPendingLimit) carry();
        for (int i = other.first_; i < other.last_; ++i) limbs_[i] += other.limbs_[i];
        limbs_[kDigits] += other.limbs_[kDigits];
        limbs_[kDigits + 1] += other.limbs_[kDigits + 1];
        widen(other.first_, other.last_);
        pending_ += other.pending_ + 1;
    }

    // Adds kLimbs integers, of whatever sign and size, whose carries were never moved.
    FUSED_PENALTIES_HD void add_limbs(const int64_t* limbs) {
        Exact other;
        memcpy(other.limbs_, limbs, sizeof other.limbs_);
        other.widen(0, kDigits);
        other.pending_ = 1;
        other.carry();
        add(other);
    }

    // The one form of each sum: every digit but the last in [0, 2^32).
    FUSED_PENALTIES_HD const int64_t* canonical_limbs() {
        carry();
        return limbs_;
    }

    // The sum rounded once, to nearest, ties to even. NaN before infinity before numbers.
    FUSED_PENALTIES_HD double value() {
        if (limbs_[kDigits]) return double_of_bits(uint64_t(0x7ff8) << 48);
        if (limbs_[kDigits + 1]) return double_of_bits(kInfinity);
        carry();
        int top = last_ - 1;
        while (top >= first_ && limbs_[top] == 0) --top;
        if (top < first_) return 0.0;
        // Only the highest digit may exceed 32 bits, and only past 2^2176, far above every double.
        if (limbs_[top] >> 32) return double_of_bits(kInfinity);

        // The 64 bits from the leading one downwards, and whether anything lies below them.
        int length = 32;  // of the top digit
        while (!(limbs_[top] >> (length - 1))) --length;
        uint64_t head = uint64_t(limbs_[top]) << (64 - length);
        if (top >= 1) head |= uint64_t(limbs_[top - 1]) << (32 - length);
        bool sticky = false;
        if (top >= 2) {
            head |= uint64_t(limbs_[top - 2]) >> length;
            sticky = (uint64_t(limbs_[top - 2]) & ((uint64_t(1) << length) - 1)) != 0;
        }
        for (int i = top - 3; i >= first_ && !sticky; --i) sticky = limbs_[i] != 0;

        // head's leading bit weighs 2^(leading - 1074). Up to bit 52 the sum is an exact double as it stands.
        const int leading = 32 * top + length - 1;
        if (leading <= 52) return double_of_bits(head >> (63 - leading));
        uint64_t bits = (uint64_t(leading - 52) << 52) + (head >> 11);  // the hidden bit adds one to the exponent
        const uint64_t rest = head & 0x7ff;
        const bool up = rest > 0x400 || (rest == 0x400 && (sticky || (bits & 1)));
        bits += up;  // a carry out of the mantissa is the next exponent, which is right
        return double_of_bits(bits < kInfinity ? bits : kInfinity);
    }

private:
    static constexpr uint64_t kMantissa = (uint64_t(1) << 52) - 1;
    static constexpr uint64_t kDigitMask = 0xffffffffu;
    static constexpr uint64_t kInfinity = uint64_t(0x7ff) << 52;
    static constexpr uint32_t kPendingLimit = uint32_t(1) << 30;

    FUSED_PENALTIES_HD static double double_of_bits(uint64_t bits) {
        double value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    FUSED_PENALTIES_HD void widen(int first, int last) {
        if (first < first_) first_ = first;
        if (last > last_) last_ = last;
    }

    FUSED_PENALTIES_HD void carry() {
        if (pending_ == 0) return;
        for (int i = first_; i < kDigits - 1; ++i) {
            const int64_t over = limbs_[i] >> 32;
            if (i >= last_ - 1) {
                if (over == 0) break;
                last_ = i + 2;
            }
            limbs_[i + 1] = int64_t(uint64_t(limbs_[i + 1]) + uint64_t(over));  // given limbs may be anything
            limbs_[i] &= int64_t(kDigitMask);
        }
        pending_ = 0;
    }

    int64_t limbs_[kLimbs] = {};
    // Only the digits in [first_, last_) may be other than zero: the weights of one buffer need three or four.
    int first_ = kDigits;
    int last_ = 0;
    uint32_t pending_ = 0;  // values added since the carries last moved
};

// Both sums of one buffer, or of many.
struct ExactSums {
    Exact abs, square;

    FUSED_PENALTIES_HD void add(const BlockSums& sums) {
        abs.add(sums.abs);
        square.add(sums.square);
    }
    FUSED_PENALTIES_HD void add(const ExactSums& other) {
        abs.add(other.abs);
        square.add(other.square);
    }
};

}  // namespace fused_penalties
