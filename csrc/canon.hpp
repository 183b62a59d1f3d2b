// Canon v2: the summation tree that fixes every bit of the result, in plain scalar code. CANON.md has it in words.
//
// This is the reference that all vector bodies and GPU kernels must equal bit for bit. It is written
// once for host and device, favours clearness over speed, and is also an instruction set of its own
// ("scalar") on processors that have no vector body.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.hpp"

#if FLT_EVAL_METHOD != 0
#error "the contract needs float and double arithmetic that rounds to its own type (x87 does not)"
#endif
#if defined(__FAST_MATH__)
#error "fast-math reorders sums and would break the promise of equal bits; build without it"
#endif

namespace fused_penalties {

// A block is 4 strips one after the other, a strip 16 rows one after the other.
constexpr int kStrips = 4;
constexpr int kRows = 16;
constexpr int kRowBytes = 128;
constexpr int kStripBytes = kRows * kRowBytes;
constexpr int kBlockBytes = kStrips * kStripBytes;

// One lane's accumulators, a of |x| and s of x*x, in the lane's own precision.
template <class Real>
struct Lane {
    Real a, s;
};

// Two doubles side by side and nothing else: kernels write an array of these.
struct BlockSums {
    double abs, square;
};

namespace canon {

// |x| by its bits, so that a NaN and -0 need no thought.
FUSED_PENALTIES_HD inline float magnitude(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return float_of_bits(bits & 0x7fffffffu);
}

FUSED_PENALTIES_HD inline double magnitude(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~(uint64_t(1) << 63);
    memcpy(&x, &bits, sizeof x);
    return x;
}

// On the GPU a product and a sum would be fused unless told otherwise; on the host the build says
// -ffp-contract=off.
#if defined(__CUDA_ARCH__)
__device__ inline float multiply(float x, float y) { return __fmul_rn(x, y); }
__device__ inline double multiply(double x, double y) { return __dmul_rn(x, y); }
__device__ inline float add(float x, float y) { return __fadd_rn(x, y); }
__device__ inline double add(double x, double y) { return __dadd_rn(x, y); }
#else
template <class Real>
FUSED_PENALTIES_HD inline Real multiply(Real x, Real y) {
    return x * y;
}
template <class Real>
FUSED_PENALTIES_HD inline Real add(Real x, Real y) {
    return x + y;
}
#endif

// A row has one element of each column. Each column of each strip is a lane: lane = strip * columns + column.
template <class Type>
constexpr int columns = kRowBytes / int(sizeof(typename Type::Element));
template <class Type>
constexpr int strip_elements = kRows * columns<Type>;
template <class Type>
constexpr int lanes = kStrips * columns<Type>;
template <class Type>
constexpr int block_elements = kStrips * strip_elements<Type>;

// The largest magnitudes, 2^-50 and 2^60 as bits, between which a block of bfloat16 does without float64 lanes.
constexpr uint32_t kLeastNarrow = 77u << 7, kLeastTooLarge = 187u << 7;

// True if a bfloat16 block whose largest magnitude bits are m needs float64 lanes. Static, as bfloat_of_float is.
static FUSED_PENALTIES_HD inline bool needs_wide_lanes(unsigned m) {
    return m != 0 && (m < kLeastNarrow || m >= kLeastTooLarge);
}

// Buffers come at any address.
template <class Element>
FUSED_PENALTIES_HD inline Element element_at(const Element* elements, int i) {
    Element element;
    memcpy(&element, reinterpret_cast<const unsigned char*>(elements) + i * sizeof element, sizeof element);
    return element;
}

template <class Type>
FUSED_PENALTIES_HD inline void accumulate(Lane<typename Type::Real>& lane, typename Type::Element element) {
    const auto x = magnitude(Type::read(element));
    lane.a = add(lane.a, x);
    lane.s = add(lane.s, multiply(x, x));
}

// An element's bits. Without the sign they are in the order of the magnitudes, as unsigned integers are: infinity is
// above all numbers, and every NaN above infinity.
template <class Type>
using Bits = std::conditional_t<sizeof(typename Type::Element) == 8, uint64_t,
                                std::conditional_t<sizeof(typename Type::Element) == 4, uint32_t, uint16_t>>;
template <class Type>
constexpr Bits<Type> magnitude_mask = Bits<Type>(~Bits<Type>(0)) >> 1;

// The bits of the largest magnitude of n elements; 0 for none.
template <class Type>
FUSED_PENALTIES_HD inline uint64_t largest(const typename Type::Element* elements, int n) {
    uint64_t most = 0;
    for (int i = 0; i < n; ++i) {
        const uint64_t bits = element_at(reinterpret_cast<const Bits<Type>*>(elements), i) & magnitude_mask<Type>;
        most = bits > most ? bits : most;
    }
    return most;
}

// The same magnitude as the bits of a float64, where those of all dtypes can be compared, with one NaN for all.
template <class Type>
FUSED_PENALTIES_HD inline uint64_t widened_magnitude(uint64_t magnitude) {
    const Bits<Type> bits = Bits<Type>(magnitude);
    typename Type::Element element;
    memcpy(&element, &bits, sizeof element);
    const double value = Type::read(element);
    if (value != value) return uint64_t(0x7ff8) << 48;
    uint64_t wide;
    memcpy(&wide, &value, sizeof wide);
    return wide;
}

// The tree itself, for one block of n elements, 0 < n <= block_elements<Type>.
template <class Type>
FUSED_PENALTIES_HD inline BlockSums tree(const typename Type::Element* elements, int n) {
    constexpr int J = columns<Type>, L = lanes<Type>;
    double a[L], s[L];
    for (int j = 0; j < L; ++j) {
        const int first = j / J * strip_elements<Type> + j % J;
        Lane<typename Type::Real> lane{0, 0};
        for (int row = 0; row < kRows && first + row * J < n; ++row)
            accumulate<Type>(lane, element_at(elements, first + row * J));
        a[j] = lane.a;
        s[j] = lane.s;
    }
    for (int half = L / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) {
            a[j] = add(a[j], a[j + half]);
            s[j] = add(s[j], s[j + half]);
        }
    }
    return {a[0], s[0]};
}

template <class Type>
FUSED_PENALTIES_HD inline BlockSums block_sums(const typename Type::Element* elements, int n) {
    if constexpr (std::is_same<Type, BFloat16>::value)
        if (needs_wide_lanes(unsigned(largest<Type>(elements, n)))) return tree<WideBFloat16>(elements, n);
    return tree<Type>(elements, n);
}

}  // namespace canon

// How many blocks so many elements have; the last may be short. With the length known, no number is divided.
constexpr uint64_t blocks_of(DType dtype, uint64_t count) {
    uint64_t blocks = 0;
    with_type(dtype, [&](auto type) {
        constexpr uint64_t each = canon::block_elements<decltype(type)>;
        blocks = count / each + (count % each != 0);
    });
    return blocks;
}

FUSED_PENALTIES_HD constexpr int block_elements(DType dtype) { return kBlockBytes / itemsize(dtype); }

}  // namespace fused_penalties
