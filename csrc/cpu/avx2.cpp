// AVX2 with FMA and F16C: Haswell, Zen and later.
#include <immintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using DoubleVector = __m256d;
using FloatVector = __m256;
using WordVector = __m256i;
constexpr int kDoubles = 4;
constexpr int kGroups = 1;  // of eight sums each: there are 16 registers

inline DoubleVector zero(DoubleVector) { return _mm256_setzero_pd(); }
inline FloatVector zero(FloatVector) { return _mm256_setzero_ps(); }
inline WordVector zero(WordVector) { return _mm256_setzero_si256(); }

inline DoubleVector load_doubles(const double* p) { return _mm256_loadu_pd(p); }
inline WordVector load_words(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline DoubleVector widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline DoubleVector widen_low(FloatVector x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline DoubleVector widen_high(FloatVector x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
inline FloatVector widen_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// A bfloat16 is the upper half of a float. Both take words whose sign is cleared.
inline FloatVector even_floats(WordVector w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
inline FloatVector odd_floats(WordVector w) {
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int(0xffff0000u))));
}

inline DoubleVector magnitude(DoubleVector x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
inline FloatVector magnitude(FloatVector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline WordVector magnitude(WordVector w) { return _mm256_and_si256(w, _mm256_set1_epi16(0x7fff)); }

// Bits. Maxima are those of integers whose sign is cleared; of 64 bits there is only one for float64.
inline WordVector repeated(uint64_t bits) { return _mm256_set1_epi64x(int64_t(bits)); }
inline WordVector both(WordVector x, WordVector y) { return _mm256_and_si256(x, y); }
inline WordVector maximum16(WordVector x, WordVector y) { return _mm256_max_epi16(x, y); }
inline WordVector maximum32(WordVector x, WordVector y) { return _mm256_max_epi32(x, y); }
inline WordVector words(DoubleVector x) { return _mm256_castpd_si256(x); }
inline WordVector maximum64(WordVector x, WordVector y) {
    return words(_mm256_max_pd(_mm256_castsi256_pd(x), _mm256_castsi256_pd(y)));
}

// The magnitudes of floats and of halves, widened. The sign is cleared last: conversions from memory cost less than
// those from a register.
inline DoubleVector widen_magnitude(const float* p) { return magnitude(widen(p)); }
inline FloatVector widen_half_magnitudes(const uint16_t* p) { return magnitude(widen_halves(p)); }

inline DoubleVector add(DoubleVector x, DoubleVector y) { return _mm256_add_pd(x, y); }
inline FloatVector add(FloatVector x, FloatVector y) { return _mm256_add_ps(x, y); }
inline DoubleVector multiply(DoubleVector x, DoubleVector y) { return _mm256_mul_pd(x, y); }
inline FloatVector multiply(FloatVector x, FloatVector y) { return _mm256_mul_ps(x, y); }
inline DoubleVector multiply_add(DoubleVector x, DoubleVector y, DoubleVector z) { return _mm256_fmadd_pd(x, y, z); }
inline FloatVector multiply_add(FloatVector x, FloatVector y, FloatVector z) { return _mm256_fmadd_ps(x, y, z); }

inline double fold(DoubleVector x) {
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

inline FloatVector load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, FloatVector x) { _mm256_storeu_ps(p, x); }
inline void store_doubles(double* p, DoubleVector x) { _mm256_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, FloatVector x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline FloatVector widen_bfloats(const uint16_t* p) {
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(w), 16));
}
// To nearest even, by the carry of an integer addition; not for NaNs with low bits.
inline void store_bfloats(uint16_t* p, FloatVector x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i high = _mm256_srai_epi32(up, 16);  // signed, so that packing saturates nothing
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
inline FloatVector broadcast(FloatVector, double x) { return _mm256_set1_ps(float(x)); }
inline DoubleVector broadcast(DoubleVector, double x) { return _mm256_set1_pd(x); }
// x + y, as a product with one: half of the magnitudes are added so, because AMD's processors convert floats on the
// pipes of additions (7 % of float32's time in cache on Zen 4), and for others it is one operation like the other.
inline DoubleVector add_elsewhere(DoubleVector x, DoubleVector y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline FloatVector add_elsewhere(FloatVector x, FloatVector y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline FloatVector subtract(FloatVector x, FloatVector y) { return _mm256_sub_ps(x, y); }
inline DoubleVector subtract(DoubleVector x, DoubleVector y) { return _mm256_sub_pd(x, y); }
inline FloatVector divide(FloatVector x, FloatVector y) { return _mm256_div_ps(x, y); }
inline DoubleVector divide(DoubleVector x, DoubleVector y) { return _mm256_div_pd(x, y); }
inline FloatVector bits_and(FloatVector x, FloatVector y) { return _mm256_and_ps(x, y); }
inline DoubleVector bits_and(DoubleVector x, DoubleVector y) { return _mm256_and_pd(x, y); }
inline FloatVector bits_xor(FloatVector x, FloatVector y) { return _mm256_xor_ps(x, y); }
inline DoubleVector bits_xor(DoubleVector x, DoubleVector y) { return _mm256_xor_pd(x, y); }
inline FloatVector select(FloatVector mask, FloatVector x, FloatVector y) { return _mm256_blendv_ps(y, x, mask); }
inline DoubleVector select(DoubleVector mask, DoubleVector x, DoubleVector y) { return _mm256_blendv_pd(y, x, mask); }
inline FloatVector is_nan(FloatVector x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
inline DoubleVector is_nan(DoubleVector x) { return _mm256_cmp_pd(x, x, _CMP_UNORD_Q); }
inline FloatVector is_not_zero(FloatVector x) { return _mm256_cmp_ps(x, zero(x), _CMP_NEQ_UQ); }
inline DoubleVector is_not_zero(DoubleVector x) { return _mm256_cmp_pd(x, zero(x), _CMP_NEQ_UQ); }
inline FloatVector is_positive(FloatVector x) { return _mm256_cmp_ps(x, zero(x), _CMP_GT_OQ); }
inline DoubleVector is_positive(DoubleVector x) { return _mm256_cmp_pd(x, zero(x), _CMP_GT_OQ); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kAvx2 = {"avx2", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
