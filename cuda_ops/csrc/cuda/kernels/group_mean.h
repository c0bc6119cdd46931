#pragma once
#include "groups.h"

namespace cuda_ops::launch {

// The mean of scale * x over the members of each cluster, (B, H, C, D); 0 for a cluster without.
void group_mean(const Vectors& x, const Tokens& tokens, const Groups& groups, int64_t B, int64_t H, int64_t D, int64_t C, float scale, float* means, Stream stream);

}  // namespace cuda_ops::launch
