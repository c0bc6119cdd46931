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
// The first `count` lanes; the others are 0 and their memory is not touched.
template <class A>
inline vec<A> load_part(const A* p, int64_t count) {
  vec<A> v{};
  memcpy(&v, p, size_t(count) * sizeof(A));
  return v;
}
template <class A>
inline void store_part(A* p, vec<A> v, int64_t count) {
  memcpy(p, &v, size_t(count) * sizeof(A));
}

#if defined(CUDA_OPS_AVX512)
CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)_mm512_set1_ps(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)_mm512_set1_pd(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
  return (vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(CUDA_OPS_AVX2)
CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)_mm256_set1_ps(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)_mm256_set1_pd(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
  return (vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
CUDA_OPS_INLINE vec<float> set(float x) { return vec<float>{x, x, x, x}; }
CUDA_OPS_INLINE vec<double> set(double x) { return vec<double>{x, x}; }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return a * b + c; }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) { return a * b + c; }
#endif

template <class V>
CUDA_OPS_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

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
template <class A>
CUDA_OPS_INLINE void transpose(vec<A>* rows) {
  constexpr int count = Vec<A>::lanes;
  if constexpr (count == 2) transpose_lanes<A, 0, 1>(rows);
  if constexpr (count == 4) transpose_lanes<A, 0, 1, 2, 3>(rows);
  if constexpr (count == 8) transpose_lanes<A, 0, 1, 2, 3, 4, 5, 6, 7>(rows);
  if constexpr (count == 16) transpose_lanes<A, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(rows);
}

}  // namespace
