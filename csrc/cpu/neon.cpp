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
constexpr int kVectors = 8;

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

inline Doubles add(Doubles x, Doubles y) { return vaddq_f64(x, y); }
inline Floats add(Floats x, Floats y) { return vaddq_f32(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return vmulq_f64(x, y); }
inline Floats multiply(Floats x, Floats y) { return vmulq_f32(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return vfmaq_f64(z, x, y); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return vfmaq_f32(z, x, y); }

inline double fold(Doubles x) { return vgetq_lane_f64(x, 0) + vgetq_lane_f64(x, 1); }

inline void prefetch(const char* p) { __builtin_prefetch(p); }

#include "block.inl"

}  // namespace

const Kernels kNeon = FUSED_PENALTIES_KERNELS("neon");

}  // namespace fused_penalties
