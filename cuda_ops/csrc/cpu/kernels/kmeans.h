// Euclidean K-means on the n valid tokens of one head.
#pragma once
#include "groups.h"

namespace {

template <class A>
struct Centroids {
  A *rows, *half_norm;  // (C, D), (C): |c|^2 / 2
  int64_t C;
};

template <class A>
inline void measure_norms(const Centroids<A>& centroids, int64_t D) {
  for (int64_t c = 0; c < centroids.C; ++c) centroids.half_norm[c] = row_product(centroids.rows + c * D, centroids.rows + c * D, D) / 2;
}

// The centroid nearest to each row of a panel: the largest x.c - |c|^2 / 2, the lowest centroid where several are (and where no score is a number).
template <class A>
inline void assign_panel(const A* panel, int64_t count, const Centroids<A>& centroids, int64_t D, int32_t* assignment, Ahead& ahead, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const ScratchMark before = mark(scratch);
  A* scores = take<A>(scratch, centroids.C * PANEL<A>);
  product(centroids.rows, D, centroids.C, panel, D, scores, PANEL<A>, ahead);
  vec<A> best[2] = {set(-infinity<A>()), set(-infinity<A>())};
  integers<A> nearest[2] = {};
  for (int64_t c = 0; c < centroids.C; ++c)
    for (int half = 0; half < 2; ++half) {
      const vec<A> score = load(scores + c * PANEL<A> + half * L) - set(centroids.half_norm[c]);
      const integers<A> nearer = score > best[half];
      best[half] = nearer ? score : best[half];
      nearest[half] = nearer ? integers<A>{} + integer<A>(c) : nearest[half];
    }
  integer<A> cluster[PANEL<A>];
  memcpy(cluster, nearest, sizeof cluster);
  for (int64_t t = 0; t < count; ++t) assignment[t] = int32_t(cluster[t]);
  release(scratch, before);
}

// Centroid c starts from token floor(c n / C). `rounds` times the tokens floor(j n / S) of a sample are assigned and the centroids become their members' means
// (an empty one stays), S = min(n, max(sample, 4 C)).
template <class A>
inline Centroids<A> sample_centroids(const Tokens<A>& x, int64_t n, int64_t C, int64_t rounds, int64_t sample, int64_t D, Scratch& scratch) {
  const Centroids<A> centroids{take<A>(scratch, C * D), take<A>(scratch, C), C};
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < C; ++c) copy_token(x, c * n / C, D, centroids.rows + c * D);
  const int64_t wanted = sample > 4 * C ? sample : 4 * C, S = smaller(n, wanted), panels = panel_count<A>(S);
  A* rows = take<A>(scratch, S * D);
  if (rounds)
    for (int64_t j = 0; j < S; ++j) {
      if (j + AHEAD < S) prefetch_token(x, (j + AHEAD) * n / S, D);
      copy_token(x, j * n / S, D, rows + j * D);
    }
  const Rows<A> sampled{rows, D, nullptr};
  const A* packed = pack_panels(sampled, rounds ? S : 0, D, scratch);
  int32_t* assignment = take<int32_t>(scratch, S);
  for (int64_t round = 0; round < rounds; ++round) {
    measure_norms(centroids, D);
    each(panels, scratch, [&](int64_t panel, Scratch& own) {
      const int64_t first = panel * PANEL<A>;
      assign_panel(packed + first * D, smaller(S - first, PANEL<A>), centroids, D, assignment + first, nothing_ahead, own);
    });
    const ScratchMark here = mark(scratch);
    const Groups groups = group_tokens(assignment, S, C, scratch);
    each(C, scratch, [&](int64_t c, Scratch&) {
      if (groups.size(c)) mean_row(sampled, groups.order + groups.first[c], groups.size(c), A(1), D, centroids.rows + c * D);
    });
    release(scratch, here);
  }
  measure_norms(centroids, D);
  release(scratch, before);
  return centroids;
}

// Every token to its nearest centroid; with `dense`, (n, D), the rows are copied on the way.
template <class A>
inline void assign_rows(const Tokens<A>& x, int64_t n, const Centroids<A>& centroids, int64_t D, int32_t* assignment, A* dense, Scratch& scratch) {
  each_panel(x, n, D, dense, scratch, [&](int64_t first, int64_t count, const A* panel, Ahead& ahead, Scratch& own) {
    assign_panel(panel, count, centroids, D, assignment + first, ahead, own);
  });
}

}  // namespace
