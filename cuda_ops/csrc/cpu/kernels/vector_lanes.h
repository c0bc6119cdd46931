// What an instruction set without AVX-512's instructions for it does lane by lane, or in two steps. Included behind what the set has of its own.
#pragma once

namespace {

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

}  // namespace
