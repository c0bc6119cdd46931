// The top keys of a cluster: ascending token positions, then -1.
#pragma once
#include "device.h"

namespace {

// Read without a sign, -1 is larger than every position: the whole list ascends.
CUDA_OPS_DEVICE int64_t slot_of(const int32_t* list, int64_t K, int64_t position) {
  int64_t low = 0, high = K;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (uint32_t(list[middle]) < uint32_t(position)) low = middle + 1;
    else high = middle;
  }
  return low < K && list[low] == position ? low : -1;
}
CUDA_OPS_DEVICE bool holds(const int32_t* list, int64_t K, int64_t position) { return slot_of(list, K, position) >= 0; }

// For a warp: whether the tokens number `lane`, WARP + lane, … of a piece of LENGTH are on a list. Their positions ascend, `count` of them, and INT32_MAX up to LENGTH.
// A long list is searched; of a short one each key is looked up among the positions, which lie in shared memory.
template <int LENGTH>
CUDA_OPS_DEVICE void find_listed(const int32_t* list, int64_t K, const int32_t* position, int64_t count, bool (&listed)[LENGTH / WARP]) {
  constexpr int SIDES = LENGTH / WARP, SHORT_LIST = 256;
  const int lane = device::thread() % WARP;
  if (K > SHORT_LIST) {
    CUDA_OPS_UNROLL(SIDES)
    for (int side = 0; side < SIDES; ++side) listed[side] = side * WARP + lane < count && holds(list, K, position[side * WARP + lane]);
    return;
  }
  int32_t found[SIDES] = {};
  for (int slot = lane; slot - lane < K; slot += WARP) {
    const int32_t key = slot < K ? list[slot] : -1;
    int j = 0;
    CUDA_OPS_UNROLL(7)
    for (int step = LENGTH / 2; step; step /= 2) j += position[j + step - 1] < key ? step : 0;
    const int32_t bit = key >= 0 && position[j] == key ? int32_t(1u << j % WARP) : 0;
    CUDA_OPS_UNROLL(SIDES)
    for (int side = 0; side < SIDES; ++side) found[side] |= j / WARP == side ? bit : 0;
  }
  CUDA_OPS_UNROLL(SIDES)
  for (int side = 0; side < SIDES; ++side) {
    for (int lanes = 1; lanes < WARP; lanes *= 2) found[side] |= device::shuffle_xor(found[side], lanes);
    listed[side] = uint32_t(found[side]) >> lane & 1;
  }
}

}  // namespace
