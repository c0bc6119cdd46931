// float16 by the F16C instructions, which processors with AVX2 or AVX-512 have.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

inline float from_float16(uint16_t x) { return _cvtsh_ss(x); }
inline uint16_t to_float16(float x) { return uint16_t(_cvtss_sh(x, 0)); }
// Compilers do not make them of the above.
inline int64_t widen_vectors(const uint16_t* from, int64_t count, float* to) {
  int64_t d = 0;
  for (; d + 8 <= count; d += 8) _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + d))));
  return d;
}
inline int64_t narrow_vectors(const float* from, int64_t count, uint16_t* to) {
  int64_t d = 0;
  for (; d + 8 <= count; d += 8) _mm_storeu_si128((__m128i*)(to + d), _mm256_cvtps_ph(_mm256_loadu_ps(from + d), 0));
  return d;
}

}  // namespace
