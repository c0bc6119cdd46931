// The AVX-512 intrinsics that the kernels use, lane by lane as Intel's Intrinsics Guide defines them, for processors without these instructions.
//
// It is found in place of the compiler's header, which it includes: the types are its own, the functions these. One that is missing here stays the compiler's,
// which refuses to compile it without AVX-512. A lane that a mask leaves out does not touch memory.
#pragma once
#include_next <immintrin.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace by_lanes {

typedef int32_t Int32 __attribute__((vector_size(64)));
typedef int64_t Int64 __attribute__((vector_size(64)));

template <class V, class Lane>
inline __attribute__((always_inline)) V each(Lane lane) {
  V v;
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); ++i) v[i] = lane(i);
  return v;
}
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float scaled(float x, float power) { return ldexpf(x, int(floorf(power))); }
inline double scaled(double x, double power) { return ldexp(x, int(floor(power))); }

template <class V>
inline V fmadd(V a, V b, V c) {
  return each<V>([&](int i) { return fused(a[i], b[i], c[i]); });
}
// The second operand where one of them is not a number.
template <class V>
inline V max(V a, V b) {
  return each<V>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
template <class V>
inline V min(V a, V b) {
  return each<V>([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
template <class V>
inline V scalef(V x, V power) {
  return each<V>([&](int i) { return scaled(x[i], power[i]); });
}

template <class V>
inline V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class A>
inline V mask_load(V other, unsigned mask, const A* p) {
  return each<V>([&](int i) { return mask >> i & 1 ? p[i] : other[i]; });
}
template <class V, class A>
inline void mask_store(A* p, unsigned mask, V v) {
  for (int i = 0; i < int(sizeof v / sizeof *p); ++i)
    if (mask >> i & 1) p[i] = v[i];
}
template <class V, class Index, class A>
inline V gather(Index index, const A* base) {
  return each<V>([&](int i) { return base[index[i]]; });
}
inline void store(void* p, __m512i v) { memcpy(p, &v, sizeof v); }
inline void store_aligned(void* p, __m512i v) {
  if (uintptr_t(p) % sizeof v) __builtin_trap();
  store(p, v);
}

template <class V>
inline unsigned at_least(V a, V b) {
  unsigned mask = 0;
  for (int i = 0; i < int(sizeof a / sizeof a[0]); ++i) mask |= unsigned(a[i] >= b[i]) << i;
  return mask;
}
template <class V>
inline V compress(unsigned mask, V v) {
  V packed = {};
  int count = 0;
  for (int i = 0; i < int(sizeof v / sizeof v[0]); ++i)
    if (mask >> i & 1) packed[count++] = v[i];
  return packed;
}
inline Int64 popcnt(Int64 v) {
  return each<Int64>([&](int i) { return __builtin_popcountll(v[i]); });
}
inline __m512 permutex2var(__m512 low, Int32 index, __m512 high) {
  return each<__m512>([&](int i) { return index[i] & 16 ? high[index[i] & 15] : low[index[i] & 15]; });
}
// In each 16 bytes: the lower (half 0) or upper (half 1) numbers of a and b in turn.
template <class V>
inline V unpack(int half, V a, V b) {
  constexpr int L = int(16 / sizeof(a[0]));
  return each<V>([&](int i) {
    const int from = i / L * L + half * L / 2 + i % L / 2;
    return i % 2 ? b[from] : a[from];
  });
}
// Quarters of a register, two bits of `which` to each: the first two of the result are a's, the others b's.
inline __m512 shuffle_quarters(__m512 a, __m512 b, int which) {
  return each<__m512>([&](int i) {
    const int from = (which >> i / 4 * 2 & 3) * 4 + i % 4;
    return i < 8 ? a[from] : b[from];
  });
}

}  // namespace by_lanes

#define _mm512_set1_ps(x) (__m512{} + float(x))
#define _mm512_set1_pd(x) (__m512d{} + double(x))
#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_pd() (__m512d{})
#define _mm512_loadu_ps by_lanes::load<__m512>
#define _mm512_loadu_si512 by_lanes::load<__m512i>
#define _mm512_storeu_si512 by_lanes::store
#define _mm512_stream_si512 by_lanes::store_aligned
#define _mm512_mask_loadu_ps by_lanes::mask_load
#define _mm512_mask_loadu_pd by_lanes::mask_load
#define _mm512_mask_storeu_ps by_lanes::mask_store
#define _mm512_mask_storeu_pd by_lanes::mask_store
#define _mm512_mask_i32gather_ps(other, mask, index, base, scale) by_lanes::gather<__m512>((by_lanes::Int32)(index), base)
#define _mm512_mask_i32gather_pd(other, mask, index, base, scale) by_lanes::gather<__m512d>((__v8si)(index), base)
#define _mm512_fmadd_ps by_lanes::fmadd
#define _mm512_fmadd_pd by_lanes::fmadd
#define _mm512_maskz_max_ps(mask, a, b) by_lanes::max(a, b)
#define _mm512_maskz_max_pd(mask, a, b) by_lanes::max(a, b)
#define _mm512_maskz_min_ps(mask, a, b) by_lanes::min(a, b)
#define _mm512_maskz_min_pd(mask, a, b) by_lanes::min(a, b)
#define _mm512_maskz_scalef_ps(mask, x, power) by_lanes::scalef(x, power)
#define _mm512_maskz_scalef_pd(mask, x, power) by_lanes::scalef(x, power)
#define _mm512_maskz_cvtepu32_epi64(mask, words) __builtin_convertvector((__v8su)(words), by_lanes::Int64)
#define _mm512_cmpge_epi32_mask(a, b) by_lanes::at_least((by_lanes::Int32)(a), (by_lanes::Int32)(b))
#define _mm512_cmpge_epi64_mask(a, b) by_lanes::at_least((by_lanes::Int64)(a), (by_lanes::Int64)(b))
#define _mm512_maskz_compress_epi32(mask, v) (__m512i)by_lanes::compress(mask, (by_lanes::Int32)(v))
#define _mm512_maskz_compress_epi64(mask, v) (__m512i)by_lanes::compress(mask, (by_lanes::Int64)(v))
#define _mm512_popcnt_epi64(v) by_lanes::popcnt((by_lanes::Int64)(v))
#define _mm512_permutex2var_ps(low, index, high) by_lanes::permutex2var(low, (by_lanes::Int32)(index), high)
#define _mm512_maskz_unpacklo_ps(mask, a, b) by_lanes::unpack(0, a, b)
#define _mm512_maskz_unpackhi_ps(mask, a, b) by_lanes::unpack(1, a, b)
#define _mm512_maskz_unpacklo_pd(mask, a, b) by_lanes::unpack(0, a, b)
#define _mm512_maskz_unpackhi_pd(mask, a, b) by_lanes::unpack(1, a, b)
#define _mm512_maskz_shuffle_f32x4(mask, a, b, which) by_lanes::shuffle_quarters(a, b, which)
