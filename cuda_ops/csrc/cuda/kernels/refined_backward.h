// The gradients of refined_clustered, decisions held constant, as cpu/kernels/refined_backward.h writes them. Numbers on the way are float32. Each launcher adds to
// what the next ones read; every number is summed by one task in an order that valid indices, member ranks and list slots fix.
#pragma once
#include "full_attention_backward.h"
#include "tail.h"

namespace cuda_ops {

// Of one query: the largest logit, 1 / sum of e^(logit - largest), gradient . output, |delta|^2 / 2, and what multiplies delta in the gradient of delta.
struct QueryTotals {
  float largest, inverse, output, half, second;
};

// Of the cells, (B, H, C, M) and (B, H, C, M, D). `shift` is by the part of a cell's logit that the query brings.
struct CellGradients {
  float *log_mass, *spread, *shift, *keys, *values;
};

// Arrays of tokens and not of decisions are by valid index.
struct RefinedBackward {
  Incoming in;
  Budgets budgets;
  int64_t W, width;                                         // 2 W + 1 neighbours, 0 without a band
  const int32_t *query_clusters, *key_clusters, *top_keys;  // (B, H, N) twice, by token position, and (B, H, C, K)
  Groups queries, keys;                                     // the members of the clusters, keys of every query head too
  const float* means;                                       // (B, H, C, D)
  float* scores;                                            // (B, H, C, N) by token position; from tail on their gradients, of tokens with a key cluster
  Cells cells;
  // (B, H, N, width): what multiplies the query in a neighbour's key gradient, grad in its value gradient, and the gradient of its score. First the products x . k
  // and grad . v. 0 where there is nothing to exchange.
  float *band_keys, *band_values, *band_scores;
  QueryTotals* totals;                                      // (B, H, N)
  float* query_grads;                                       // (B, H, N, D): by the scaled query and by delta, not yet by the mean
  float *top_key_grads, *top_value_grads;                   // (B, H, C, K, D)
  CellGradients cell_grads;
  float *key_grads, *value_grads;                           // (B, H, N, D): through the tail and the scores
  float *mean_parts, *mean_grads;                           // (B, H, refined_mean_parts(N), C, D) and (B, H, C, D)
  Vectors grad_q, grad_k, grad_v;                           // 0 before
};

// Ranges of keys that add up the gradient of the means.
int64_t refined_mean_parts(int64_t N);

namespace launch {

// The products of each query with its band.
void refined_band_backward(const RefinedBackward& p, Stream stream);
// Weights of every query, its own gradient and the coefficients of its band.
void refined_queries_backward(const RefinedBackward& p, Stream stream);
// What the queries of a cluster give to its exact keys and its cells.
void refined_clusters_backward(const RefinedBackward& p, Stream stream);
// From the cells to their keys, values and scores, and from the scores to the keys.
void refined_tail_backward(const RefinedBackward& p, Stream stream);
// grad_k and grad_v.
void refined_keys_backward(const RefinedBackward& p, Stream stream);
// The gradient of the means, and grad_q.
void refined_means_backward(const RefinedBackward& p, Stream stream);

}  // namespace launch
}  // namespace cuda_ops
