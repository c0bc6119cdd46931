#pragma once
#include "budgets.h"

namespace cuda_ops::launch {

// The tokens that one task adds up: the shape of its memory.
int64_t centroid_attention_parts(int64_t N);

// With A_c the softmax of scores_c over the valid tokens: rest (B, H, C, D) = sum of A_cj v_j outside of the top keys, top_mass (B, H, C) = A_c on them, log_mass.
// `part_sums` is (B, H, parts, C, D), `part_masses` (B, H, parts, C, 3).
void centroid_attention(const float* scores, const Vectors& v, const Tokens& tokens, const Shape& shape, const int32_t* top_keys, const Budgets& budgets,
                        float* part_sums, float* part_masses, float* rest, float* top_mass, float* log_mass, Stream stream);

}  // namespace cuda_ops::launch
