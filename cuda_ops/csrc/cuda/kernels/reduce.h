// Sums and maxima over the lanes of a warp, or over as many neighbours of it, in one fixed order: each of them gets the same bits.
#pragma once
#include "device.h"

namespace {

template <int LANES = WARP>
CUDA_OPS_DEVICE float warp_sum(float value) {
  for (int lanes = LANES / 2; lanes; lanes /= 2) value += device::shuffle_xor(value, lanes);
  return value;
}
// Of NaN and a number either may come out.
CUDA_OPS_DEVICE float warp_largest(float value) {
  for (int lanes = WARP / 2; lanes; lanes /= 2) value = larger(value, device::shuffle_xor(value, lanes));
  return value;
}
// The largest number; NaN where there is none.
template <int LANES = WARP>
CUDA_OPS_DEVICE float warp_largest_number(float value) {
  for (int lanes = LANES / 2; lanes; lanes /= 2) value = device::larger_number(value, device::shuffle_xor(value, lanes));
  return value;
}

// The sum over the block, in the order of its warps. `sums` has a place for each warp.
CUDA_OPS_DEVICE float block_sum(float value, float* sums) {
  value = warp_sum(value);
  if (device::thread() % WARP == 0) sums[device::thread() / WARP] = value;
  device::barrier();
  float total = sums[0];
  for (int w = 1; w < device::threads() / WARP; ++w) total += sums[w];
  device::barrier();
  return total;
}

}  // namespace
