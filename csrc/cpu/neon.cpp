// NEON, which every 64-bit Arm processor has.
#include <arm_neon.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using Doubles = float64x2_t;
using Floats = float32x4_t;
using Words = uint16x8_t;
constexpr int kDoubles = 2;
constexpr int kGroups = 2;  // of eight sums each: there are 32 registers

inline Doubles zero(Doubles) { return vdupq_n_f64(0); }
inline Floats zero(Floats) { return vdupq_n_f32(0); }
inline Words zero(Words) { return vdupq_n_u16(0); }

inline Doubles load_doubles(const double* p) { return vld1q_f64(p); }
inline Words load_words(const uint16_t* p) { return vld1q_u16(p); }
inline Doubles widen(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
inline Doubles widen_low(Floats x) { return vcvt_f64_f32(vget_low_f32(x)); }
inline Doubles widen_high(Floats x) { return vcvt_high_f64_f32(x); }
inline Floats widen_halves(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline Floats even_floats(Words w) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(w), 16)); }
inline Floats odd_floats(Words w) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(w), vdupq_n_u32(0xffff0000u)));
}

inline Doubles magnitude(Doubles x) { return vabsq_f64(x); }
inline Floats magnitude(Floats x) { return vabsq_f32(x); }
inline Words magnitude(Words w) { return vandq_u16(w, vdupq_n_u16(0x7fff)); }
inline Words maximum(Words x, Words y) { return vmaxq_u16(x, y); }

// The magnitudes of floats and of halves, widened.
inline Doubles widen_magnitude(const float* p) { return vcvt_f64_f32(vabs_f32(vld1_f32(p))); }
inline Floats widen_half_magnitudes(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vand_u16(vld1_u16(p), vdup_n_u16(0x7fff))));
}

inline Doubles add(Doubles x, Doubles y) { return vaddq_f64(x, y); }
inline Floats add(Floats x, Floats y) { return vaddq_f32(x, y); }
// x + y by another unit than `add`, where that helps: not here.
inline Doubles add_elsewhere(Doubles x, Doubles y) { return add(x, y); }
inline Floats add_elsewhere(Floats x, Floats y) { return add(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return vmulq_f64(x, y); }
inline Floats multiply(Floats x, Floats y) { return vmulq_f32(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return vfmaq_f64(z, x, y); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return vfmaq_f32(z, x, y); }

inline double fold(Doubles x) { return vgetq_lane_f64(x, 0) + vgetq_lane_f64(x, 1); }

inline Floats load_floats(const float* p) { return vld1q_f32(p); }
inline void store_floats(float* p, Floats x) { vst1q_f32(p, x); }
inline void store_doubles(double* p, Doubles x) { vst1q_f64(p, x); }
inline void store_halves(uint16_t* p, Floats x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
inline Floats widen_bfloats(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
// To nearest even, by the carry of an integer addition; not for NaNs with low bits.
inline void store_bfloats(uint16_t* p, Floats x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16));
}
inline Floats broadcast(Floats, double x) { return vdupq_n_f32(float(x)); }
inline Doubles broadcast(Doubles, double x) { return vdupq_n_f64(x); }
inline Floats bits_and(Floats x, Floats y) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(y)));
}
inline Floats bits_xor(Floats x, Floats y) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(y)));
}
inline Floats subtract(Floats x, Floats y) { return vsubq_f32(x, y); }
inline Floats divide(Floats x, Floats y) { return vdivq_f32(x, y); }
inline Floats is_not_zero(Floats x) {
    return vreinterpretq_f32_u32(veorq_u32(vceqq_f32(x, zero(x)), vdupq_n_u32(uint32_t(-1))));
}
inline Floats is_nan(Floats x) { return vreinterpretq_f32_u32(veorq_u32(vceqq_f32(x, x), vdupq_n_u32(uint32_t(-1)))); }
inline Floats is_positive(Floats x) { return vreinterpretq_f32_u32(vcgtq_f32(x, zero(x))); }
inline Doubles bits_and(Doubles x, Doubles y) {
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x), vreinterpretq_u64_f64(y)));
}
inline Doubles bits_xor(Doubles x, Doubles y) {
    return vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(x), vreinterpretq_u64_f64(y)));
}
inline Doubles subtract(Doubles x, Doubles y) { return vsubq_f64(x, y); }
inline Doubles divide(Doubles x, Doubles y) { return vdivq_f64(x, y); }
inline Doubles is_not_zero(Doubles x) {
    return vreinterpretq_f64_u64(veorq_u64(vceqq_f64(x, zero(x)), vdupq_n_u64(uint64_t(-1))));
}
inline Doubles is_nan(Doubles x) {
    return vreinterpretq_f64_u64(veorq_u64(vceqq_f64(x, x), vdupq_n_u64(uint64_t(-1))));
}
inline Doubles is_positive(Doubles x) { return vreinterpretq_f64_u64(vcgtq_f64(x, zero(x))); }

inline Floats select(Floats mask, Floats x, Floats y) { return vbslq_f32(vreinterpretq_u32_f32(mask), x, y); }
inline Doubles select(Doubles mask, Doubles x, Doubles y) { return vbslq_f64(vreinterpretq_u64_f64(mask), x, y); }
#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kNeon = {"neon", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
