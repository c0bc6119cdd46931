// Clusters cut into segments of equally many members, so that a large one is the work of many blocks.
#pragma once
#include "scan.h"

namespace {

struct Segment {
  int32_t cluster, rank;  // of the first member
};

CUDA_OPS_DEVICE int32_t segments_of(int64_t members, int64_t length) { return int32_t((members + length - 1) / length); }

// Which cluster the segment number `segment` of a head belongs to; -1 if there are not so many. `first` are the clusters' bounds. Each warp finds it for itself.
CUDA_OPS_DEVICE Segment find_segment(const int32_t* first, int clusters, int length, int segment) {
  const int lane = device::thread() % WARP;
  int before = 0;
  for (int c0 = 0; c0 < clusters; c0 += WARP) {
    const int c = c0 + lane, own = c < clusters ? segments_of(first[c + 1] - first[c], length) : 0;
    const int up_to_here = before + warp_sum_up_to(own);
    const int found = WARP - device::ones(device::ballot(up_to_here > segment));  // lanes before the first that reaches it
    if (found < WARP) return {c0 + found, (segment - device::shuffle(up_to_here - own, found)) * length};
    before = device::shuffle(up_to_here, WARP - 1);
  }
  return {-1, 0};
}

}  // namespace
