#pragma once
#include "tail.h"

namespace cuda_ops {

// What the queries of a head share, by cluster: means (B, H, C, D), scores (B, H, C, N), the cells of the tail, and which cluster each key is in.
struct Refined {
  const float *means, *scores;
  Cells cells;
  const int32_t *key_assignment, *top_keys;
  int64_t band;
  float scale;
};

namespace launch {

// Step 5 of the method (see refined_clustered in ops.py); log_mass (B, H, N). Queries of no cluster are not written.
void refined_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, const Refined& refined,
                       const Budgets& budgets, const Vectors& out, float* log_mass, Stream stream);

}  // namespace launch
}  // namespace cuda_ops
