#pragma once
#include "budgets.h"
#include "groups.h"

namespace cuda_ops {

// What the rest of the keys adds to exact_attention in the fused operators; (B, H, C, D), (B, H, C), (B, H, N). None of it in the stage.
struct Rest {
  const float *values, *centroid_log_mass;
  float* log_mass;
};

namespace launch {

// Each query's softmax over the top keys of its cluster, applied to the values, times the cluster's top mass; plus the rest. Queries of no cluster are not written.
void exact_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, const int32_t* top_keys,
                     const float* top_mass, const Budgets& budgets, float scale, const Rest& rest, const Vectors& out, Stream stream);

}  // namespace launch
}  // namespace cuda_ops
