// What the gradient of improved clustered attention has beside that of exact attention. C clusters of every row, K top keys of each at most.
#pragma once
#include "full_attention_backward.h"

namespace cuda_ops::launch {

// The entries of top_keys (B, H, C, K) that name a valid token, as indices of valid tokens in the same order, then -1, and how many they are (B, H, C).
void list_top_keys(const int32_t* top_keys, const Tokens& tokens, int64_t B, int64_t H, int64_t C, int64_t K, int32_t* keys, int32_t* counts, Stream stream);

// With A_c the softmax of a cluster's scores and m_c its sum over the top keys: from scores (B, H, C, N) to |c| A_cj, 0 on the top keys, and
// from products (B, H, C, N), mean_grad_c . v_j, to the gradients by the scores; mass (B, H, C) = m_c. `statistics` are row_statistics of the members.
void centroid_gradients(const Tokens& tokens, const Lists& lists, int64_t B, int64_t H, const float* statistics, float* scores, float* products, float* mass,
                        Stream stream);

// means (B, H, C, D) = sum_j score_grad_cj k_j / |c|, 0 for a cluster without members. `part_sums` is (B, H, mean_gradient_parts(N), C, D).
void mean_gradients(const float* score_grad, const Vectors& k, const Tokens& tokens, const Shape& shape, const Groups& groups, int64_t C, float* part_sums,
                    float* means, Stream stream);
int64_t mean_gradient_parts(int64_t N);

// What a cluster has for the gradients of the keys: the weights of its two rows, and the sums for its top keys, (B, H, C, K, D).
struct ClusterGradients {
  const float *score_grad, *outside;    // (B, H, C, N): weights of the next two
  const float *centroids, *mean_grad;   // (B, H, C, D)
  const float *slots_k, *slots_v;
};

// grad_k_j = sum of score_grad_cj centroid_c + slots_k and grad_v_j = sum of outside_cj mean_grad_c + slots_v, over the group's query heads and their clusters.
void clustered_key_gradients(const ClusterGradients& in, const Tokens& tokens, const Shape& shape, const Lists& lists, const Vectors& grad_k,
                             const Vectors& grad_v, Stream stream);

}  // namespace cuda_ops::launch
