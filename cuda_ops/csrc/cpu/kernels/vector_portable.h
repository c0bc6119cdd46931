// Vectors of 16 bytes in what the compiler makes of plain C++. What each function does stands in vector.h.
#pragma once
#include "vector_plain.h"

namespace {

CUDA_OPS_INLINE vec<float> set(float x) { return vec<float>{x, x, x, x}; }
CUDA_OPS_INLINE vec<double> set(double x) { return vec<double>{x, x}; }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return a * b + c; }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) { return a * b + c; }
template <class I>
CUDA_OPS_INLINE uint32_t lanes_at_least(I a, I b) {
  uint32_t bits = 0;
  for (unsigned i = 0; i < sizeof(a) / sizeof(a[0]); ++i) bits |= uint32_t(a[i] >= b[i]) << i;
  return bits;
}
CUDA_OPS_INLINE Words ones_of(Words x) {
  for (int i = 0; i < WORD_LANES; ++i) x[i] = __builtin_popcountll(uint64_t(x[i]));
  return x;
}
constexpr bool LOOKS_UP_BYTES = false;

inline int64_t widen_vectors(const uint16_t*, int64_t, float*) { return 0; }
inline int64_t narrow_vectors(const float*, int64_t, uint16_t*) { return 0; }
inline float from_float16(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = x & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude << 13));
  return bits_to_float(float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f) | sign);  // moves the exponent, subnormals included
}
inline uint16_t to_float16(float x) {
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000;
  const float magnitude = bits_to_float(bits & 0x7fffffff);
  if (magnitude != magnitude) return uint16_t(sign | 0x7e00);
  if (magnitude >= 65520.0f) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x1p-14f) return uint16_t(sign | (float_to_bits(magnitude + 0.5f) - float_to_bits(0.5f)));  // rounds at 2^-24
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + ((bits >> 13) & 1) - (112u << 23);
  return uint16_t(sign | (rounded >> 13));
}

constexpr int PRODUCT_ROWS = 5, SUM_ROWS = 5, SUM_VECTORS = 2, AHEAD_LINES = 4, AHEAD_STEPS = 16;

}  // namespace

#include "vector_lanes.h"
