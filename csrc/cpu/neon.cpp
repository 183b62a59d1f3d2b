// NEON, which every 64-bit Arm processor has.
#include <arm_neon.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using DoubleVector = float64x2_t;
using FloatVector = float32x4_t;
using WordVector = uint16x8_t;
constexpr int kDoubles = 2;
constexpr int kGroups = 2;  // of eight sums each: there are 32 registers

inline DoubleVector zero(DoubleVector) { return vdupq_n_f64(0); }
inline FloatVector zero(FloatVector) { return vdupq_n_f32(0); }
inline WordVector zero(WordVector) { return vdupq_n_u16(0); }

inline DoubleVector load_doubles(const double* p) { return vld1q_f64(p); }
inline WordVector load_words(const uint16_t* p) { return vld1q_u16(p); }
inline DoubleVector widen(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
inline DoubleVector widen_low(FloatVector x) { return vcvt_f64_f32(vget_low_f32(x)); }
inline DoubleVector widen_high(FloatVector x) { return vcvt_high_f64_f32(x); }
inline FloatVector widen_halves(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline FloatVector even_floats(WordVector w) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(w), 16));
}
inline FloatVector odd_floats(WordVector w) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(w), vdupq_n_u32(0xffff0000u)));
}

inline DoubleVector magnitude(DoubleVector x) { return vabsq_f64(x); }
inline FloatVector magnitude(FloatVector x) { return vabsq_f32(x); }
inline WordVector magnitude(WordVector w) { return vandq_u16(w, vdupq_n_u16(0x7fff)); }

// Bits.
inline WordVector repeated(uint64_t bits) { return vreinterpretq_u16_u64(vdupq_n_u64(bits)); }
inline WordVector both(WordVector x, WordVector y) { return vandq_u16(x, y); }
inline WordVector maximum16(WordVector x, WordVector y) { return vmaxq_u16(x, y); }
inline WordVector maximum32(WordVector x, WordVector y) {
    return vreinterpretq_u16_u32(vmaxq_u32(vreinterpretq_u32_u16(x), vreinterpretq_u32_u16(y)));
}
inline WordVector words(DoubleVector x) { return vreinterpretq_u16_f64(x); }
inline WordVector maximum64(WordVector x, WordVector y) {
    const uint64x2_t more = vcgtq_u64(vreinterpretq_u64_u16(y), vreinterpretq_u64_u16(x));
    return vbslq_u16(vreinterpretq_u16_u64(more), y, x);
}

// The magnitudes of floats and of halves, widened.
inline DoubleVector widen_magnitude(const float* p) { return vcvt_f64_f32(vabs_f32(vld1_f32(p))); }
inline FloatVector widen_half_magnitudes(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vand_u16(vld1_u16(p), vdup_n_u16(0x7fff))));
}

inline DoubleVector add(DoubleVector x, DoubleVector y) { return vaddq_f64(x, y); }
inline FloatVector add(FloatVector x, FloatVector y) { return vaddq_f32(x, y); }
// x + y by another unit than `add`, where that helps: not here.
inline DoubleVector add_elsewhere(DoubleVector x, DoubleVector y) { return add(x, y); }
inline FloatVector add_elsewhere(FloatVector x, FloatVector y) { return add(x, y); }
inline DoubleVector multiply(DoubleVector x, DoubleVector y) { return vmulq_f64(x, y); }
inline FloatVector multiply(FloatVector x, FloatVector y) { return vmulq_f32(x, y); }
inline DoubleVector multiply_add(DoubleVector x, DoubleVector y, DoubleVector z) { return vfmaq_f64(z, x, y); }
inline FloatVector multiply_add(FloatVector x, FloatVector y, FloatVector z) { return vfmaq_f32(z, x, y); }

inline double fold(DoubleVector x) { return vgetq_lane_f64(x, 0) + vgetq_lane_f64(x, 1); }

inline FloatVector load_floats(const float* p) { return vld1q_f32(p); }
inline void store_floats(float* p, FloatVector x) { vst1q_f32(p, x); }
inline void store_doubles(double* p, DoubleVector x) { vst1q_f64(p, x); }
inline void store_halves(uint16_t* p, FloatVector x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
inline FloatVector widen_bfloats(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
// To nearest even, by the carry of an integer addition; not for NaNs with low bits.
inline void store_bfloats(uint16_t* p, FloatVector x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16));
}
inline FloatVector broadcast(FloatVector, double x) { return vdupq_n_f32(float(x)); }
inline DoubleVector broadcast(DoubleVector, double x) { return vdupq_n_f64(x); }
inline FloatVector bits_and(FloatVector x, FloatVector y) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(y)));
}
inline FloatVector bits_xor(FloatVector x, FloatVector y) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(y)));
}
inline FloatVector subtract(FloatVector x, FloatVector y) { return vsubq_f32(x, y); }
inline FloatVector divide(FloatVector x, FloatVector y) { return vdivq_f32(x, y); }
inline FloatVector is_not_zero(FloatVector x) {
    return vreinterpretq_f32_u32(veorq_u32(vceqq_f32(x, zero(x)), vdupq_n_u32(uint32_t(-1))));
}
inline FloatVector is_nan(FloatVector x) {
    return vreinterpretq_f32_u32(veorq_u32(vceqq_f32(x, x), vdupq_n_u32(uint32_t(-1))));
}
inline FloatVector is_positive(FloatVector x) { return vreinterpretq_f32_u32(vcgtq_f32(x, zero(x))); }
inline DoubleVector bits_and(DoubleVector x, DoubleVector y) {
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x), vreinterpretq_u64_f64(y)));
}
inline DoubleVector bits_xor(DoubleVector x, DoubleVector y) {
    return vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(x), vreinterpretq_u64_f64(y)));
}
inline DoubleVector subtract(DoubleVector x, DoubleVector y) { return vsubq_f64(x, y); }
inline DoubleVector divide(DoubleVector x, DoubleVector y) { return vdivq_f64(x, y); }
inline DoubleVector is_not_zero(DoubleVector x) {
    return vreinterpretq_f64_u64(veorq_u64(vceqq_f64(x, zero(x)), vdupq_n_u64(uint64_t(-1))));
}
inline DoubleVector is_nan(DoubleVector x) {
    return vreinterpretq_f64_u64(veorq_u64(vceqq_f64(x, x), vdupq_n_u64(uint64_t(-1))));
}
inline DoubleVector is_positive(DoubleVector x) { return vreinterpretq_f64_u64(vcgtq_f64(x, zero(x))); }

inline FloatVector select(FloatVector mask, FloatVector x, FloatVector y) {
    return vbslq_f32(vreinterpretq_u32_f32(mask), x, y);
}
inline DoubleVector select(DoubleVector mask, DoubleVector x, DoubleVector y) {
    return vbslq_f64(vreinterpretq_u64_f64(mask), x, y);
}
#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kNeon = {"neon", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
