#pragma once
#include "vectors.h"

namespace cuda_ops {

// The mean of scale * x over the members of each cluster, (B, H, C, D); 0 for a cluster without. Tokens assigned outside 0 … C - 1 belong to none.
void group_mean(const Vectors& x, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t D, int64_t C, float scale, float* means, Stream stream);

}  // namespace cuda_ops
