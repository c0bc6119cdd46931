// One vector type per accumulation type, from the widest registers that this translation unit may use.
// All arithmetic beyond + - * / is here; a fused multiply-add is explicit (the build passes -ffp-contract=off), so bits do not depend on the optimiser.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(CUDA_OPS_AVX512) || defined(CUDA_OPS_AVX2)
#include <immintrin.h>
#endif

#define CUDA_OPS_INLINE inline __attribute__((always_inline))

namespace {

#if defined(CUDA_OPS_AVX512)
constexpr int VECTOR_BYTES = 64;
#elif defined(CUDA_OPS_AVX2)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int lanes = VECTOR_BYTES / 4;
  typedef float type __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct Vec<double> {
  static constexpr int lanes = VECTOR_BYTES / 8;
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t integers __attribute__((vector_size(VECTOR_BYTES)));
};

template <class A>
using vec = typename Vec<A>::type;
template <class A>
using integers = typename Vec<A>::integers;
template <class A>
using integer = decltype(integers<A>{}[0] + 0);  // as wide as A

template <class V, class A>
CUDA_OPS_INLINE V load_as(const A* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A>
CUDA_OPS_INLINE vec<A> load(const A* p) {
  return load_as<vec<A>>(p);
}
template <class A>
CUDA_OPS_INLINE void store(A* p, vec<A> v) {
  memcpy(p, &v, sizeof v);
}
// Past the caches, to an aligned place: what is written once and not read soon need not be read from memory first.
template <class A>
CUDA_OPS_INLINE void stream(A* p, vec<A> v) {
#if defined(CUDA_OPS_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(CUDA_OPS_AVX2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  store(p, v);
#endif
}
// Other threads see what was streamed before.
inline void finish_streams() {
#if defined(CUDA_OPS_AVX512) || defined(CUDA_OPS_AVX2)
  _mm_sfence();
#endif
}
#if defined(CUDA_OPS_AVX512)
CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)_mm512_set1_ps(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)_mm512_set1_pd(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
  return (vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
// The first `count` lanes; the others are `fill` and their memory is not touched.
CUDA_OPS_INLINE vec<float> load_part(const float* p, int64_t count, float fill = 0) {
  return (vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << count) - 1), p);
}
CUDA_OPS_INLINE vec<double> load_part(const double* p, int64_t count, double fill = 0) {
  return (vec<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8((1u << count) - 1), p);
}
CUDA_OPS_INLINE void store_part(float* p, vec<float> v, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v); }
CUDA_OPS_INLINE void store_part(double* p, vec<double> v, int64_t count) { _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v); }
// base[index[i]] in each lane.
CUDA_OPS_INLINE vec<float> gather(const float* base, const int32_t* index) {
  return (vec<float>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, _mm512_loadu_si512(index), base, 4);
}
CUDA_OPS_INLINE vec<double> gather(const double* base, const int32_t* index) {
  return (vec<double>)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, _mm256_loadu_si256((const __m256i*)index), base, 8);
}
// table[index[i]] in each lane; the table has `count` entries and room for whole vectors behind them.
CUDA_OPS_INLINE vec<float> lookup(const float* table, int64_t count, const int32_t* index) {
  if (count > 32) return gather(table, index);
  return (vec<float>)_mm512_permutex2var_ps(_mm512_loadu_ps(table), _mm512_loadu_si512(index), _mm512_loadu_ps(table + 16));
}
CUDA_OPS_INLINE vec<double> lookup(const double* table, int64_t, const int32_t* index) { return gather(table, index); }
// a > b ? a : b, so b where one of them is NaN; `lesser` alike. The masks are full: without one GCC 12 warns of its own header.
CUDA_OPS_INLINE vec<float> larger(vec<float> a, vec<float> b) { return (vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
CUDA_OPS_INLINE vec<double> larger(vec<double> a, vec<double> b) { return (vec<double>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b); }
CUDA_OPS_INLINE vec<float> lesser(vec<float> a, vec<float> b) { return (vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
CUDA_OPS_INLINE vec<double> lesser(vec<double> a, vec<double> b) { return (vec<double>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b); }
// x 2^m for whole m, rounded once.
CUDA_OPS_INLINE vec<float> times_power(vec<float> x, vec<float> m) { return (vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)m); }
CUDA_OPS_INLINE vec<double> times_power(vec<double> x, vec<double> m) { return (vec<double>)_mm512_maskz_scalef_pd(0xff, (__m512d)x, (__m512d)m); }
// One word of 32 bits to a lane.
CUDA_OPS_INLINE void load_words(const uint32_t* p, Vec<float>::integers& v) { memcpy(&v, p, sizeof v); }
CUDA_OPS_INLINE void load_words(const uint32_t* p, Vec<double>::integers& v) { v = (Vec<double>::integers)_mm512_maskz_cvtepu32_epi64(0xff, _mm256_loadu_si256((const __m256i*)p)); }
// One bit a lane: a >= b, signed.
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<float>::integers a, Vec<float>::integers b) { return _mm512_cmpge_epi32_mask((__m512i)a, (__m512i)b); }
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<double>::integers a, Vec<double>::integers b) { return _mm512_cmpge_epi64_mask((__m512i)a, (__m512i)b); }
// Stores the marked lanes one after the other and returns how many; writes a whole vector.
CUDA_OPS_INLINE int64_t store_marked(int32_t* to, Vec<float>::integers v, uint32_t lanes) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(lanes), (__m512i)v));
  return __builtin_popcount(lanes);
}
CUDA_OPS_INLINE int64_t store_marked(int64_t* to, Vec<double>::integers v, uint32_t lanes) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(__mmask8(lanes), (__m512i)v));
  return __builtin_popcount(lanes);
}
#elif defined(CUDA_OPS_AVX2)
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
#else
CUDA_OPS_INLINE vec<float> set(float x) { return vec<float>{x, x, x, x}; }
CUDA_OPS_INLINE vec<double> set(double x) { return vec<double>{x, x}; }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return a * b + c; }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) { return a * b + c; }
template <class V>
CUDA_OPS_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
CUDA_OPS_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}
#endif

#if !defined(CUDA_OPS_AVX512)
// In two factors, so that subnormal results round once; |m| below twice the largest exponent.
template <int mantissa_bits, int bias, class V, class I>
CUDA_OPS_INLINE V times_two_powers(V x, I exponent) {
  const I first = exponent >> 1, second = exponent - first;
  return x * (V)((first + bias) << mantissa_bits) * (V)((second + bias) << mantissa_bits);
}
CUDA_OPS_INLINE vec<float> times_power(vec<float> x, vec<float> m) {
  const vec<float> rounder = set(12582912.0f);
  return times_two_powers<23, 127>(x, (Vec<float>::integers)(m + rounder) - (Vec<float>::integers)rounder);
}
CUDA_OPS_INLINE vec<double> times_power(vec<double> x, vec<double> m) {
  const vec<double> rounder = set(6755399441055744.0);
  return times_two_powers<52, 1023>(x, (Vec<double>::integers)(m + rounder) - (Vec<double>::integers)rounder);
}
template <class A>
inline vec<A> load_part(const A* p, int64_t count, A fill = 0) {
  vec<A> v = set(fill);
  memcpy(&v, p, size_t(count) * sizeof(A));
  return v;
}
template <class A>
inline void store_part(A* p, vec<A> v, int64_t count) {
  memcpy(p, &v, size_t(count) * sizeof(A));
}
template <class A>
CUDA_OPS_INLINE vec<A> gather(const A* base, const int32_t* index) {
  vec<A> v;
  for (int i = 0; i < Vec<A>::lanes; ++i) v[i] = base[index[i]];
  return v;
}
template <class A>
CUDA_OPS_INLINE vec<A> lookup(const A* table, int64_t, const int32_t* index) {
  return gather(table, index);
}
template <class I>
CUDA_OPS_INLINE void load_words(const uint32_t* p, I& v) {
  for (unsigned i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = decltype(v[0] + 0)(p[i]);
}
template <class T, class I>
inline int64_t store_marked(T* to, I v, uint32_t lanes) {
  int64_t count = 0;
  for (; lanes; lanes &= lanes - 1) to[count++] = v[__builtin_ctz(lanes)];
  return count;
}
#if !defined(CUDA_OPS_AVX2)
template <class I>
CUDA_OPS_INLINE uint32_t lanes_at_least(I a, I b) {
  uint32_t bits = 0;
  for (unsigned i = 0; i < sizeof(a) / sizeof(a[0]); ++i) bits |= uint32_t(a[i] >= b[i]) << i;
  return bits;
}
#endif
#endif

// i in lane i, and 2^i.
template <class A>
CUDA_OPS_INLINE integers<A> lane_numbers() {
  integers<A> numbers;
  for (int i = 0; i < Vec<A>::lanes; ++i) numbers[i] = i;
  return numbers;
}
template <class A>
CUDA_OPS_INLINE integers<A> lane_bits() {
  integers<A> bits;
  for (int i = 0; i < Vec<A>::lanes; ++i) bits[i] = integer<A>(1) << i;
  return bits;
}

// Words of 64 bits, and how many are set in each.
typedef int64_t Words __attribute__((vector_size(VECTOR_BYTES)));
constexpr int WORD_LANES = VECTOR_BYTES / 8;
#if defined(CUDA_OPS_AVX512)
CUDA_OPS_INLINE Words ones_of(Words x) { return (Words)_mm512_popcnt_epi64((__m512i)x); }
#elif defined(CUDA_OPS_AVX2)
CUDA_OPS_INLINE Words ones_of(Words x) {
  const __m256i ones_of_nibble = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15), low = _mm256_and_si256((__m256i)x, nibble), high = _mm256_and_si256(_mm256_srli_epi16((__m256i)x, 4), nibble);
  const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(ones_of_nibble, low), _mm256_shuffle_epi8(ones_of_nibble, high));
  return (Words)_mm256_sad_epu8(ones, _mm256_setzero_si256());
}
#else
CUDA_OPS_INLINE Words ones_of(Words x) {
  for (int i = 0; i < WORD_LANES; ++i) x[i] = __builtin_popcountll(uint64_t(x[i]));
  return x;
}
#endif

// Square transpose of `lanes` vectors by log2(lanes) perfect shuffles.
template <class A, int... lane>
CUDA_OPS_INLINE void transpose_lanes(vec<A>* rows) {
  constexpr int count = sizeof...(lane);
  vec<A> other[count];
  for (int width = 1; width < count; width *= 2) {
    for (int i = 0; i < count / 2; ++i) {
      other[2 * i] = __builtin_shufflevector(rows[i], rows[i + count / 2], (lane / 2 + (lane % 2) * count)...);
      other[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + count / 2], (lane / 2 + count / 2 + (lane % 2) * count)...);
    }
    for (int i = 0; i < count; ++i) rows[i] = other[i];
  }
}
#if defined(CUDA_OPS_AVX512)
// 16 x 16 by shuffles that keep to quarters of a register, then of whole quarters: twice as fast as shuffles across all of it.
CUDA_OPS_INLINE void transpose_quarters(vec<float>* rows) {
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
#endif
template <class A>
CUDA_OPS_INLINE void transpose(vec<A>* rows) {
  constexpr int count = Vec<A>::lanes;
#if defined(CUDA_OPS_AVX512)
  if constexpr (count == 16) return transpose_quarters(rows);
#endif
  if constexpr (count == 2) transpose_lanes<A, 0, 1>(rows);
  if constexpr (count == 4) transpose_lanes<A, 0, 1, 2, 3>(rows);
  if constexpr (count == 8) transpose_lanes<A, 0, 1, 2, 3, 4, 5, 6, 7>(rows);
  if constexpr (count == 16) transpose_lanes<A, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(rows);
}

}  // namespace
