// Attention of centroids over all keys, and exact attention of a cluster's queries over a list of keys.
#pragma once
#include <math.h>

#include "groups.h"
#include "top_keys.h"

namespace {

inline float logarithm(float x) { return logf(x); }
inline double logarithm(double x) { return log(x); }
// In every lane.
template <class A>
inline vec<A> logarithms(vec<A> x) {
  for (int i = 0; i < Vec<A>::lanes; ++i) x[i] = logarithm(x[i]);
  return x;
}

// One centroid. In: its n scores, padded to whole vectors. Out, in place: the numerators with 0 on the top keys; the mass of the top keys, ln of the sum of all,
// and the sum itself (the divisor of what the numerators weigh).
template <class A>
inline A centroid_numerators(A* scores, int64_t n, const int32_t* top, int64_t K, A* top_mass, A* log_mass) {
  A largest, inside = A(0);
  const A total = softmax_numerators(scores, n, &largest);
  for (int64_t j = 0; j < K; ++j) {
    inside += scores[top[j]];
    scores[top[j]] = A(0);
  }
  *top_mass = inside / total;
  *log_mass = largest + logarithm(total);
  return total;
}

template <class A>
inline void divide_row(A* row, A divisor, int64_t D) {
  for (int64_t d = 0; d < D; ++d) row[d] /= divisor;
}

// The keys and values that a list of queries attends to exactly.
template <class A>
struct KeyTile {
  const A* panels;  // of the keys
  Rows<A> values;
  int64_t count;
};

// For each query, in blocks: visit(i, attended row before scaling, sum of numerators, largest score).
template <class A, class Visit>
inline void attend(const Rows<A>& q, const int32_t* queries, int64_t count, A scale, const KeyTile<A>& keys, int64_t D, Scratch& scratch, const Visit& visit) {
  const ScratchMark before = mark(scratch);
  const int64_t stride = panel_count<A>(keys.count) * PANEL<A>;
  A* scaled = take<A>(scratch, QUERY_BLOCK * D);
  A* scores = take<A>(scratch, QUERY_BLOCK * stride);
  A* attended = take<A>(scratch, QUERY_BLOCK * D);
  A total[QUERY_BLOCK], largest[QUERY_BLOCK];
  Ahead ahead = take_ahead<A>(QUERY_BLOCK, D, scratch);
  const Parts blocks(count, QUERY_BLOCK);
  for (int64_t block = 0; block < blocks.number; ++block) {
    const int64_t first = blocks.begin(block), later = blocks.begin(block + 1), here = later - first;
    for (int64_t r = 0; r < here; ++r) scale_row(q[queries[first + r]], scale, D, scaled + r * D);
    ahead.clear();
    ahead.add_rows(smaller(count - later, here), D * int64_t(sizeof(A)), [&](int64_t r) { return q[queries[later + r]]; });
    tile_scores(scaled, here, keys.panels, keys.count, D, scores, stride, ahead);
    for (int64_t r = 0; r < here; ++r) total[r] = softmax_numerators(scores + r * stride, keys.count, largest + r);
    weighted_sum(scores, stride, 1, here, keys.values, keys.count, D, false, attended, D, ahead);
    for (int64_t r = 0; r < here; ++r) visit(queries[first + r], attended + r * D, total[r], largest[r]);
  }
  release(scratch, before);
}

template <class A>
inline KeyTile<A> key_tile(const Rows<A>& k, const Rows<A>& v, const int32_t* list, int64_t count, int64_t D, Scratch& scratch) {
  const Rows<A> keys = listed_rows(k, list, count, D, scratch);
  return {pack_panels(keys, count, D, scratch), listed_rows(v, list, count, D, scratch), count};
}

// The same with the values copied: their rows lie far apart and every block of queries reads them again.
template <class A, template <class> class Source>
inline KeyTile<A> compact_tile(const Source<A>& k, const Source<A>& v, const int32_t* list, int64_t count, int64_t D, Scratch& scratch) {
  const Rows<A> values = copied_list(v, list, count, D, take<A>(scratch, count * D));
  return {pack_panels(listed_rows(k, list, count, D, scratch), count, D, scratch), values, count};
}

}  // namespace
