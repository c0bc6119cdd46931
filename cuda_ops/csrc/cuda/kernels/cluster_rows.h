#pragma once
#include "budgets.h"

namespace cuda_ops::launch {

// One side of Euclidean K-means: the rows of x in `heads` heads, in as many clusters as the row's step says for this side.
struct RowClusters {
  Vectors x;
  int64_t heads, C;       // C: the most of all steps
  bool keys;              // key_clusters of the step, else clusters
  float* centroids;       // (B, heads, C, D)
  float* half_norms;      // (B, heads, C): |c|^2 / 2
  int32_t* memory;        // (B, heads, cluster_rows_memory())
  int32_t* assignment;    // (B, heads * copies, N) by token position, -1 where a token is not valid
  int64_t copies;         // query heads that get the assignment of a key head
};

// Clusters the rows of all sides (1 or 2 of them) in two launches: the rounds on the samples, a block for each head, then every token to its nearest centroid.
void cluster_rows(const RowClusters* sides, int count, const Tokens& tokens, const Budgets& budgets, int64_t B, int64_t D, int64_t rounds, Stream stream);
// Integers for one head: N tokens, C clusters at most, `sample` the largest of all steps.
int64_t cluster_rows_memory(int64_t N, int64_t C, int64_t sample);

}  // namespace cuda_ops::launch
