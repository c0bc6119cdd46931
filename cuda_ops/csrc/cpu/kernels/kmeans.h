// Euclidean K-means on the n valid tokens of one head.
#pragma once
#include "groups.h"

namespace {

// The centroid nearest to each listed row: the largest x.c - |c|^2 / 2, the lowest centroid where several are (and where no score is a number).
template <class A>
inline void assign_rows(const Rows<A>& x, int64_t n, const A* centroids, int64_t C, int64_t D, int32_t* assignment, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const ScratchMark before = mark(scratch);
  A *panel = take<A>(scratch, D * PANEL<A>), *scores = take<A>(scratch, C * PANEL<A>), *half_norm = take<A>(scratch, C);
  for (int64_t c = 0; c < C; ++c) {
    A norm = A(0);
    for (int64_t d = 0; d < D; ++d) norm += centroids[c * D + d] * centroids[c * D + d];
    half_norm[c] = norm / 2;
  }
  for (int64_t first = 0; first < n; first += PANEL<A>) {
    const int64_t count = n - first < PANEL<A> ? n - first : PANEL<A>;
    pack_panel(x, first, n - first, D, panel);
    product(centroids, D, C, panel, D, scores, PANEL<A>);
    vec<A> best[2] = {set(-infinity<A>()), set(-infinity<A>())};
    integers<A> nearest[2] = {};
    for (int64_t c = 0; c < C; ++c)
      for (int half = 0; half < 2; ++half) {
        const vec<A> score = load(scores + c * PANEL<A> + half * L) - set(half_norm[c]);
        const integers<A> nearer = score > best[half];
        best[half] = nearer ? score : best[half];
        nearest[half] = nearer ? integers<A>{} + integer<A>(c) : nearest[half];
      }
    integer<A> cluster[PANEL<A>];
    memcpy(cluster, nearest, sizeof cluster);
    for (int64_t t = 0; t < count; ++t) assignment[first + t] = int32_t(cluster[t]);
  }
  release(scratch, before);
}

// Centroid c starts from token floor(c n / C). `rounds` times the tokens floor(j n / S) of a sample are assigned and the centroids become their members' means
// (an empty one stays), S = min(n, max(sample, 4 C)); then every token is assigned.
template <class A>
inline void cluster_euclidean(const Rows<A>& x, int64_t n, int64_t C, int64_t rounds, int64_t sample, int64_t D, int32_t* assignment, Scratch& scratch) {
  const ScratchMark before = mark(scratch);
  const int64_t wanted = sample > 4 * C ? sample : 4 * C, S = n < wanted ? n : wanted;
  A* centroids = take<A>(scratch, C * D);
  for (int64_t c = 0; c < C; ++c) copy(centroids + c * D, x[c * n / C], size_t(D) * sizeof(A));
  int32_t *list = take<int32_t>(scratch, S), *sampled = take<int32_t>(scratch, S);
  for (int64_t j = 0; j < S; ++j) list[j] = int32_t(j * n / S);
  const Rows<A> rows = listed_rows(x, list, S, scratch);
  for (int64_t round = 0; round < rounds; ++round) {
    const ScratchMark here = mark(scratch);
    assign_rows(rows, S, centroids, C, D, sampled, scratch);
    const Groups groups = group_tokens(sampled, S, C, scratch);
    for (int64_t c = 0; c < C; ++c)
      if (groups.size(c)) mean_row(rows, groups.order + groups.first[c], groups.size(c), A(1), D, centroids + c * D);
    release(scratch, here);
  }
  assign_rows(x, n, centroids, C, D, assignment, scratch);
  release(scratch, before);
}

}  // namespace
