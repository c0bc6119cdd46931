#pragma once
#include "vectors.h"

namespace cuda_ops {

// The members of each cluster, as indices of valid tokens (see Tokens), ascending: those of cluster c of head h are order[first[c]] … order[first[c + 1] - 1].
// `order` is (B, H, N) and `first` (B, H, C + 1). Tokens assigned outside 0 … C - 1 belong to none.
struct Groups {
  const int32_t *order, *first;
};

// Into how many ranges group_tokens cuts the tokens: the shape of its memory.
int64_t group_parts(int64_t N);

namespace launch {
// What is to be listed: `assignment` is (B, H, N) by token position. `counts` and `starts` are (B, H, group_parts(N), C) for the work in between.
struct Grouping {
  const int32_t* assignment;
  int64_t C;
  int32_t *counts, *starts, *order, *first;
};
// Lists the members of the clusters of one or two assignments in two launches.
void group_tokens(const Grouping* sides, int count, const Tokens& tokens, int64_t B, int64_t H, Stream stream);
}  // namespace launch

}  // namespace cuda_ops
