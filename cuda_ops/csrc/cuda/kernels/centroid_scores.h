#pragma once
#include "budgets.h"

namespace cuda_ops::launch {

// scores (B, H, C, N) by token position = centroids (B, H, C, D) . k (B, H / group, N, D); -inf where a token is not valid. Scores of clusters that the row's step
// does not have are not written. A score depends on its centroid and its key alone: one chain of fused additions in the order of d, of 16-bit keys the sums of
// split_product.h.
void centroid_scores(const float* centroids, const Vectors& k, const Tokens& tokens, const Shape& shape, const Budgets& budgets, float* scores, Stream stream);

}  // namespace cuda_ops::launch
