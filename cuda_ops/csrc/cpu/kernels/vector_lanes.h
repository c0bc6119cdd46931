// What an instruction set without AVX-512's instructions for it does lane by lane, or in two steps. Included behind what the set has of its own.
#pragma once

namespace {

// Raised, so that the power is a normal number down to the least m, and a subnormal result is rounded once.
template <class A>
constexpr A POWER_LOWERED = sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-54);
CUDA_OPS_INLINE vec<float> times_power(vec<float> x, vec<float>, vec<float> rounded) {
  return x * (vec<float>)(((Vec<float>::integers)rounded + (127 + 24)) << 23);  // what `rounded` has besides m is shifted out
}
CUDA_OPS_INLINE vec<double> times_power(vec<double> x, vec<double>, vec<double> rounded) {
  return x * (vec<double>)(((Vec<double>::integers)rounded + (1023 + 54)) << 52);
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
