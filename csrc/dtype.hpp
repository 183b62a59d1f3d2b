// The one table of element types: what each is called, how it is stored, read and written, what it is computed in, and
// how the libraries that hold such elements name it. Nothing else may know how many there are.
//
// A new element type starts here: a line in the list and a row of the table. The compiler then names every place that
// has to know more about it: the bodies of each instruction set, the warp of the GPU, the tests' values.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define FUSED_PENALTIES_HD __host__ __device__
#define FUSED_PENALTIES_HD_INLINE __host__ __device__ __forceinline__
#else
#define FUSED_PENALTIES_HD
#define FUSED_PENALTIES_HD_INLINE inline
#endif

// The list. Numbers are given in its order, which is also that of tests/oracle.py.
#define FUSED_PENALTIES_DTYPES(LINE) \
    LINE(float16, Float16)           \
    LINE(bfloat16, BFloat16)         \
    LINE(float32, Float32)           \
    LINE(float64, Float64)

namespace fused_penalties {

#define FUSED_PENALTIES_LINE(name, Type) name,
enum class DType : uint8_t { FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE) };
#undef FUSED_PENALTIES_LINE

#define FUSED_PENALTIES_LINE(name, Type) +1
constexpr int kDTypes = FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE);
#undef FUSED_PENALTIES_LINE

namespace canon {

// ---- conversions between floats and what has fewer bits

FUSED_PENALTIES_HD inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

FUSED_PENALTIES_HD inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Exact, and by integers alone: subnormal halves must survive whatever the rounding mode does to them. A GPU has
// no such mode, and an instruction for it.
FUSED_PENALTIES_HD inline float float_of_half(uint16_t half) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(half));
#else
    const uint32_t sign = uint32_t(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0x1f) return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        if (mantissa == 0) return float_of_bits(sign);
        exponent = 1;
        while (!(mantissa & 0x400u)) {
            mantissa <<= 1;
            --exponent;  // wraps below zero; the bias added next brings it back
        }
        mantissa &= 0x3ffu;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

FUSED_PENALTIES_HD inline float float_of_bfloat(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

// Both round to nearest even a value whose NaN is the quiet one of changes.hpp. Static, because the files compiled for
// one instruction set use them and must not export them.
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

// ---- the table
//
// Element         how an element is stored
// Real            what a lane of the sums is added up in
// Compute         what gradients and changes are computed in
// exact_squares   whether the square of any element is exact in Real: then it may be fused with its sum
// dlpack_code     DLPack's number for the kind, to which the bits of an element belong
// numpy_number    NumPy's type number; -1 for a type of another package, whose number is given at run time
// read, write     from an element, and to one

struct Float16 {
    static constexpr DType dtype = DType::float16;
    using Element = uint16_t;
    using Real = float;
    using Compute = float;
    static constexpr bool exact_squares = true;
    static constexpr uint8_t dlpack_code = 2;  // kDLFloat
    static constexpr int numpy_number = 23;    // NPY_HALF
    FUSED_PENALTIES_HD static Real read(Element x) { return float_of_half(x); }
    FUSED_PENALTIES_HD static Element write(Compute x) { return half_of_float(x); }
};

struct BFloat16 {
    static constexpr DType dtype = DType::bfloat16;
    using Element = uint16_t;
    using Real = float;
    using Compute = float;
    static constexpr bool exact_squares = false;  // they may leave float32's range
    static constexpr uint8_t dlpack_code = 4;     // kDLBfloat
    static constexpr int numpy_number = -1;
    FUSED_PENALTIES_HD static Real read(Element x) { return float_of_bfloat(x); }
    FUSED_PENALTIES_HD static Element write(Compute x) { return bfloat_of_float(x); }
};

struct Float32 {
    static constexpr DType dtype = DType::float32;
    using Element = float;
    using Real = double;
    using Compute = float;
    static constexpr bool exact_squares = true;
    static constexpr uint8_t dlpack_code = 2;  // kDLFloat
    static constexpr int numpy_number = 11;    // NPY_FLOAT
    FUSED_PENALTIES_HD static Real read(Element x) { return x; }
    FUSED_PENALTIES_HD static Element write(Compute x) { return x; }
};

struct Float64 {
    static constexpr DType dtype = DType::float64;
    using Element = double;
    using Real = double;
    using Compute = double;
    static constexpr bool exact_squares = false;
    static constexpr uint8_t dlpack_code = 2;  // kDLFloat
    static constexpr int numpy_number = 12;    // NPY_DOUBLE
    FUSED_PENALTIES_HD static Real read(Element x) { return x; }
    FUSED_PENALTIES_HD static Element write(Compute x) { return x; }
};

// No dtype, but bfloat16 under another rule: for blocks whose squares float32 lanes could not hold.
struct WideBFloat16 {
    using Element = uint16_t;
    using Real = double;
    using Compute = float;
    static constexpr bool exact_squares = true;
    FUSED_PENALTIES_HD static Real read(Element x) { return float_of_bfloat(x); }
};

template <class Type>
using Compute = typename Type::Compute;

// Stored in fewer bits than it is computed in: then gradients may be float32 as well.
template <class Type>
constexpr bool is_narrow = sizeof(typename Type::Element) < sizeof(Compute<Type>);

#define FUSED_PENALTIES_LINE(name, Type)                                              \
    static_assert(Type::dtype == DType::name, "a row of the table is its line's");    \
    static_assert(!is_narrow<Type> || std::is_same<Compute<Type>, float>::value, ""); \
    static_assert(sizeof(Compute<Type>) <= sizeof(Type::Real), "");
FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE)
#undef FUSED_PENALTIES_LINE

}  // namespace canon

// ---- rows that are found at run time

// Calls visit(Type{}) for the row of a dtype.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // what it is given may be for the device alone
#endif
template <class Visit>
FUSED_PENALTIES_HD_INLINE constexpr void with_type(DType dtype, const Visit& visit) {
    switch (dtype) {
#define FUSED_PENALTIES_LINE(name, Type) \
    case DType::name: return visit(canon::Type{});
        FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE)
#undef FUSED_PENALTIES_LINE
    }
}

// Calls visit(Type{}) for every row.
template <class Visit>
constexpr void each_type(const Visit& visit) {
    for (int i = 0; i < kDTypes; ++i) with_type(DType(i), visit);
}

constexpr const char* name_of(DType dtype) {
#define FUSED_PENALTIES_LINE(name, Type) #name,
    constexpr const char* kNames[] = {FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE)};
#undef FUSED_PENALTIES_LINE
    return kNames[int(dtype)];
}

FUSED_PENALTIES_HD constexpr bool is_narrow(DType dtype) {
    bool narrow = false;
    with_type(dtype, [&](auto type) { narrow = canon::is_narrow<decltype(type)>; });
    return narrow;
}

// The two that are asked in every block are comparisons, which a processor foresees: of a switch a compiler makes an
// array, which has to be read. The rows prove them right.

// In bytes.
FUSED_PENALTIES_HD constexpr int itemsize(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Else in float32.
FUSED_PENALTIES_HD constexpr bool computed_in_double(DType dtype) { return dtype == DType::float64; }

#define FUSED_PENALTIES_LINE(name, Type)                                                                   \
    static_assert(itemsize(DType::name) == sizeof(canon::Type::Element), "itemsize has to know this row"); \
    static_assert(computed_in_double(DType::name) == std::is_same<canon::Type::Compute, double>::value,    \
                  "computed_in_double has to know this row");
FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_LINE)
#undef FUSED_PENALTIES_LINE

}  // namespace fused_penalties
