// AVX-512 F, BW, DQ and VL: Skylake-SP, Zen 4 and later.
#include <immintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using DoubleVector = __m512d;
using FloatVector = __m512;
using WordVector = __m512i;
constexpr int kDoubles = 8;
constexpr int kGroups = 1;  // of eight sums each: they hold a whole row

inline DoubleVector zero(DoubleVector) { return _mm512_setzero_pd(); }
inline FloatVector zero(FloatVector) { return _mm512_setzero_ps(); }
inline WordVector zero(WordVector) { return _mm512_setzero_si512(); }

inline DoubleVector load_doubles(const double* p) { return _mm512_loadu_pd(p); }
inline WordVector load_words(const uint16_t* p) { return _mm512_loadu_si512(p); }
inline DoubleVector widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline DoubleVector widen_low(FloatVector x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline DoubleVector widen_high(FloatVector x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
inline FloatVector widen_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline FloatVector even_floats(WordVector w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
inline FloatVector odd_floats(WordVector w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
}

inline DoubleVector magnitude(DoubleVector x) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), x); }
inline FloatVector magnitude(FloatVector x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
inline WordVector magnitude(WordVector w) { return _mm512_and_si512(w, _mm512_set1_epi16(0x7fff)); }

// Bits. Maxima are those of integers whose sign is cleared.
inline WordVector repeated(uint64_t bits) { return _mm512_set1_epi64(int64_t(bits)); }
inline WordVector both(WordVector x, WordVector y) { return _mm512_and_si512(x, y); }
inline WordVector maximum16(WordVector x, WordVector y) { return _mm512_max_epi16(x, y); }
inline WordVector maximum32(WordVector x, WordVector y) { return _mm512_max_epi32(x, y); }
inline WordVector words(DoubleVector x) { return _mm512_castpd_si512(x); }
inline WordVector maximum64(WordVector x, WordVector y) { return _mm512_max_epi64(x, y); }

// The magnitudes of floats and of halves, widened. The sign is cleared first: on half a register that costs half as
// much where the processor splits whole ones.
inline DoubleVector widen_magnitude(const float* p) {
    return _mm512_cvtps_pd(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(p)));
}
inline FloatVector widen_half_magnitudes(const uint16_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_cvtph_ps(_mm256_and_si256(w, _mm256_set1_epi16(0x7fff)));
}

inline DoubleVector add(DoubleVector x, DoubleVector y) { return _mm512_add_pd(x, y); }
inline FloatVector add(FloatVector x, FloatVector y) { return _mm512_add_ps(x, y); }
inline DoubleVector multiply(DoubleVector x, DoubleVector y) { return _mm512_mul_pd(x, y); }
inline FloatVector multiply(FloatVector x, FloatVector y) { return _mm512_mul_ps(x, y); }
inline DoubleVector multiply_add(DoubleVector x, DoubleVector y, DoubleVector z) { return _mm512_fmadd_pd(x, y, z); }
inline FloatVector multiply_add(FloatVector x, FloatVector y, FloatVector z) { return _mm512_fmadd_ps(x, y, z); }

inline double fold(DoubleVector x) {
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

inline FloatVector load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, FloatVector x) { _mm512_storeu_ps(p, x); }
inline void store_doubles(double* p, DoubleVector x) { _mm512_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, FloatVector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline FloatVector widen_bfloats(const uint16_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
}
inline void store_bfloats(uint16_t* p, FloatVector x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
inline FloatVector broadcast(FloatVector, double x) { return _mm512_set1_ps(float(x)); }
inline DoubleVector broadcast(DoubleVector, double x) { return _mm512_set1_pd(x); }
// As in avx2.cpp.
inline DoubleVector add_elsewhere(DoubleVector x, DoubleVector y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline FloatVector add_elsewhere(FloatVector x, FloatVector y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline FloatVector subtract(FloatVector x, FloatVector y) { return _mm512_sub_ps(x, y); }
inline DoubleVector subtract(DoubleVector x, DoubleVector y) { return _mm512_sub_pd(x, y); }
inline FloatVector divide(FloatVector x, FloatVector y) { return _mm512_div_ps(x, y); }
inline DoubleVector divide(DoubleVector x, DoubleVector y) { return _mm512_div_pd(x, y); }
inline FloatVector bits_and(FloatVector x, FloatVector y) { return _mm512_and_ps(x, y); }
inline DoubleVector bits_and(DoubleVector x, DoubleVector y) { return _mm512_and_pd(x, y); }
inline FloatVector bits_xor(FloatVector x, FloatVector y) { return _mm512_xor_ps(x, y); }
inline DoubleVector bits_xor(DoubleVector x, DoubleVector y) { return _mm512_xor_pd(x, y); }
// 0xca: x where the mask has ones, else y.
inline FloatVector select(FloatVector mask, FloatVector x, FloatVector y) {
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(mask), _mm512_castps_si512(x), _mm512_castps_si512(y), 0xca));
}
inline DoubleVector select(DoubleVector mask, DoubleVector x, DoubleVector y) {
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(_mm512_castpd_si512(mask), _mm512_castpd_si512(x), _mm512_castpd_si512(y), 0xca));
}
inline FloatVector as_floats(__mmask16 mask) { return _mm512_castsi512_ps(_mm512_movm_epi32(mask)); }
inline DoubleVector as_doubles(__mmask8 mask) { return _mm512_castsi512_pd(_mm512_movm_epi64(mask)); }
inline FloatVector is_nan(FloatVector x) { return as_floats(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)); }
inline DoubleVector is_nan(DoubleVector x) { return as_doubles(_mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q)); }
inline FloatVector is_not_zero(FloatVector x) { return as_floats(_mm512_cmp_ps_mask(x, zero(x), _CMP_NEQ_UQ)); }
inline DoubleVector is_not_zero(DoubleVector x) { return as_doubles(_mm512_cmp_pd_mask(x, zero(x), _CMP_NEQ_UQ)); }
inline FloatVector is_positive(FloatVector x) { return as_floats(_mm512_cmp_ps_mask(x, zero(x), _CMP_GT_OQ)); }
inline DoubleVector is_positive(DoubleVector x) { return as_doubles(_mm512_cmp_pd_mask(x, zero(x), _CMP_GT_OQ)); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kAvx512 = {"avx512", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
