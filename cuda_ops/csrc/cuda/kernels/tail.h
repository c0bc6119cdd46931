#pragma once
#include "budgets.h"
#include "groups.h"

namespace cuda_ops {

// The cells of the tail: (B, H, C, M) and (B, H, C, M, D).
struct Cells {
  float *log_mass, *spread, *keys, *values;
};

namespace launch {

// Segments of equally many keys of one key cluster, at most: the shape of the memory of tail.
int64_t tail_segments(int64_t N, int64_t M);

// For each cell (c, m), over the keys of m outside the top keys of c, with weights e^(s_cj): log mass, weighted means of keys and values, weighted variance averaged
// over D. Without keys: -inf, 0, 0, 0. `groups` are the key clusters', of H / copies heads each of which serves `copies` query heads.
// `part_sums` is (B, H, segments, C, 2 D), `part_masses` (B, H, segments, C, 3).
void tail(const float* scores, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, int64_t copies,
          const int32_t* top_keys, const Budgets& budgets, float* part_sums, float* part_masses, const Cells& cells, Stream stream);

}  // namespace launch
}  // namespace cuda_ops
