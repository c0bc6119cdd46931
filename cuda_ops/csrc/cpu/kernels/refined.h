// refined_clustered on one (batch, head): each query attends to the K exact keys of its cluster, to M virtual keys that stand for the rest, and to its band.
#pragma once
#include "cluster_view.h"
#include "kmeans.h"

namespace {

// All clusters, their outputs, and the band: `x` holds the queries, by valid index, and is overwritten.
template <class A>
inline void attend_clusters(const HeadForward& head, const Groups& groups, const int32_t* cluster, int64_t C, const A* means, const A* scores, int64_t stride,
                            const Marks& marks, const TopLists& top, const Tails<A>& tail, const int32_t* query_cluster, const int32_t* key_cluster, A* x, const A* k,
                            const A* v, A* log_mass, Scratch& scratch) {
  const int64_t n = head.valid.n, D = head.sizes.D, M = head.sizes.M, W = smaller(head.band, n);
  const Rows<A> keys{k, D, nullptr}, values{v, D, nullptr};
  const Band<A> band = band_products(x, k, n, W, A(head.scale), D, scratch);
  const int32_t* guarded = guarded_clusters(key_cluster, n, M, W, scratch);
  each(C, scratch, [&](int64_t c, Scratch& own) {
    const ClusterView<A> view = view_of_cluster(tail, c, means, scores + c * stride, marks, top.keys + c * top.stride, top.found[c], M, band, guarded, keys, values, D, own);
    attend_refined(view, groups.order + groups.first[cluster[c]], groups.size(cluster[c]), A(head.scale), D, x, log_mass, own);
  });
  write_attended(head, band, v, query_cluster, x, scratch);
}

template <class A>
inline void refined_rows(const HeadForward& head, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Tokens<A> q{head.q, head.valid}, k{head.k, head.valid}, v{head.v, head.valid};
  const int64_t n = head.valid.n, D = s.D, M = s.M, K = smaller(s.K, n), W = smaller(head.band, n);
  int32_t *query_cluster = take<int32_t>(scratch, n), *key_cluster = take<int32_t>(scratch, n), *cluster = take<int32_t>(scratch, smaller(s.C, n));
  A *x = take<A>(scratch, n * D), *keys = take<A>(scratch, n * D), *values = take<A>(scratch, n * D);
  // Queries are clustered unscaled: the scale changes no distance's order.
  assign_rows(q, n, sample_centroids(q, n, s.C, head.iterations, head.sample, D, scratch), D, query_cluster, x, scratch);
  scatter_valid(query_cluster, head.valid, s.N, head.assignment);
  const Groups groups = group_tokens(query_cluster, n, s.C, scratch);
  const int64_t C = filled_clusters(groups, s.C, cluster), stride = score_stride<A>(n);
  const A* means = cluster_means(Rows<A>{x, D, nullptr}, groups, cluster, C, A(head.scale), D, scratch);

  // Keys and values pass by once: assigned, scored both ways round, and copied.
  A *scores = take_guarded<A>(scratch, C * stride, W), *by_token = take<A>(scratch, n * token_stride<A>(C));
  const Centroids<A> centroids = sample_centroids(k, n, M, head.iterations, head.sample, D, scratch);
  each_panel(k, n, D, keys, scratch, [&](int64_t first, int64_t count, const A* panel, Ahead& ahead, Scratch& own) {
    ahead.add_rows(v, first + count, smaller(n - first - count, PANEL<A>), D);
    copied_rows(v, first, count, D, values + first * D);
    assign_panel(panel, count, centroids, D, key_cluster + first, ahead, own);
    product(means, D, C, panel, D, scores + first, stride, ahead);
    turn_scores(scores, stride, C, first, count, by_token);
  });
  scatter_valid(key_cluster, head.valid, s.N, head.key_assignment);

  int32_t *top = take<int32_t>(scratch, C * K), *found = take<int32_t>(scratch, C);
  each(C, scratch, [&](int64_t c, Scratch& own) { select_top(scores + c * stride, n, K, top + c * K, own); });
  for (int64_t c = 0; c < C; ++c) found[c] = int32_t(K);
  const Marks marks = mark_top({top, found, K}, C, n, W, scratch);
  write_all_top(head, groups, top, K, scratch);
  const Tails<A> tail = tails(Rows<A>{keys, D, nullptr}, Rows<A>{values, D, nullptr}, group_tokens(key_cluster, n, M, scratch), M, by_token, marks, C, D, scratch);
  attend_clusters(head, groups, cluster, C, means, scores, stride, marks, {top, found, K}, tail, query_cluster, key_cluster, x, keys, values, log_mass, scratch);
}

template <class A>
void cluster_rows(const Slice& x, const Valid& valid, const Sizes& s, int64_t rounds, int64_t sample, int32_t* assignment, Scratch& scratch) {
  int32_t* clusters = take<int32_t>(scratch, valid.n);
  if (valid.n) {
    const Tokens<A> rows{x, valid};
    assign_rows(rows, valid.n, sample_centroids(rows, valid.n, s.C, rounds, sample, s.D, scratch), s.D, clusters, static_cast<A*>(nullptr), scratch);
  }
  scatter_valid(clusters, valid, s.N, assignment);
}

// The valid ones among the top keys, from token positions, for C clusters: the listed ones, or the first without a list. `index` leads from positions to valid
// indices.
inline void list_top(const int32_t* top_keys, const int32_t* cluster, int64_t C, const Sizes& s, const int32_t* index, int32_t* top, int32_t* found) {
  for (int64_t c = 0; c < C; ++c) found[c] = int32_t(s.K ? valid_top(top_keys + (cluster ? cluster[c] : c) * s.K, s.K, s.N, index, top + c * s.K) : 0);
}

template <class A>
inline A* gather_all_scores(const void* scores, const Valid& valid, const Sizes& s, int64_t stride, int64_t W, Scratch& scratch) {
  A* compact = take_guarded<A>(scratch, s.C * stride, W);
  for (int64_t c = 0; c < s.C; ++c) gather_scores(scores, s.N, c, valid, compact + c * stride);
  return compact;
}
template <class A>
inline A* turn_all_scores(const A* scores, int64_t stride, int64_t C, int64_t n, Scratch& scratch) {
  A* by_token = take<A>(scratch, n * token_stride<A>(C));
  turn_scores(scores, stride, C, 0, n, by_token);
  return by_token;
}
template <class A>
inline A* dense_rows(const Rows<A>& rows, int64_t n, int64_t D, Scratch& scratch) {
  A* dense = take<A>(scratch, n * D);
  copied_rows(rows, 0, n, D, dense);
  return dense;
}

// `keys` are the tokens that have a key cluster.
template <class A>
void tail(const void* scores, const Slice& k, const Slice& v, const int32_t* key_clusters, const int32_t* top_keys, const Sizes& s, void* log_mass, void* spread,
          void* tail_keys, void* tail_values, Scratch& scratch) {
  int32_t* position = take<int32_t>(scratch, s.N);
  Valid keys{position, 0};
  for (int64_t token = 0; token < s.N; ++token)
    if (key_clusters[token] >= 0 && key_clusters[token] < s.M) position[keys.n++] = int32_t(token);
  const int64_t stride = score_stride<A>(keys.n);
  const Groups groups = group_tokens(gather_valid(key_clusters, keys, scratch), keys.n, s.M, scratch);
  int32_t *top = take<int32_t>(scratch, s.C * s.K), *found = take<int32_t>(scratch, s.C);
  list_top(top_keys, nullptr, s.C, s, index_of_position(keys, s.N, scratch), top, found);
  const Marks marks = mark_top({top, found, s.K}, s.C, keys.n, 0, scratch);
  const A* by_token = turn_all_scores(gather_all_scores<A>(scores, keys, s, stride, 0, scratch), stride, s.C, keys.n, scratch);
  const Tails<A> result =
      tails(valid_rows<A>(k, keys, s.D, scratch), valid_rows<A>(v, keys, s.D, scratch), groups, s.M, by_token, marks, s.C, s.D, scratch);
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
  const int64_t n = valid.n, stride = score_stride<A>(n);
  A* x = dense_rows(valid_rows<A>(head.q, valid, s.D, scratch), n, s.D, scratch);
  const A *k = dense_rows(valid_rows<A>(head.k, valid, s.D, scratch), n, s.D, scratch), *v = dense_rows(valid_rows<A>(head.v, valid, s.D, scratch), n, s.D, scratch);
  const int32_t *query_cluster = gather_valid(head.assignment, valid, scratch), *key_cluster = gather_valid(head.key_assignment, valid, scratch);
  const Groups groups = group_tokens(query_cluster, n, s.C, scratch);
  int32_t *top = take<int32_t>(scratch, s.C * s.K), *found = take<int32_t>(scratch, s.C), *cluster = take<int32_t>(scratch, s.C);
  list_top(head.top_keys, nullptr, s.C, s, index_of_position(valid, s.N, scratch), top, found);
  const int64_t W = smaller(head.band, n);
  const Marks marks = mark_top({top, found, s.K}, s.C, n, W, scratch);
  const A* compact = gather_all_scores<A>(scores, valid, s, stride, W, scratch);
  const Tails<A> tail{static_cast<A*>(cells.log_mass), static_cast<A*>(cells.spread), static_cast<A*>(cells.keys), static_cast<A*>(cells.values)};
  A* log_mass = take<A>(scratch, n);
  for (int64_t i = 0; i < n; ++i) log_mass[i] = -infinity<A>();
  for (int64_t token = 0; token < s.N; ++token) clear(static_cast<A*>(head.out.base) + token * head.out.token_stride, size_t(s.D) * sizeof(A));
  for (int64_t c = 0; c < s.C; ++c) cluster[c] = int32_t(c);
  attend_clusters(head, groups, cluster, s.C, static_cast<const A*>(centroids), compact, stride, marks, {top, found, s.K}, tail, query_cluster, key_cluster, x, k, v,
                  log_mass, scratch);
  scatter_values(log_mass, valid, s.N, -infinity<A>(), static_cast<A*>(head.log_mass));
}

}  // namespace
