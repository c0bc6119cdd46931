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
  constexpr int L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + L <= D; d += L) store(out + d, load(row + d) * set(scale));
  for (; d < D; ++d) out[d] = row[d] * scale;
}

template <class A, int V>
inline void mean_block(const Rows<A>& x, const int32_t* members, int64_t count, A scale, int64_t d, A* mean) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = set(A(0));
  for (int64_t i = 0; i < count; ++i) {
    if (i + AHEAD < count) prefetch_row(x[members[i + AHEAD]] + d, V * L);
    const A* row = x[members[i]] + d;
    for (int v = 0; v < V; ++v) sum[v] = fma(load(row + v * L), set(scale), sum[v]);
  }
  for (int v = 0; v < V; ++v) store(mean + d + v * L, sum[v] / set(A(count)));
}

// (sum over members, in order, of scale * x_i) / members; 0 for no members.
template <class A>
inline void mean_row(const Rows<A>& x, const int32_t* members, int64_t count, A scale, int64_t D, A* mean) {
  constexpr int64_t L = Vec<A>::lanes;
  if (!count) return clear(mean, size_t(D) * sizeof(A));
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L) mean_block<A, 4>(x, members, count, scale, d, mean);
  for (; d + L <= D; d += L) mean_block<A, 1>(x, members, count, scale, d, mean);
  if (d < D) {
    vec<A> sum = set(A(0));
    for (int64_t i = 0; i < count; ++i) sum = fma(load_part(x[members[i]] + d, D - d), set(scale), sum);
    store_part(mean + d, sum / set(A(count)), D - d);
  }
}

// The listed rows of `rows`, as rows.
template <class A>
inline Rows<A> listed_rows(const Rows<A>& rows, const int32_t* list, int64_t count, int64_t, Scratch& scratch) {
  if (!rows.position) return {rows.base, rows.stride, list};
  int32_t* position = take<int32_t>(scratch, count);
  for (int64_t i = 0; i < count; ++i) position[i] = rows.position[list[i]];
  return {rows.base, rows.stride, position};
}

template <class A>
inline Rows<A> listed_rows(const Tokens<A>& tokens, const int32_t* list, int64_t count, int64_t D, Scratch& scratch) {
  if (tokens.in_place()) return listed_rows(tokens.rows(), list, count, D, scratch);
  return copied_list(tokens, list, count, D, take<A>(scratch, count * D));
}

// The means of the listed clusters, (C, D).
template <class A>
inline A* cluster_means(const Rows<A>& x, const Groups& groups, const int32_t* cluster, int64_t C, A scale, int64_t D, Scratch& scratch) {
  A* means = take<A>(scratch, C * D);
  each(C, scratch, [&](int64_t c, Scratch&) { mean_row(x, groups.order + groups.first[cluster[c]], groups.size(cluster[c]), scale, D, means + c * D); });
  return means;
}

// The clusters that have members, ascending; returns their number.
inline int64_t filled_clusters(const Groups& groups, int64_t C, int32_t* cluster) {
  int64_t filled = 0;
  for (int64_t c = 0; c < C; ++c)
    if (groups.size(c)) cluster[filled++] = int32_t(c);
  return filled;
}

}  // namespace
