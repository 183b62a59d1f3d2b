// The x86-64 baseline: SSE2, which every such processor has.
#include <emmintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using Doubles = __m128d;
using Floats = __m128;
using Words = __m128i;
constexpr int kDoubles = 2;
constexpr int kGroups = 1;  // of eight sums each: there are 16 registers

inline Doubles zero(Doubles) { return _mm_setzero_pd(); }
inline Floats zero(Floats) { return _mm_setzero_ps(); }
inline Words zero(Words) { return _mm_setzero_si128(); }

inline Doubles load_doubles(const double* p) { return _mm_loadu_pd(p); }
inline Words load_words(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Doubles widen(const float* p) {
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Doubles widen_low(Floats x) { return _mm_cvtps_pd(x); }
inline Doubles widen_high(Floats x) { return _mm_cvtps_pd(_mm_movehl_ps(x, x)); }
// No conversion instruction yet: the half's bits, moved into place, are the float times 2^-112. The product
// with 2^112 is exact, subnormals included; the exponent of infinities and NaNs is then filled up with ones.
inline Floats widen_magnitudes(__m128i halves) {  // 32 bits each, their signs cleared
    const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(halves, 13)), _mm_set1_ps(0x1p112f));
    const __m128i special = _mm_cmpgt_epi32(halves, _mm_set1_epi32(0x7bff));
    return _mm_or_ps(scaled, _mm_castsi128_ps(_mm_and_si128(special, _mm_set1_epi32(0x7f800000))));
}
inline __m128i load_halves(const uint16_t* p) {
    return _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
}
inline Floats widen_halves(const uint16_t* p) {
    const __m128i halves = load_halves(p), magnitudes = _mm_and_si128(halves, _mm_set1_epi32(0x7fff));
    return _mm_or_ps(widen_magnitudes(magnitudes),
                     _mm_castsi128_ps(_mm_slli_epi32(_mm_xor_si128(halves, magnitudes), 16)));
}
inline Floats even_floats(Words w) { return _mm_castsi128_ps(_mm_slli_epi32(w, 16)); }
inline Floats odd_floats(Words w) { return _mm_castsi128_ps(_mm_and_si128(w, _mm_set1_epi32(int(0xffff0000u)))); }

inline Doubles magnitude(Doubles x) { return _mm_andnot_pd(_mm_set1_pd(-0.0), x); }
inline Floats magnitude(Floats x) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), x); }
inline Words magnitude(Words w) { return _mm_and_si128(w, _mm_set1_epi16(0x7fff)); }
inline Words maximum(Words x, Words y) { return _mm_max_epi16(x, y); }

// The magnitudes of floats and of halves, widened.
inline Doubles widen_magnitude(const float* p) { return magnitude(widen(p)); }
inline Floats widen_half_magnitudes(const uint16_t* p) {
    return widen_magnitudes(_mm_and_si128(load_halves(p), _mm_set1_epi32(0x7fff)));
}

inline Doubles add(Doubles x, Doubles y) { return _mm_add_pd(x, y); }
inline Floats add(Floats x, Floats y) { return _mm_add_ps(x, y); }
// x + y by another unit than `add`, where that helps: not here.
inline Doubles add_elsewhere(Doubles x, Doubles y) { return add(x, y); }
inline Floats add_elsewhere(Floats x, Floats y) { return add(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return _mm_mul_pd(x, y); }
inline Floats multiply(Floats x, Floats y) { return _mm_mul_ps(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return add(multiply(x, y), z); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return add(multiply(x, y), z); }

inline double fold(Doubles x) { return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x))); }

inline Floats load_floats(const float* p) { return _mm_loadu_ps(p); }
inline void store_floats(float* p, Floats x) { _mm_storeu_ps(p, x); }
inline void store_doubles(double* p, Doubles x) { _mm_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, Floats x) {
    float values[4];
    _mm_storeu_ps(values, x);
    uint16_t halves[4];
    for (int i = 0; i < 4; ++i) halves[i] = canon::half_of_float(values[i]);
    memcpy(p, halves, sizeof halves);
}
inline Floats widen_bfloats(const uint16_t* p) {
    return _mm_castsi128_ps(
        _mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_bfloats(uint16_t* p, Floats x) {
    const __m128i bits = _mm_castps_si128(x);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i up = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    const __m128i high = _mm_srai_epi32(up, 16);  // signed, so that packing saturates nothing
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(high, high));
}
inline Floats broadcast(Floats, double x) { return _mm_set1_ps(float(x)); }
inline Doubles broadcast(Doubles, double x) { return _mm_set1_pd(x); }
inline Floats subtract(Floats x, Floats y) { return _mm_sub_ps(x, y); }
inline Doubles subtract(Doubles x, Doubles y) { return _mm_sub_pd(x, y); }
inline Floats divide(Floats x, Floats y) { return _mm_div_ps(x, y); }
inline Doubles divide(Doubles x, Doubles y) { return _mm_div_pd(x, y); }
inline Floats bits_and(Floats x, Floats y) { return _mm_and_ps(x, y); }
inline Doubles bits_and(Doubles x, Doubles y) { return _mm_and_pd(x, y); }
inline Floats bits_xor(Floats x, Floats y) { return _mm_xor_ps(x, y); }
inline Doubles bits_xor(Doubles x, Doubles y) { return _mm_xor_pd(x, y); }
inline Floats select(Floats mask, Floats x, Floats y) { return _mm_or_ps(_mm_and_ps(mask, x), _mm_andnot_ps(mask, y)); }
inline Doubles select(Doubles mask, Doubles x, Doubles y) {
    return _mm_or_pd(_mm_and_pd(mask, x), _mm_andnot_pd(mask, y));
}
inline Floats is_nan(Floats x) { return _mm_cmpunord_ps(x, x); }
inline Doubles is_nan(Doubles x) { return _mm_cmpunord_pd(x, x); }
inline Floats is_not_zero(Floats x) { return _mm_cmpneq_ps(x, zero(x)); }
inline Doubles is_not_zero(Doubles x) { return _mm_cmpneq_pd(x, zero(x)); }
inline Floats is_positive(Floats x) { return _mm_cmpgt_ps(x, zero(x)); }
inline Doubles is_positive(Doubles x) { return _mm_cmpgt_pd(x, zero(x)); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kBaseline = {"baseline", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
