// Clusters cut into segments of equally many members, so that a large one is the work of many blocks.
#pragma once
#include "scan.h"

namespace {

struct Segment {
  int32_t cluster, rank;  // of the first member
};

CUDA_OPS_DEVICE int32_t segments_of(int64_t members, int64_t length) { return int32_t((members + length - 1) / length); }

// Which cluster the segment number `segment` of a head belongs to; -1 if there are not so many. `first` are the clusters' bounds; `sums` has a place for each warp.
CUDA_OPS_DEVICE Segment find_segment(const int32_t* first, int64_t clusters, int64_t length, int64_t segment, int32_t* sums, Segment* found) {
  const int t = device::thread();
  if (t == 0) *found = {-1, 0};
  int64_t before = 0;
  for (int64_t c0 = 0; c0 < clusters && before <= segment; c0 += device::threads()) {
    const int64_t c = c0 + t;
    const int32_t own = c < clusters ? segments_of(first[c + 1] - first[c], length) : 0;
    int32_t all;
    const int64_t mine = before + sum_before(own, sums, all);
    if (segment >= mine && segment < mine + own) *found = {int32_t(c), int32_t((segment - mine) * length)};
    before += all;
  }
  device::barrier();
  return *found;
}

}  // namespace
