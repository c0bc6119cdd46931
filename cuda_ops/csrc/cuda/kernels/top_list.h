// The top keys of a cluster: ascending token positions, then -1.
#pragma once
#include "device.h"

namespace {

// Of the first entry that is not below a position. Read without a sign, -1 is larger than every position: the whole list ascends.
template <class Index>
CUDA_OPS_DEVICE Index slot_from(const int32_t* list, Index K, Index position) {
  Index low = 0, high = K;
  CUDA_OPS_UNROLL(1)
  while (low < high) {
    const Index middle = (low + high) / 2;
    if (uint32_t(list[middle]) < uint32_t(position)) low = middle + 1;
    else high = middle;
  }
  return low;
}
CUDA_OPS_DEVICE int64_t slot_of(const int32_t* list, int64_t K, int64_t position) {
  const int64_t slot = slot_from(list, K, position);
  return slot < K && list[slot] == position ? slot : -1;
}
CUDA_OPS_DEVICE bool holds(const int32_t* list, int64_t K, int64_t position) { return slot_of(list, K, position) >= 0; }

}  // namespace
