// The two-sided tail: for every pair of a query cluster c and a key cluster m, over the keys of m outside T_c, the mass and the weighted means.
#pragma once
#include "attention.h"

namespace {

template <class A>
struct Tails {
  A* log_mass;       // (C, M): ln Z_cm, -inf for a cell without keys
  A* spread;         // (C, M): sigma_cm
  A *keys, *values;  // (C, M, D): the means of the cell, 0 for one without keys
};

template <class A>
inline A square_distance(const A* a, const A* b, int64_t D) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum = set(A(0));
  int64_t d = 0;
  for (; d + L <= D; d += L) {
    const vec<A> difference = load(a + d) - load(b + d);
    sum = fma(difference, difference, sum);
  }
  if (d < D) {
    const vec<A> difference = load_part(a + d, D - d) - load_part(b + d, D - d);
    sum = fma(difference, difference, sum);
  }
  return sum_lanes<A>(sum);
}

// T_c of C clusters: `found[c]` valid indices at `keys + c * stride`.
struct TopLists {
  const int32_t *keys, *found;
  int64_t stride;
};

// Where each token stands in the order of the groups; -1 for those in none.
inline int32_t* rank_in_groups(const Groups& groups, int64_t n, int64_t M, Scratch& scratch) {
  int32_t* rank = take<int32_t>(scratch, n);
  for (int64_t j = 0; j < n; ++j) rank[j] = -1;
  for (int64_t i = 0; i < groups.first[M]; ++i) rank[groups.order[i]] = int32_t(i);
  return rank;
}

template <class A>
inline A segment_largest(const A* row, int64_t count) {
  constexpr int L = Vec<A>::lanes;
  vec<A> most = set(-infinity<A>());
  int64_t i = 0;
  for (; i + L <= count; i += L) most = larger(load(row + i), most);
  if (i < count) most = larger(load_part(row + i, count - i, -infinity<A>()), most);
  return largest_lane<A>(most);
}

// Scores of one query cluster to weights e^(s - largest of the cell), in the order of the key clusters; 0 on the top keys. Membership in T_c is known by the
// list, never by a weight of 0: `tail_size` counts the other keys of each cell.
template <class A>
inline void cell_weights(const A* scores, const Groups& groups, int64_t M, const int32_t* rank, const int32_t* key_cluster, const int32_t* top, int64_t K, A* weights,
                         A* largest, int64_t* tail_size) {
  constexpr int L = Vec<A>::lanes;
  const int64_t members = groups.first[M];
  int64_t i = 0;
  for (; i + L <= members; i += L) store(weights + i, gather(scores, groups.order + i));
  for (; i < members; ++i) weights[i] = scores[groups.order[i]];
  for (int64_t m = 0; m < M; ++m) tail_size[m] = groups.size(m);
  for (int64_t j = 0; j < K; ++j) {
    if (rank[top[j]] < 0) continue;
    weights[rank[top[j]]] = -infinity<A>();
    --tail_size[key_cluster[top[j]]];
  }
  for (int64_t m = 0; m < M; ++m) {
    A* segment = weights + groups.first[m];
    const int64_t count = groups.size(m);
    largest[m] = segment_largest(segment, count);
    const vec<A> shift = set(tail_size[m] ? largest[m] : A(0));
    for (i = 0; i + L <= count; i += L) store(segment + i, exponential<A>(load(segment + i) - shift));
    if (i < count) store_part(segment + i, exponential<A>(load_part(segment + i, count - i) - shift), count - i);
  }
}

template <class A>
struct Sums {
  A total, square;
};

// sum w and sum w x.
template <class A>
inline Sums<A> weight_sums(const A* weights, const A* x, int64_t count) {
  constexpr int L = Vec<A>::lanes;
  vec<A> total = set(A(0)), square = set(A(0));
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    total = total + load(weights + i);
    square = fma(load(weights + i), load(x + i), square);
  }
  if (i < count) {
    const vec<A> w = load_part(weights + i, count - i);
    total = total + w;
    square = fma(w, load_part(x + i, count - i), square);
  }
  return {sum_lanes<A>(total), sum_lanes<A>(square)};
}

// `scores` (C, stride) by valid index. The spread uses differences from the key cluster's centre: sum e |k - mu|^2 / sum e - |K - mu|^2, over D.
template <class A>
inline Tails<A> tails(const Rows<A>& k, const Rows<A>& v, int64_t n, const Groups& groups, int64_t M, const int32_t* key_cluster, const A* scores, int64_t stride,
                      const TopLists& top, int64_t C, int64_t D, Scratch& scratch) {
  const Tails<A> result{take<A>(scratch, C * M), take<A>(scratch, C * M), take<A>(scratch, C * M * D), take<A>(scratch, C * M * D)};
  const ScratchMark before = mark(scratch);
  const int64_t padded = round_up(n, Vec<A>::lanes);
  A *weights = take<A>(scratch, C * padded), *largest = take<A>(scratch, C * M), *center = take<A>(scratch, D), *away = take<A>(scratch, n);
  int64_t* tail_size = take<int64_t>(scratch, C * M);
  const int32_t* rank = rank_in_groups(groups, n, M, scratch);
  for (int64_t c = 0; c < C; ++c)
    cell_weights(scores + c * stride, groups, M, rank, key_cluster, top.keys + c * top.stride, top.found[c], weights + c * padded, largest + c * M, tail_size + c * M);
  const ScratchMark here = mark(scratch);
  for (int64_t m = 0; m < M; ++m, release(scratch, here)) {
    const int64_t first = groups.first[m], count = groups.size(m);
    const Rows<A> keys = listed_rows(k, groups.order + first, count, scratch), values = listed_rows(v, groups.order + first, count, scratch);
    mean_row(k, groups.order + first, count, A(1), D, center);
    for (int64_t i = 0; i < count; ++i) {
      if (i < ROW_BLOCK) prefetch_rows(values, i, 1, D);
      away[i] = square_distance(keys[i], center, D);
    }
    sums_by_block(weights + first, padded, C, keys, count, D, result.keys + m * D, M * D);
    sums_by_block(weights + first, padded, C, values, count, D, result.values + m * D, M * D);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t cell = c * M + m;
      A *key = result.keys + cell * D, *value = result.values + cell * D;
      if (!tail_size[cell]) {
        result.log_mass[cell] = -infinity<A>();
        result.spread[cell] = A(0);
        clear(key, size_t(D) * sizeof(A));
        clear(value, size_t(D) * sizeof(A));
        continue;
      }
      const Sums<A> sums = weight_sums(weights + c * padded + first, away, count);
      const A inverse = A(1) / sums.total;
      scale_row(key, inverse, D, key);
      scale_row(value, inverse, D, value);
      const A spread = (sums.square * inverse - square_distance(key, center, D)) / A(D);
      result.spread[cell] = spread < A(0) ? A(0) : spread;
      result.log_mass[cell] = largest[cell] + logarithm(sums.total);
    }
  }
  release(scratch, before);
  return result;
}

}  // namespace
