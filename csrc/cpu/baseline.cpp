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
constexpr int kVectors = 4;

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
// The sign is dropped, as every caller would.
inline Floats widen_halves(const uint16_t* p) {
    const __m128i half = _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
    const __m128i bits = _mm_and_si128(half, _mm_set1_epi32(0x7fff));
    const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(bits, 13)), _mm_set1_ps(0x1p112f));
    const __m128i special = _mm_cmpgt_epi32(bits, _mm_set1_epi32(0x7bff));
    return _mm_or_ps(scaled, _mm_castsi128_ps(_mm_and_si128(special, _mm_set1_epi32(0x7f800000))));
}
inline Floats even_floats(Words w) { return _mm_castsi128_ps(_mm_slli_epi32(w, 16)); }
inline Floats odd_floats(Words w) { return _mm_castsi128_ps(_mm_and_si128(w, _mm_set1_epi32(int(0xffff0000u)))); }

inline Doubles magnitude(Doubles x) { return _mm_andnot_pd(_mm_set1_pd(-0.0), x); }
inline Floats magnitude(Floats x) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), x); }
inline Words magnitude(Words w) { return _mm_and_si128(w, _mm_set1_epi16(0x7fff)); }
inline Words maximum(Words x, Words y) { return _mm_max_epi16(x, y); }

inline Doubles add(Doubles x, Doubles y) { return _mm_add_pd(x, y); }
inline Floats add(Floats x, Floats y) { return _mm_add_ps(x, y); }
inline Doubles multiply(Doubles x, Doubles y) { return _mm_mul_pd(x, y); }
inline Floats multiply(Floats x, Floats y) { return _mm_mul_ps(x, y); }
inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return add(multiply(x, y), z); }
inline Floats multiply_add(Floats x, Floats y, Floats z) { return add(multiply(x, y), z); }

inline double fold(Doubles x) { return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x))); }

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

#include "block.inl"

}  // namespace

const Kernels kBaseline = FUSED_PENALTIES_KERNELS("baseline");

}  // namespace fused_penalties
