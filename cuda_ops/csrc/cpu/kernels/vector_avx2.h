// Vectors of 32 bytes: AVX2, FMA and F16C. What each function does stands in vector.h.
#pragma once
#include <immintrin.h>

#include "f16c.h"

namespace {

template <class A>
CUDA_OPS_INLINE void stream(A* p, vec<A> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
}
inline void finish_streams() { _mm_sfence(); }
CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)_mm256_set1_ps(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)_mm256_set1_pd(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
  return (vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
CUDA_OPS_INLINE vec<float> larger(vec<float> a, vec<float> b) { return (vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
CUDA_OPS_INLINE vec<double> larger(vec<double> a, vec<double> b) { return (vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b); }
CUDA_OPS_INLINE vec<float> lesser(vec<float> a, vec<float> b) { return (vec<float>)_mm256_min_ps((__m256)a, (__m256)b); }
CUDA_OPS_INLINE vec<double> lesser(vec<double> a, vec<double> b) { return (vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b); }
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<float>::integers a, Vec<float>::integers b) {
  return uint32_t(_mm256_movemask_ps((__m256)(a >= b)));
}
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<double>::integers a, Vec<double>::integers b) {
  return uint32_t(_mm256_movemask_pd((__m256d)(a >= b)));
}
CUDA_OPS_INLINE Words ones_of(Words x) {
  const __m256i ones_of_nibble = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15), low = _mm256_and_si256((__m256i)x, nibble), high = _mm256_and_si256(_mm256_srli_epi16((__m256i)x, 4), nibble);
  const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(ones_of_nibble, low), _mm256_shuffle_epi8(ones_of_nibble, high));
  return (Words)_mm256_sad_epu8(ones, _mm256_setzero_si256());
}
constexpr bool LOOKS_UP_BYTES = true;
CUDA_OPS_INLINE Bytes look_up(const int8_t* table, Bytes x) {
  return (Bytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), (__m256i)x);
}

// 16 registers.
constexpr int PRODUCT_ROWS = 6, SUM_ROWS = 6, SUM_VECTORS = 2, AHEAD_LINES = 4, AHEAD_STEPS = 16;

}  // namespace

#include "vector_lanes.h"
