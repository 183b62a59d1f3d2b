// AVX2 with FMA and F16C: Haswell, Zen and later.
#include <immintrin.h>

#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using Doubles = __m256d;
using Floats = __m256;
using Words = __m256i;
constexpr int kDoubles = 4;
constexpr int kGroups = 1;  // of eight sums each: there are 16 registers

inline Doubles zero(Doubles) { return _mm256_setzero_pd(); }
inline Floats zero(Floats) { return _mm256_setzero_ps(); }
inline Words zero(Words) { return _mm256_setzero_si256(); }

inline Doubles load_doubles(const double* p) { return _mm256_loadu_pd(p); }
inline Words load_words(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Doubles widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline Doubles widen_low(Floats x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline Doubles widen_high(Floats x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
inline Floats widen_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// A bfloat16 is the upper half of a float. Both take words whose sign is cleared.
inline Floats even_floats(Words w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
inline Floats odd_floats(Words w) {
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int(0xffff0000u))));
}

inline Doubles magnitude(Doubles x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
inline Floats magnitude(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Words magnitude(Words w) { return _mm256_and_si256(w, _mm256_set1_epi16(0x7fff)); }
inline Words maximum(Words x, Words y) { return _mm256_max_epi16(x, y); }  // signed

// The magnitudes of floats and of halves, widened. The sign is cleared last: conversions from memory cost less than
// those from a register.
inline Doubles widen_magnitude(const float* p) { return magnitude(widen(p)); }
inline Floats widen_half_magnitudes(const uint16_t* p) { return magnitude(widen_halves(p)); }

inline Doubles add(Doubles x, Doubles y) { return _mm256_add_pd(x, y); }
inline Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return _mm256_mul_pd(x, y); }
inline Floats multiply(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return _mm256_fmadd_pd(x, y, z); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }

inline double fold(Doubles x) {
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline void store_doubles(double* p, Doubles x) { _mm256_storeu_pd(p, x); }
inline void store_halves(uint16_t* p, Floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats widen_bfloats(const uint16_t* p) {
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(w), 16));
}
// To nearest even, by the carry of an integer addition; not for NaNs with low bits.
inline void store_bfloats(uint16_t* p, Floats x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i high = _mm256_srai_epi32(up, 16);  // signed, so that packing saturates nothing
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
inline Floats broadcast(Floats, double x) { return _mm256_set1_ps(float(x)); }
inline Doubles broadcast(Doubles, double x) { return _mm256_set1_pd(x); }
// x + y, as a product with one: half of the magnitudes are added so, because AMD's processors convert floats on the
// pipes of additions (7 % of float32's time in cache on Zen 4), and for others it is one operation like the other.
inline Doubles add_elsewhere(Doubles x, Doubles y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline Floats add_elsewhere(Floats x, Floats y) { return multiply_add(y, broadcast(y, 1.0), x); }
inline Floats subtract(Floats x, Floats y) { return _mm256_sub_ps(x, y); }
inline Doubles subtract(Doubles x, Doubles y) { return _mm256_sub_pd(x, y); }
inline Floats divide(Floats x, Floats y) { return _mm256_div_ps(x, y); }
inline Doubles divide(Doubles x, Doubles y) { return _mm256_div_pd(x, y); }
inline Floats bits_and(Floats x, Floats y) { return _mm256_and_ps(x, y); }
inline Doubles bits_and(Doubles x, Doubles y) { return _mm256_and_pd(x, y); }
inline Floats bits_xor(Floats x, Floats y) { return _mm256_xor_ps(x, y); }
inline Doubles bits_xor(Doubles x, Doubles y) { return _mm256_xor_pd(x, y); }
inline Floats select(Floats mask, Floats x, Floats y) { return _mm256_blendv_ps(y, x, mask); }
inline Doubles select(Doubles mask, Doubles x, Doubles y) { return _mm256_blendv_pd(y, x, mask); }
inline Floats is_nan(Floats x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
inline Doubles is_nan(Doubles x) { return _mm256_cmp_pd(x, x, _CMP_UNORD_Q); }
inline Floats is_not_zero(Floats x) { return _mm256_cmp_ps(x, zero(x), _CMP_NEQ_UQ); }
inline Doubles is_not_zero(Doubles x) { return _mm256_cmp_pd(x, zero(x), _CMP_NEQ_UQ); }
inline Floats is_positive(Floats x) { return _mm256_cmp_ps(x, zero(x), _CMP_GT_OQ); }
inline Doubles is_positive(Doubles x) { return _mm256_cmp_pd(x, zero(x), _CMP_GT_OQ); }

#include "block.inl"
// After block.inl, which says how many elements a vector has.
#include "update.inl"

}  // namespace

const Kernels kAvx2 = {"avx2", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
