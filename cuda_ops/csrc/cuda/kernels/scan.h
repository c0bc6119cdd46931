// Sums over the threads of a block, and places in lists in the order of a warp's lanes.
#pragma once
#include "device.h"

namespace {

// The sum of the values of the lanes up to this one. Integers: their sum needs no order.
CUDA_OPS_DEVICE int32_t warp_sum_up_to(int32_t value) {
  const int lane = device::thread() % WARP;
  for (int step = 1; step < WARP; step *= 2) {
    const int32_t other = device::shuffle(value, lane >= step ? lane - step : lane);
    if (lane >= step) value += other;
  }
  return value;
}

// The sum of the values of the threads before this one, and in `total` that of all. `sums` has a place for each warp.
CUDA_OPS_DEVICE int32_t sum_before(int32_t value, int32_t* sums, int32_t& total) {
  const int lane = device::thread() % WARP, warp = device::thread() / WARP;
  const int32_t up_to_here = warp_sum_up_to(value);
  if (lane == WARP - 1) sums[warp] = up_to_here;
  device::barrier();
  int32_t before = up_to_here - value;
  total = 0;
  for (int w = 0; w < device::threads() / WARP; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  device::barrier();
  return before;
}

// The place of this lane's member in the list of its cluster: behind next[cluster] by the lanes before it with the same one; next[cluster] goes behind the last.
// By a whole warp; -1 is no cluster, and its place nothing.
CUDA_OPS_DEVICE int32_t take_place(int32_t cluster, int32_t* next) {
  const bool listed = cluster >= 0;
  const uint32_t same = device::match(cluster);
  const int before = device::ones(same & ((1u << device::thread() % WARP) - 1));
  const int32_t start = listed ? next[cluster] : 0;
  device::warp_barrier();
  if (listed && before == 0) next[cluster] = start + device::ones(same);
  device::warp_barrier();
  return start + before;
}

}  // namespace
