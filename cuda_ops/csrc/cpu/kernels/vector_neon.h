// Vectors of 16 bytes: NEON, which every 64-bit Arm processor has. What each function does stands in vector.h.
#pragma once
#include <arm_neon.h>

#include "vector_plain.h"  // vmaxq and vminq give NaN wherever one of the numbers is

namespace {

CUDA_OPS_INLINE vec<float> set(float x) { return (vec<float>)vdupq_n_f32(x); }
CUDA_OPS_INLINE vec<double> set(double x) { return (vec<double>)vdupq_n_f64(x); }
CUDA_OPS_INLINE vec<float> fma(vec<float> a, vec<float> b, vec<float> c) { return (vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
CUDA_OPS_INLINE vec<double> fma(vec<double> a, vec<double> b, vec<double> c) { return (vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<float>::integers a, Vec<float>::integers b) {
  return vaddvq_u32(vandq_u32((uint32x4_t)(a >= b), uint32x4_t{1, 2, 4, 8}));
}
CUDA_OPS_INLINE uint32_t lanes_at_least(Vec<double>::integers a, Vec<double>::integers b) {
  return uint32_t(vaddvq_u64(vandq_u64((uint64x2_t)(a >= b), uint64x2_t{1, 2})));
}
CUDA_OPS_INLINE Words ones_of(Words x) { return (Words)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8((uint8x16_t)x)))); }
constexpr bool LOOKS_UP_BYTES = true;
CUDA_OPS_INLINE Bytes look_up(const int8_t* table, Bytes x) { return (Bytes)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)x); }

inline float from_float16(uint16_t x) {
  __fp16 half;
  memcpy(&half, &x, 2);
  return half;
}
inline uint16_t to_float16(float x) {
  const __fp16 half = x;
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}
inline int64_t widen_vectors(const uint16_t* from, int64_t count, float* to) {
  int64_t d = 0;
  for (; d + 4 <= count; d += 4) vst1q_f32(to + d, vcvt_f32_f16((float16x4_t)vld1_u16(from + d)));
  return d;
}
inline int64_t narrow_vectors(const float* from, int64_t count, uint16_t* to) {
  int64_t d = 0;
  for (; d + 4 <= count; d += 4) vst1_u16(to + d, (uint16x4_t)vcvt_f16_f32(vld1q_f32(from + d)));
  return d;
}

// 32 registers.
constexpr int PRODUCT_ROWS = 13, SUM_ROWS = 6, SUM_VECTORS = 4, AHEAD_LINES = 4, AHEAD_STEPS = 16;

}  // namespace

#include "vector_lanes.h"
