// The x86-64 baseline: SSE2, which every such processor has.
#include <emmintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using DoubleVector = __m128d;
using FloatVector = __m128;
using WordVector = __m128i;
constexpr int kDoubles = 2;
constexpr int kGroups = 1;  // of eight sums each: there are 16 registers

inline DoubleVector zero(DoubleVector) { return _mm_setzero_pd(); }
inline FloatVector zero(FloatVector) { return _mm_setzero_ps(); }
inline WordVector zero(WordVector) { return _mm_setzero_si128(); }

inline DoubleVector load_doubles(const double* p) { return _mm_loadu_pd(p); }
inline WordVector load_words(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline DoubleVector widen(const float* p) {
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline DoubleVector widen_low(FloatVector x) { return _mm_cvtps_pd(x); }
inline DoubleVector widen_high(FloatVector x) { return _mm_cvtps_pd(_mm_movehl_ps(x, x)); }
// No conversion instruction yet: the half's bits, moved into place, are the float times 2^-112. The product
// with 2^112 is exact, subnormals included; the exponent of infinities and NaNs is then filled up with ones.
inline FloatVector widen_magnitudes(__m128i halves) {  // 32 bits each, their signs cleared
    const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(halves, 13)), _mm_set1_ps(0x1p112f));
    const __m128i special = _mm_cmpgt_epi32(halves, _mm_set1_epi32(0x7bff));
    return _mm_or_ps(scaled, _mm_castsi128_ps(_mm_and_si128(special, _mm_set1_epi32(0x7f800000))));
}
inline __m128i load_halves(const uint16_t* p) {
    return _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
}
inline FloatVector widen_halves(const uint16_t* p) {
    const __m128i halves = load_halves(p), magnitudes = _mm_and_si128(halves, _mm_set1_epi32(0x7fff));
    return _mm_or_ps(widen_magnitudes(magnitudes),
                     _mm_castsi128_ps(_mm_slli_epi32(_mm_xor_si128(halves, magnitudes), 16)));
}
inline FloatVector even_floats(WordVector w) { return _mm_castsi128_ps(_mm_slli_epi32(w, 16)); }
inline FloatVector odd_floats(WordVector w) {
    return _mm_castsi128_ps(_mm_and_si128(w, _mm_set1_epi32(int(0xffff0000u))));
}

inline DoubleVector magnitude(DoubleVector x) { return _mm_andnot_pd(_mm_set1_pd(-0.0), x); }
inline FloatVector magnitude(FloatVector x) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), x); }
inline WordVector magnitude(WordVector w) { return _mm_and_si128(w, _mm_set1_epi16(0x7fff)); }

// Bits. Maxima are those of integers whose sign is cleared; of 64 bits there is only one for float64.
inline WordVector repeated(uint64_t bits) { return _mm_set1_epi64x(int64_t(bits)); }
inline WordVector both(WordVector x, WordVector y) { return _mm_and_si128(x, y); }
inline WordVector where(WordVector mask, WordVector x, WordVector y) {
    return _mm_or_si128(_mm_and_si128(mask, x), _mm_andnot_si128(mask, y));
}
inline WordVector maximum16(WordVector x, WordVector y) { return _mm_max_epi16(x, y); }
inline WordVector maximum32(WordVector x, WordVector y) { return where(_mm_cmpgt_epi32(y, x), y, x); }
inline WordVector words(DoubleVector x) { return _mm_castpd_si128(x); }
inline WordVector maximum64(WordVector x, WordVector y) {
    return words(_mm_max_pd(_mm_castsi128_pd(x), _mm_castsi128_pd(y)));
}

// The magnitudes of floats and of halves, widened.
inline DoubleVector widen_magnitude(const float* p) { return magnitude(widen(p)); }
inline FloatVector widen_half_magnitudes(const uint16_t* p) {
    return widen_magnitudes(_mm_and_si128(load_halves(p), _mm_set1_epi32(0x7fff)));
}

inline DoubleVector add(DoubleVector x, DoubleVector y) { return _mm_add_pd(x, y); }
inline FloatVector add(FloatVector x, FloatVector y) { return _mm_add_ps(x, y); }
// x + y by another unit than `add`, where that helps: not here.
inline DoubleVector add_elsewhere(DoubleVector x, DoubleVector y) { return add(x, y); }
inline FloatVector add_elsewhere(FloatVector x, FloatVector y) { return add(x, y); }
inline DoubleVector multiply(DoubleVector x, DoubleVector y) { return _mm_mul_pd(x, y); }
inline FloatVector multiply(FloatVector x, FloatVector y) { return _mm_mul_ps(x, y); }
inline DoubleVector multiply_add(DoubleVector x, DoubleVector y, DoubleVector z) { return add(multiply(x, y), z); }
inline FloatVector multiply_add(FloatVector x, FloatVector y, FloatVector z) { return add(multiply(x, y), z); }

inline double fold(DoubleVector x) { return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x))); }

inline FloatVector load_floats(const float* p) { return _mm_loadu_ps(p); }
inline void store_floats(float* p, FloatVector x) { _mm_storeu_ps(p, x); }
inline void store_doubles(double* p, DoubleVector x) { _mm_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, FloatVector x) {
    float values[4];
    _mm_storeu_ps(values, x);
    uint16_t halves[4];
    for (int i = 0; i < 4; ++i) halves[i] = canon::half_of_float(values[i]);
    memcpy(p, halves, sizeof halves);
}
inline FloatVector widen_bfloats(const uint16_t* p) {
    return _mm_castsi128_ps(
        _mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_bfloats(uint16_t* p, FloatVector x) {
    const __m128i bits = _mm_castps_si128(x);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i up = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    const __m128i high = _mm_srai_epi32(up, 16);  // signed, so that packing saturates nothing
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(high, high));
}
inline FloatVector broadcast(FloatVector, double x) { return _mm_set1_ps(float(x)); }
inline DoubleVector broadcast(DoubleVector, double x) { return _mm_set1_pd(x); }
inline FloatVector subtract(FloatVector x, FloatVector y) { return _mm_sub_ps(x, y); }
inline DoubleVector subtract(DoubleVector x, DoubleVector y) { return _mm_sub_pd(x, y); }
inline FloatVector divide(FloatVector x, FloatVector y) { return _mm_div_ps(x, y); }
inline DoubleVector divide(DoubleVector x, DoubleVector y) { return _mm_div_pd(x, y); }
inline FloatVector bits_and(FloatVector x, FloatVector y) { return _mm_and_ps(x, y); }
inline DoubleVector bits_and(DoubleVector x, DoubleVector y) { return _mm_and_pd(x, y); }
inline FloatVector bits_xor(FloatVector x, FloatVector y) { return _mm_xor_ps(x, y); }
inline DoubleVector bits_xor(DoubleVector x, DoubleVector y) { return _mm_xor_pd(x, y); }
inline FloatVector select(FloatVector mask, FloatVector x, FloatVector y) {
    return _mm_or_ps(_mm_and_ps(mask, x), _mm_andnot_ps(mask, y));
}
inline DoubleVector select(DoubleVector mask, DoubleVector x, DoubleVector y) {
    return _mm_or_pd(_mm_and_pd(mask, x), _mm_andnot_pd(mask, y));
}
inline FloatVector is_nan(FloatVector x) { return _mm_cmpunord_ps(x, x); }
inline DoubleVector is_nan(DoubleVector x) { return _mm_cmpunord_pd(x, x); }
inline FloatVector is_not_zero(FloatVector x) { return _mm_cmpneq_ps(x, zero(x)); }
inline DoubleVector is_not_zero(DoubleVector x) { return _mm_cmpneq_pd(x, zero(x)); }
inline FloatVector is_positive(FloatVector x) { return _mm_cmpgt_ps(x, zero(x)); }
inline DoubleVector is_positive(DoubleVector x) { return _mm_cmpgt_pd(x, zero(x)); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kBaseline = {"baseline", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
