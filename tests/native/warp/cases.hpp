// What the parts of the program share: dice, checks that count cases, and elements of any kind.
#pragma once

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "canon.hpp"

namespace fused_penalties {

inline std::mt19937_64 dice;
inline uint64_t cases = 0;

// Below `n`.
inline uint64_t any(uint64_t n) { return dice() % n; }

inline uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline bool same(double x, double y) { return (x != x && y != y) || bits_of(x) == bits_of(y); }

#define CHECK(condition, ...)           \
    do {                                \
        ++cases;                        \
        if (!(condition)) {             \
            printf("%s: ", #condition); \
            printf(__VA_ARGS__);        \
            printf("\n");               \
            exit(1);                    \
        }                               \
    } while (false)

// How many bits a fraction has.
constexpr int fraction_of(canon::Float16) { return 10; }
constexpr int fraction_of(canon::BFloat16) { return 7; }
constexpr int fraction_of(canon::Float32) { return 23; }
constexpr int fraction_of(canon::Float64) { return 52; }

// Elements with exponents from a narrow or a wide range, with all of them now and then; zeros, NaN and infinities
// among them or not.
template <class Type>
std::vector<typename Type::Element> elements(size_t n) {
    using Element = typename Type::Element;
    constexpr int fraction = fraction_of(Type{}), width = 8 * int(sizeof(Element)),
                  exponents = 1 << (width - 1 - fraction);
    const int lowest = int(any(uint64_t(exponents - 1))),
              span = int(any(3) == 0 ? any(uint64_t(exponents)) : any(6)) + 1;
    const bool zeros = any(4) == 0, special = any(8) == 0, near_one = any(3) == 0;
    std::vector<Element> made(n);
    for (Element& element : made) {
        int exponent = std::min(lowest + int(any(uint64_t(span))), exponents - 2);
        if (near_one) exponent = exponents / 2 - 4 + int(any(6));
        if (special && any(n) == 0) exponent = exponents - 1;
        uint64_t bits = (uint64_t(exponent) << fraction) | (dice() >> (64 - fraction));
        if (exponent == exponents - 1 && any(2)) bits = uint64_t(exponent) << fraction;
        if (zeros && any(2)) bits = 0;
        bits |= any(2) << (width - 1);
        memcpy(&element, &bits, sizeof element);
    }
    return made;
}

inline double any_factor() {
    const double some[] = {0, 0, 1, -1, 0.1, 0.3, -0.7, 1e-42, 1e38, 1e300, 1e-300, NAN, INFINITY};
    return some[any(sizeof some / sizeof *some)];
}

template <class Type>
typename Type::Element written(canon::Compute<Type> value) {
    return Type::write(value);
}

}  // namespace fused_penalties
