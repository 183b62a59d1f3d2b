// AVX-512 F, BW, DQ and VL: Skylake-SP, Zen 4 and later.
#include <immintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using Doubles = __m512d;
using Floats = __m512;
using Words = __m512i;
constexpr int kDoubles = 8;
constexpr int kGroups = 1;  // of eight sums each: they hold a whole row

inline Doubles zero(Doubles) { return _mm512_setzero_pd(); }
inline Floats zero(Floats) { return _mm512_setzero_ps(); }
inline Words zero(Words) { return _mm512_setzero_si512(); }

inline Doubles load_doubles(const double* p) { return _mm512_loadu_pd(p); }
inline Words load_words(const uint16_t* p) { return _mm512_loadu_si512(p); }
inline Doubles widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline Doubles widen_low(Floats x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline Doubles widen_high(Floats x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
inline Floats widen_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats even_floats(Words w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
inline Floats odd_floats(Words w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
}

inline Doubles magnitude(Doubles x) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), x); }
inline Floats magnitude(Floats x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
inline Words magnitude(Words w) { return _mm512_and_si512(w, _mm512_set1_epi16(0x7fff)); }
inline Words maximum(Words x, Words y) { return _mm512_max_epi16(x, y); }

// The magnitudes of floats and of halves, widened. The sign is cleared first: on half a register that costs half as
// much where the processor splits whole ones.
inline Doubles widen_magnitude(const float* p) {
    return _mm512_cvtps_pd(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(p)));
}
inline Floats widen_half_magnitudes(const uint16_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_cvtph_ps(_mm256_and_si256(w, _mm256_set1_epi16(0x7fff)));
}

inline Doubles add(Doubles x, Doubles y) { return _mm512_add_pd(x, y); }
inline Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return _mm512_mul_pd(x, y); }
inline Floats multiply(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return _mm512_fmadd_pd(x, y, z); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }

inline double fold(Doubles x) {
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store_doubles(double* p, Doubles x) { _mm512_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats widen_bfloats(const uint16_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
}
inline void store_bfloats(uint16_t* p, Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
inline Floats broadcast(Floats, double x) { return _mm512_set1_ps(float(x)); }
inline Doubles broadcast(Doubles, double x) { return _mm512_set1_pd(x); }
// As in avx2.cpp.
inline Doubles add_elsewhere(Doubles x, Doubles y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline Floats add_elsewhere(Floats x, Floats y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline Floats subtract(Floats x, Floats y) { return _mm512_sub_ps(x, y); }
inline Doubles subtract(Doubles x, Doubles y) { return _mm512_sub_pd(x, y); }
inline Floats divide(Floats x, Floats y) { return _mm512_div_ps(x, y); }
inline Doubles divide(Doubles x, Doubles y) { return _mm512_div_pd(x, y); }
inline Floats bits_and(Floats x, Floats y) { return _mm512_and_ps(x, y); }
inline Doubles bits_and(Doubles x, Doubles y) { return _mm512_and_pd(x, y); }
inline Floats bits_xor(Floats x, Floats y) { return _mm512_xor_ps(x, y); }
inline Doubles bits_xor(Doubles x, Doubles y) { return _mm512_xor_pd(x, y); }
// 0xca: x where the mask has ones, else y.
inline Floats select(Floats mask, Floats x, Floats y) {
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(mask), _mm512_castps_si512(x), _mm512_castps_si512(y), 0xca));
}
inline Doubles select(Doubles mask, Doubles x, Doubles y) {
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(_mm512_castpd_si512(mask), _mm512_castpd_si512(x), _mm512_castpd_si512(y), 0xca));
}
inline Floats as_floats(__mmask16 mask) { return _mm512_castsi512_ps(_mm512_movm_epi32(mask)); }
inline Doubles as_doubles(__mmask8 mask) { return _mm512_castsi512_pd(_mm512_movm_epi64(mask)); }
inline Floats is_nan(Floats x) { return as_floats(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)); }
inline Doubles is_nan(Doubles x) { return as_doubles(_mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q)); }
inline Floats is_not_zero(Floats x) { return as_floats(_mm512_cmp_ps_mask(x, zero(x), _CMP_NEQ_UQ)); }
inline Doubles is_not_zero(Doubles x) { return as_doubles(_mm512_cmp_pd_mask(x, zero(x), _CMP_NEQ_UQ)); }
inline Floats is_positive(Floats x) { return as_floats(_mm512_cmp_ps_mask(x, zero(x), _CMP_GT_OQ)); }
inline Doubles is_positive(Doubles x) { return as_doubles(_mm512_cmp_pd_mask(x, zero(x), _CMP_GT_OQ)); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kAvx512 = {"avx512", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
