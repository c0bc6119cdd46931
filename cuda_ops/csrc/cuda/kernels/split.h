// float32 products on the tensor cores: a number is the sum of bfloat16 parts, and the product of two numbers the sum of those of their parts. A float32 number has
// three parts and its product with 16-bit data loses nothing that float32 would keep; bfloat16 data is one part, float16 data exactly two, float32 data three.
#pragma once
#include "device.h"

namespace {

constexpr int FLOAT_PARTS = 3;
template <class T>
constexpr int DATA_PARTS = 1;
template <>
constexpr int DATA_PARTS<float16> = 2;
template <>
constexpr int DATA_PARTS<float> = FLOAT_PARTS;

// x = parts[0] + parts[1] + … , the largest first, up to the rounding of the last one.
template <int COUNT>
CUDA_OPS_DEVICE void split(float x, bfloat16 (&parts)[COUNT]) {
  CUDA_OPS_UNROLL(COUNT)
  for (int i = 0; i < COUNT; ++i) {
    narrow(x, parts[i]);
    x -= widen(parts[i]);
  }
}

}  // namespace
