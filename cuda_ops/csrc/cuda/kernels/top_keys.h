#pragma once
#include "budgets.h"

namespace cuda_ops::launch {

// The min(topk, n) largest scores of each cluster: ascending token positions, then -1, (B, H, C, K); only -1 in rows that count as empty and in clusters that the
// row's step does not have. NaN is the largest, -0 equals +0; of equal scores the lowest valid index.
void top_keys(const float* scores, const Tokens& tokens, int64_t B, int64_t H, const Budgets& budgets, int32_t* top_keys, Stream stream);

}  // namespace cuda_ops::launch
