// refined_clustered on one (batch, head): each query attends to the K exact keys of its cluster, to M virtual keys that stand for the rest, and to its band.
#pragma once
#include "heads.h"
#include "kmeans.h"
#include "tail.h"

namespace {

template <class A>
inline A larger_of(A a, A b) {
  return a > b ? a : b;
}

// What the queries of one cluster share.
template <class A>
struct ClusterView {
  const A *mean, *scores;         // (D), (n)
  const uint8_t* is_top;          // (n)
  const A *log_mass, *spread;     // (M)
  const A* shift;                 // (M): ln Z_cm - mean . K_cm
  KeyTile<A> tile;                // K exact keys, then M virtual ones
  int64_t K, M, W;
  const int32_t* key_cluster;     // (n)
};

// Logits of the band of query i at distance -W … W: of the exact products and of what the tail already counted; both -inf where there is nothing to exchange.
template <class A>
inline void band_logits(const ClusterView<A>& view, const A* query, const A* virtual_logits, const Rows<A>& k, int64_t i, int64_t n, int64_t D, A* exact, A* counted) {
  const int64_t first = i < view.W ? view.W - i : 0, last = smaller(2 * view.W + 1, n - i + view.W);
  row_products(query, rows_from(k, i + first - view.W), last - first, D, exact + first);
  for (int64_t w = first; w < last; ++w) {
    const int64_t j = i + w - view.W;
    if (view.is_top[j]) {
      exact[w] = -infinity<A>();
      continue;
    }
    const int32_t m = view.key_cluster[j];
    if (m >= 0 && m < view.M) counted[w] = view.scores[j] + (virtual_logits[m] - view.log_mass[m]);
  }
}

template <class A>
CUDA_OPS_INLINE void prefetch_band(const ClusterView<A>& view, const Rows<A>& rows, int64_t i, int64_t n, int64_t D) {
  const int64_t first = i < view.W ? 0 : i - view.W, last = smaller(i + view.W + 1, n);
  if (view.W <= 8) prefetch_rows(rows, first, last - first, D);
}

template <class A>
struct Weighed {
  A total, largest;
};

// Turns the products of query x with its tile into numerators of one common maximum, and fills those of its band; returns the tile's sum and the maximum.
// `half` is |x - mean|^2 / 2; the second-order term of a cell is capped at 1.
template <class A>
inline Weighed<A> weigh_query(const ClusterView<A>& view, const A* x, A half, const Rows<A>& k, int64_t i, int64_t n, int64_t D, int64_t band, A* row, A* near, A* tail) {
  for (int64_t m = 0; m < view.M; ++m) {
    const A second = half * view.spread[m];
    row[view.K + m] += view.shift[m] + (second > A(1) ? A(1) : second);
  }
  for (int64_t w = 0; w < band; ++w) near[w] = tail[w] = -infinity<A>();
  if (view.W) band_logits(view, x, row + view.K, k, i, n, D, near, tail);
  const A largest = larger_of(row_largest(row, view.tile.count), row_largest(near, band));
  const A total = numerators(row, view.tile.count, largest);
  numerators(near, band, largest);
  numerators(tail, band, largest);
  return {total, largest};
}

template <class A>
inline void attend_refined(const ClusterView<A>& view, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, const int32_t* queries, int64_t count, A scale, int64_t n,
                           const HeadForward& head, A* log_mass, Scratch& scratch) {
  const ScratchMark before = mark(scratch);
  const int64_t D = head.sizes.D, keys = view.tile.count, stride = panel_count<A>(keys) * PANEL<A>, band = round_up(2 * view.W + 1, Vec<A>::lanes);
  A *scaled = take<A>(scratch, QUERY_BLOCK * D), *logits = take<A>(scratch, QUERY_BLOCK * stride), *out = take<A>(scratch, QUERY_BLOCK * D);
  A *exact = take<A>(scratch, QUERY_BLOCK * band), *counted = take<A>(scratch, QUERY_BLOCK * band);
  Weighed<A> weighed[QUERY_BLOCK];
  for (int64_t first = 0; first < count; first += QUERY_BLOCK) {
    const int64_t here = smaller(count - first, QUERY_BLOCK);
    for (int64_t r = 0; r < here; ++r) {
      scale_row(q[queries[first + r]], scale, D, scaled + r * D);
      if (first + here + r < count) prefetch_rows(q, queries[first + here + r], 1, D);
    }
    tile_scores(scaled, here, view.tile.panels, keys, D, logits, stride);
    for (int64_t r = 0; r < here; ++r) {
      if (view.W) {
        const int64_t i = queries[first + r], next = r + 1 < here ? queries[first + r + 1] : i;
        prefetch_band(view, k, next, n, D);
        prefetch_band(view, v, i, n, D);
      }
      const A half = square_distance(scaled + r * D, view.mean, D) / 2;
      weighed[r] = weigh_query(view, scaled + r * D, half, k, queries[first + r], n, D, band, logits + r * stride, exact + r * band, counted + r * band);
    }
    weighted_sum(logits, stride, 1, here, view.tile.values, keys, D, false, out, D);
    for (int64_t r = 0; r < here; ++r) {
      const int64_t i = queries[first + r];
      A total = weighed[r].total;
      if (view.W) {
        const int64_t begin = i < view.W ? view.W - i : 0, end = smaller(2 * view.W + 1, n - i + view.W);
        A *near = exact + r * band, *tail = counted + r * band;
        for (int64_t w = begin; w < end; ++w) {
          near[w] -= tail[w];
          total += near[w];
        }
        weighted_sum(near + begin, band, 1, 1, rows_from(v, i + begin - view.W), end - begin, D, true, out + r * D, D);
      }
      divide_row(out + r * D, total, D);
      write_row(head.out, head.valid.position[i], D, out + r * D);
      log_mass[i] = weighed[r].largest + logarithm(total);
    }
  }
  release(scratch, before);
}

// Gathers the exact and the virtual keys and values of cluster c; `tile_keys` are the keys as rows.
template <class A>
inline ClusterView<A> view_of_cluster(const Tails<A>& tail, int64_t c, const A* means, const A* scores, const uint8_t* is_top, const int32_t* top, int64_t K, int64_t M,
                                      int64_t W, const int32_t* key_cluster, const Rows<A>& k, const Rows<A>& v, int64_t D, const A** tile_keys, Scratch& scratch) {
  A *keys = take<A>(scratch, (K + M) * D), *values = take<A>(scratch, (K + M) * D), *shift = take<A>(scratch, M);
  for (int64_t j = 0; j < K; ++j) {
    copy(keys + j * D, k[top[j]], size_t(D) * sizeof(A));
    copy(values + j * D, v[top[j]], size_t(D) * sizeof(A));
  }
  copy(keys + K * D, tail.keys + c * M * D, size_t(M * D) * sizeof(A));
  copy(values + K * D, tail.values + c * M * D, size_t(M * D) * sizeof(A));
  for (int64_t m = 0; m < M; ++m) shift[m] = tail.log_mass[c * M + m] - row_product(means + c * D, keys + (K + m) * D, D);
  const KeyTile<A> tile{pack_panels(Rows<A>{keys, D, nullptr}, K + M, D, scratch), Rows<A>{values, D, nullptr}, K + M};
  *tile_keys = keys;
  return {means + c * D, scores, is_top, tail.log_mass + c * M, tail.spread + c * M, shift, tile, K, M, W, key_cluster};
}

template <class A>
inline void refined_rows(const HeadForward& head, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const int64_t n = head.valid.n, D = s.D, M = s.M, K = smaller(s.K, n);
  int32_t *query_cluster = take<int32_t>(scratch, n), *key_cluster = take<int32_t>(scratch, n);
  // Queries are clustered unscaled: the scale changes no distance's order.
  cluster_euclidean(q, n, s.C, head.iterations, head.sample, D, query_cluster, scratch);
  cluster_euclidean(k, n, M, head.iterations, head.sample, D, key_cluster, scratch);
  scatter_valid(query_cluster, head.valid, s.N, head.assignment);
  scatter_valid(key_cluster, head.valid, s.N, head.key_assignment);

  const Groups groups = group_tokens(query_cluster, n, s.C, scratch), key_groups = group_tokens(key_cluster, n, M, scratch);
  int32_t* cluster = take<int32_t>(scratch, smaller(s.C, n));
  const int64_t C = filled_clusters(groups, s.C, cluster), stride = panel_count<A>(n) * PANEL<A>;
  const A* means = cluster_means(q, groups, cluster, C, A(head.scale), D, scratch);
  A* scores = take<A>(scratch, C * stride);
  panel_scores(means, C, k, n, D, scores, stride, scratch);

  int32_t *top = take<int32_t>(scratch, C * K), *found = take<int32_t>(scratch, C);
  uint8_t* is_top = take<uint8_t>(scratch, C * n);
  clear(is_top, size_t(C * n));
  for (int64_t c = 0; c < C; ++c) {
    select_top(scores + c * stride, n, K, top + c * K, scratch);
    found[c] = int32_t(K);
    for (int64_t j = 0; j < K; ++j) is_top[c * n + top[c * K + j]] = 1;
  }
  write_all_top(head, groups, top, K, scratch);
  const Tails<A> tail = tails(k, v, n, key_groups, M, key_cluster, scores, stride, {top, found, K}, C, D, scratch);

  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < C; ++c, release(scratch, before)) {
    const A* keys;
    const ClusterView<A> view =
        view_of_cluster(tail, c, means, scores + c * stride, is_top + c * n, top + c * K, K, M, smaller(head.band, n), key_cluster, k, v, D, &keys, scratch);
    attend_refined(view, q, k, v, groups.order + groups.first[cluster[c]], groups.size(cluster[c]), A(head.scale), n, head, log_mass, scratch);
  }
}

template <class A>
void cluster_rows(const Slice& x, const Valid& valid, const Sizes& s, int64_t rounds, int64_t sample, int32_t* assignment, Scratch& scratch) {
  int32_t* clusters = take<int32_t>(scratch, valid.n);
  if (valid.n) cluster_euclidean(valid_rows<A>(x, valid, s.D, scratch), valid.n, s.C, rounds, sample, s.D, clusters, scratch);
  scatter_valid(clusters, valid, s.N, assignment);
}

// The marks of T_c, from token positions, for C clusters: the listed ones, or the first without a list. `index` leads from positions to valid indices.
inline uint8_t* mark_top(const int32_t* top_keys, const int32_t* cluster, int64_t C, const Sizes& s, int64_t n, const int32_t* index, int32_t* top, int32_t* found,
                         Scratch& scratch) {
  uint8_t* is_top = take<uint8_t>(scratch, C * n);
  clear(is_top, size_t(C * n));
  for (int64_t c = 0; c < C; ++c) {
    found[c] = int32_t(s.K ? valid_top(top_keys + (cluster ? cluster[c] : c) * s.K, s.K, s.N, index, top + c * s.K) : 0);
    for (int64_t j = 0; j < found[c]; ++j) is_top[c * n + top[c * s.K + j]] = 1;
  }
  return is_top;
}

template <class A>
inline A* gather_all_scores(const void* scores, const Valid& valid, const Sizes& s, int64_t stride, Scratch& scratch) {
  A* compact = take<A>(scratch, s.C * stride);
  for (int64_t c = 0; c < s.C; ++c) gather_scores(scores, s.N, c, valid, compact + c * stride);
  return compact;
}

// `keys` are the tokens that have a key cluster.
template <class A>
void tail(const void* scores, const Slice& k, const Slice& v, const int32_t* key_clusters, const int32_t* top_keys, const Sizes& s, void* log_mass, void* spread,
          void* tail_keys, void* tail_values, Scratch& scratch) {
  int32_t* position = take<int32_t>(scratch, s.N);
  Valid keys{position, 0};
  for (int64_t token = 0; token < s.N; ++token)
    if (key_clusters[token] >= 0 && key_clusters[token] < s.M) position[keys.n++] = int32_t(token);
  const int64_t stride = round_up(keys.n, Vec<A>::lanes);
  const int32_t* key_cluster = gather_valid(key_clusters, keys, scratch);
  const Groups groups = group_tokens(key_cluster, keys.n, s.M, scratch);
  int32_t *top = take<int32_t>(scratch, s.C * s.K), *found = take<int32_t>(scratch, s.C);
  mark_top(top_keys, nullptr, s.C, s, keys.n, index_of_position(keys, s.N, scratch), top, found, scratch);
  const A* compact = gather_all_scores<A>(scores, keys, s, stride, scratch);
  const Tails<A> result =
      tails(valid_rows<A>(k, keys, s.D, scratch), valid_rows<A>(v, keys, s.D, scratch), keys.n, groups, s.M, key_cluster, compact, stride, {top, found, s.K}, s.C, s.D, scratch);
  copy(log_mass, result.log_mass, size_t(s.C * s.M) * sizeof(A));
  copy(spread, result.spread, size_t(s.C * s.M) * sizeof(A));
  copy(tail_keys, result.keys, size_t(s.C * s.M * s.D) * sizeof(A));
  copy(tail_values, result.values, size_t(s.C * s.M * s.D) * sizeof(A));
}

// The last stage on its own: `head` holds the tensors and the decisions, the tail and the scores come from the other stages.
template <class A>
void refined_attention(const HeadForward& head, const void* centroids, const void* scores, const Cells& cells, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  const int64_t n = valid.n, stride = round_up(n, Vec<A>::lanes);
  const Rows<A> q = valid_rows<A>(head.q, valid, s.D, scratch), k = valid_rows<A>(head.k, valid, s.D, scratch), v = valid_rows<A>(head.v, valid, s.D, scratch);
  const Groups groups = group_tokens(gather_valid(head.assignment, valid, scratch), n, s.C, scratch);
  const int32_t* key_cluster = gather_valid(head.key_assignment, valid, scratch);
  int32_t *top = take<int32_t>(scratch, s.C * s.K), *found = take<int32_t>(scratch, s.C);
  const uint8_t* is_top = mark_top(head.top_keys, nullptr, s.C, s, n, index_of_position(valid, s.N, scratch), top, found, scratch);
  const A *compact = gather_all_scores<A>(scores, valid, s, stride, scratch), *means = static_cast<const A*>(centroids);
  const Tails<A> tail{static_cast<A*>(cells.log_mass), static_cast<A*>(cells.spread), static_cast<A*>(cells.keys), static_cast<A*>(cells.values)};
  A* log_mass = take<A>(scratch, n);
  for (int64_t i = 0; i < n; ++i) log_mass[i] = -infinity<A>();
  for (int64_t token = 0; token < s.N; ++token) clear(static_cast<A*>(head.out.base) + token * head.out.token_stride, size_t(s.D) * sizeof(A));
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < s.C; ++c, release(scratch, before)) {
    if (!groups.size(c)) continue;
    const A* keys;
    const ClusterView<A> view = view_of_cluster(tail, c, means, compact + c * stride, is_top + c * n, top + c * s.K, found[c], s.M, smaller(head.band, n), key_cluster, k,
                                                v, s.D, &keys, scratch);
    attend_refined(view, q, k, v, groups.order + groups.first[c], groups.size(c), A(head.scale), n, head, log_mass, scratch);
  }
  scatter_values(log_mass, valid, s.N, -infinity<A>(), static_cast<A*>(head.log_mass));
}

}  // namespace
