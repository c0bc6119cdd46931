// Vectors of 64 bytes: AVX-512 with VPOPCNTDQ. What each function does stands in vector.h.
#pragma once
#include <immintrin.h>

#include "f16c.h"

namespace {

template <class A>
CUDA_OPS_INLINE void stream(A* p, vec<A> v) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
}
inline void finish_streams() { _mm_sfence(); }
CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)_mm512_set1_ps(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)_mm512_set1_pd(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
  return (vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
CUDA_OPS_INLINE vec<float> load_part(const float* p, int64_t count, float fill = 0) {
  return (vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << count) - 1), p);
}
CUDA_OPS_INLINE vec<double> load_part(const double* p, int64_t count, double fill = 0) {
  return (vec<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8((1u << count) - 1), p);
}
CUDA_OPS_INLINE void store_part(float* p, vec<float> v, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v); }
CUDA_OPS_INLINE void store_part(double* p, vec<double> v, int64_t count) { _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v); }
CUDA_OPS_INLINE vec<float> gather(const float* base, const int32_t* index) {
  return (vec<float>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, _mm512_loadu_si512(index), base, 4);
}
CUDA_OPS_INLINE vec<double> gather(const double* base, const int32_t* index) {
  return (vec<double>)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, _mm256_loadu_si256((const __m256i*)index), base, 8);
}
CUDA_OPS_INLINE vec<float> lookup(const float* table, int64_t count, const int32_t* index) {
  if (count > 32) return gather(table, index);
  return (vec<float>)_mm512_permutex2var_ps(_mm512_loadu_ps(table), _mm512_loadu_si512(index), _mm512_loadu_ps(table + 16));
}
CUDA_OPS_INLINE vec<double> lookup(const double* table, int64_t, const int32_t* index) { return gather(table, index); }
// These masks are full: without one GCC 12 warns of its own header.
CUDA_OPS_INLINE vec<float> larger(vec<float> a, vec<float> b) { return (vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
CUDA_OPS_INLINE vec<double> larger(vec<double> a, vec<double> b) { return (vec<double>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b); }
CUDA_OPS_INLINE vec<float> lesser(vec<float> a, vec<float> b) { return (vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
CUDA_OPS_INLINE vec<double> lesser(vec<double> a, vec<double> b) { return (vec<double>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b); }
template <class A>
constexpr A POWER_LOWERED = A(1);
CUDA_OPS_INLINE vec<float> times_power(vec<float> x, vec<float> m, vec<float>) { return (vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)m); }
CUDA_OPS_INLINE vec<double> times_power(vec<double> x, vec<double> m, vec<double>) { return (vec<double>)_mm512_maskz_scalef_pd(0xff, (__m512d)x, (__m512d)m); }
CUDA_OPS_INLINE void load_words(const uint32_t* p, Vec<float>::integers& v) { memcpy(&v, p, sizeof v); }
CUDA_OPS_INLINE void load_words(const uint32_t* p, Vec<double>::integers& v) { v = (Vec<double>::integers)_mm512_maskz_cvtepu32_epi64(0xff, _mm256_loadu_si256((const __m256i*)p)); }
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<float>::integers a, Vec<float>::integers b) { return _mm512_cmpge_epi32_mask((__m512i)a, (__m512i)b); }
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<double>::integers a, Vec<double>::integers b) { return _mm512_cmpge_epi64_mask((__m512i)a, (__m512i)b); }
CUDA_OPS_INLINE int64_t store_marked(int32_t* to, Vec<float>::integers v, uint32_t lanes) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(lanes), (__m512i)v));
  return __builtin_popcount(lanes);
}
CUDA_OPS_INLINE int64_t store_marked(int64_t* to, Vec<double>::integers v, uint32_t lanes) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(__mmask8(lanes), (__m512i)v));
  return __builtin_popcount(lanes);
}
CUDA_OPS_INLINE Words ones_of(Words x) { return (Words)_mm512_popcnt_epi64((__m512i)x); }
constexpr bool LOOKS_UP_BYTES = false;  // it counts words as fast

// 16 x 16 by shuffles that keep to quarters of a register, then of whole quarters: twice as fast as shuffles across all of it.
template <>
CUDA_OPS_INLINE void transpose<float>(vec<float>* rows) {
  vec<float> pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = (vec<float>)_mm512_maskz_unpacklo_ps(0xffff, (__m512)rows[i], (__m512)rows[i + 1]);
    pairs[i + 1] = (vec<float>)_mm512_maskz_unpackhi_ps(0xffff, (__m512)rows[i], (__m512)rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = (__m512d)pairs[i + j], high = (__m512d)pairs[i + j + 2];
      fours[i + 2 * j] = (vec<float>)_mm512_maskz_unpacklo_pd(0xff, low, high);
      fours[i + 2 * j + 1] = (vec<float>)_mm512_maskz_unpackhi_pd(0xff, low, high);
    }
  for (int j = 0; j < 4; ++j) {
    __m512 even[2], odd[2];
    for (int i = 0; i < 2; ++i) {
      even[i] = _mm512_maskz_shuffle_f32x4(0xffff, (__m512)fours[8 * i + j], (__m512)fours[8 * i + 4 + j], 0x88);
      odd[i] = _mm512_maskz_shuffle_f32x4(0xffff, (__m512)fours[8 * i + j], (__m512)fours[8 * i + 4 + j], 0xdd);
    }
    rows[j] = (vec<float>)_mm512_maskz_shuffle_f32x4(0xffff, even[0], even[1], 0x88);
    rows[4 + j] = (vec<float>)_mm512_maskz_shuffle_f32x4(0xffff, odd[0], odd[1], 0x88);
    rows[8 + j] = (vec<float>)_mm512_maskz_shuffle_f32x4(0xffff, even[0], even[1], 0xdd);
    rows[12 + j] = (vec<float>)_mm512_maskz_shuffle_f32x4(0xffff, odd[0], odd[1], 0xdd);
  }
}

// 32 registers.
constexpr int PRODUCT_ROWS = 13, SUM_ROWS = 6, SUM_VECTORS = 4, AHEAD_LINES = 8, AHEAD_STEPS = 8;

}  // namespace
