// Tokens by cluster, and the cluster's mean.
#pragma once
#include "product.h"

namespace {

// Members of cluster c, ascending: order[first[c]] … order[first[c + 1] - 1]. Tokens assigned outside 0 … C - 1 belong to none.
struct Groups {
  int64_t* first;
  int32_t* order;
  int64_t size(int64_t c) const { return first[c + 1] - first[c]; }
};

inline Groups group_tokens(const int32_t* assignment, int64_t n, int64_t C, Scratch& scratch) {
  Groups groups{take<int64_t>(scratch, C + 2), take<int32_t>(scratch, n)};
  clear(groups.first, size_t(C + 2) * sizeof(int64_t));
  for (int64_t i = 0; i < n; ++i)
    if (assignment[i] >= 0 && assignment[i] < C) ++groups.first[assignment[i] + 2];
  for (int64_t c = 1; c <= C + 1; ++c) groups.first[c] += groups.first[c - 1];
  for (int64_t i = 0; i < n; ++i)
    if (assignment[i] >= 0 && assignment[i] < C) groups.order[groups.first[assignment[i] + 1]++] = int32_t(i);
  return groups;
}

template <class A>
inline void scale_row(const A* row, A scale, int64_t D, A* out) {
  for (int64_t d = 0; d < D; ++d) out[d] = row[d] * scale;
}

// (sum over members, in order, of scale * x_i) / members; 0 for no members.
template <class A>
inline void mean_row(const Rows<A>& x, const int32_t* members, int64_t count, A scale, int64_t D, A* mean) {
  for (int64_t d = 0; d < D; ++d) mean[d] = A(0);
  for (int64_t i = 0; i < count; ++i) {
    const A* row = x[members[i]];
    for (int64_t d = 0; d < D; ++d) mean[d] += row[d] * scale;
  }
  for (int64_t d = 0; d < D && count; ++d) mean[d] /= A(count);
}

}  // namespace
