// Gradients of softmax(scale q k^T) v where every query of a cluster meets every key of the cluster's list. Exact attention is one cluster and one list of all.
#pragma once
#include "groups.h"

namespace cuda_ops {

struct Incoming {
  Vectors grad, q, k, v;
  Tokens tokens;
  Shape shape;
  float scale;
};

struct Lists {
  Groups queries;           // the members of each cluster; none: all valid tokens are those of the only one
  const int32_t* keys;      // (B, H, C, K) indices of valid tokens; none, like counts, where queries has none or K is 0
  const int32_t* counts;    // (B, H, C), how many of the K there are
  int64_t C, K;
};
inline Lists all_tokens(int64_t N) { return {{nullptr, nullptr}, nullptr, nullptr, 1, N}; }

namespace launch {

// Of each query, by valid index, (B, H, N, 3): its largest logit, 1 / the sum of e^(logit - largest), and the mean of grad . v_j over its keys: the product of
// grad and the output. Queries without keys have none.
void row_statistics(const Incoming& in, const Lists& lists, float* statistics, Stream stream);

// grad_q = scale (mass sum_j dlogit_ij k_j + mean_grad_c), dlogit_ij the gradient by the logits. `mass` (B, H, C) and `mean_grad` (B, H, C, D) of the cluster, or
// none: 1 and 0. Queries of no cluster are not written.
void query_gradients(const Incoming& in, const Lists& lists, const float* statistics, const float* mass, const float* mean_grad, const Vectors& grad_q,
                     Stream stream);

// grad_k and grad_v of all_tokens(), by valid tokens, summed over the query heads of the group.
void key_gradients(const Incoming& in, const float* statistics, const Vectors& grad_k, const Vectors& grad_v, Stream stream);

// What each cluster adds to the gradients of the keys in its list, (B, H, C, K, D) both. Slots behind the count are not written.
void listed_key_gradients(const Incoming& in, const Lists& lists, const float* statistics, const float* mass, float* slots_k, float* slots_v, Stream stream);

}  // namespace launch
}  // namespace cuda_ops
