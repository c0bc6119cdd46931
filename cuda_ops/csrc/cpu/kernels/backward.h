// Gradients of clustered, improved_clustered and full_attention for one (batch, key head) and the query heads that share it. Decisions are constants.
// With g_i the gradient of output i, t_i the softmax of query i over T_c, A_c the softmax of the centroid, m_c its mass on T_c, G_c = sum of the g of cluster c:
//   d logit_ij = m_c t_ij (g_i.v_j - g_i.u_i),  u_i = sum_j t_ij v_j                     for j in T_c
//   d A_cj     = G_c.v_j outside T_c, sum_i g_i.u_i inside;  d s_cj = A_cj (d A_cj - sum_j' A_cj' d A_cj')
// Every sum runs in the order of heads, clusters, tokens.
#pragma once
#include "heads.h"

namespace {

template <class A>
struct KeyGradients {
  A *k, *v;  // (n, D), by valid index
};

template <class A>
inline A dot(const A* a, const A* b, int64_t n) {
  A sum = A(0);
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
template <class A>
inline void add_row(const A* from, int64_t D, A* to) {
  for (int64_t d = 0; d < D; ++d) to[d] += from[d];
}

// The exact part of one cluster; `list` are the valid indices of its keys. Adds to grad_q (n, D) and the key gradients, returns sum_i g_i.u_i.
template <class A>
inline A exact_backward(const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, const Rows<A>& g, const int32_t* queries, int64_t count, const int32_t* list,
                        int64_t keys, A mass, A scale, int64_t D, A* grad_q, KeyGradients<A> grads, Scratch& scratch) {
  const KeyTile<A> tile = key_tile(k, v, list, keys, D, scratch);
  const A* value_panels = pack_panels(tile.values, keys, D, scratch);
  const Rows<A> key_rows = listed_rows(k, list, keys, D, scratch);
  const int64_t stride = panel_count<A>(keys) * PANEL<A>;
  A *scaled = take<A>(scratch, QUERY_BLOCK * D), *grad = take<A>(scratch, QUERY_BLOCK * D), *query_grad = take<A>(scratch, QUERY_BLOCK * D);
  A *t = take<A>(scratch, QUERY_BLOCK * stride), *logit_grad = take<A>(scratch, QUERY_BLOCK * stride);
  A *key_grad = take<A>(scratch, keys * D), *value_grad = take<A>(scratch, keys * D);
  A mass_grad = A(0);
  for (int64_t first = 0; first < count; first += QUERY_BLOCK) {
    const int64_t here = smaller(count - first, QUERY_BLOCK);
    for (int64_t r = 0; r < here; ++r) {
      scale_row(q[queries[first + r]], scale, D, scaled + r * D);
      copy(grad + r * D, g[queries[first + r]], size_t(D) * sizeof(A));
    }
    tile_scores(scaled, here, tile.panels, keys, D, t, stride);
    tile_scores(grad, here, value_panels, keys, D, logit_grad, stride);
    for (int64_t r = 0; r < here; ++r) {
      A *p = t + r * stride, *dp = logit_grad + r * stride, largest;
      divide_row(p, softmax_numerators(p, keys, &largest), keys);
      const A along = dot(p, dp, keys);
      mass_grad += along;
      for (int64_t j = 0; j < keys; ++j) {
        dp[j] = mass * p[j] * (dp[j] - along);
        p[j] *= mass;
      }
    }
    weighted_sum(logit_grad, stride, 1, here, key_rows, keys, D, false, query_grad, D);
    for (int64_t r = 0; r < here; ++r)
      for (int64_t d = 0; d < D; ++d) grad_q[queries[first + r] * D + d] += scale * query_grad[r * D + d];
    weighted_sum(logit_grad, 1, stride, keys, Rows<A>{scaled, D, nullptr}, here, D, first > 0, key_grad, D);
    weighted_sum(t, 1, stride, keys, Rows<A>{grad, D, nullptr}, here, D, first > 0, value_grad, D);
  }
  for (int64_t j = 0; j < keys; ++j) {
    add_row(key_grad + j * D, D, grads.k + list[j] * D);
    add_row(value_grad + j * D, D, grads.v + list[j] * D);
  }
  return mass_grad;
}

// Each member's share of the gradient of its cluster's mean.
template <class A>
inline void mean_backward(const Groups& groups, const int32_t* cluster, int64_t C, const A* mean_grad, A scale, int64_t D, A* grad_q) {
  for (int64_t c = 0; c < C; ++c) {
    const int64_t count = groups.size(cluster[c]);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < D; ++d) grad_q[groups.order[groups.first[cluster[c]] + i] * D + d] += scale * mean_grad[c * D + d] / A(count);
  }
}

template <class A>
inline void clustered_backward_rows(const HeadBackward& head, int64_t h, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, const Rows<A>& g, A* grad_q,
                                    KeyGradients<A> grads, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  const int64_t n = valid.n, D = s.D, stride = panel_count<A>(n) * PANEL<A>;
  const A scale = A(head.scale);
  const Groups groups = group_tokens(gather_valid(head.assignment[h], valid, scratch), n, s.C, scratch);
  const int32_t* index = index_of_position(valid, s.N, scratch);
  int32_t* cluster = take<int32_t>(scratch, smaller(s.C, n));
  const int64_t C = filled_clusters(groups, s.C, cluster);

  const A* means = cluster_means(q, groups, cluster, C, scale, D, scratch);
  A *sums = take<A>(scratch, C * D), *mean_grad = take<A>(scratch, C * D);
  A *weights = take<A>(scratch, C * stride), *score_grad = take<A>(scratch, C * stride);
  for (int64_t c = 0; c < C; ++c) {
    const int32_t* members = groups.order + groups.first[cluster[c]];
    for (int64_t d = 0; d < D; ++d) sums[c * D + d] = A(0);
    for (int64_t i = 0; i < groups.size(cluster[c]); ++i) add_row(g[members[i]], D, sums + c * D);
  }
  tile_scores(means, C, pack_panels(k, n, D, scratch), n, D, weights, stride);
  tile_scores(sums, C, pack_panels(v, n, D, scratch), n, D, score_grad, stride);

  int32_t* top = take<int32_t>(scratch, s.K);
  A* outside = take<A>(scratch, C * stride);  // A_cj, 0 on T_c: what G_c weighs in the gradient of the values
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < C; ++c, release(scratch, before)) {
    const int32_t* members = groups.order + groups.first[cluster[c]];
    const int64_t count = s.K ? valid_top(head.top_keys[h] + int64_t(cluster[c]) * s.K, s.K, s.N, index, top) : 0;
    A *a = weights + c * stride, *da = score_grad + c * stride, *o = outside + c * stride, largest;
    divide_row(a, softmax_numerators(a, n, &largest), n);
    copy(o, a, size_t(n) * sizeof(A));
    A mass = A(0);
    for (int64_t j = 0; j < count; ++j) {
      mass += a[top[j]];
      o[top[j]] = A(0);
    }
    if (count) {
      const A mass_grad = exact_backward(q, k, v, g, members, groups.size(cluster[c]), top, count, mass, scale, D, grad_q, grads, scratch);
      for (int64_t j = 0; j < count; ++j) da[top[j]] = mass_grad;
    }
    const A along = dot(a, da, n);
    for (int64_t j = 0; j < n; ++j) da[j] = a[j] * (da[j] - along);
  }
  weighted_sum(score_grad, stride, 1, C, k, n, D, false, mean_grad, D);
  weighted_sum(score_grad, 1, stride, n, Rows<A>{means, D, nullptr}, C, D, true, grads.k, D);
  weighted_sum(outside, 1, stride, n, Rows<A>{sums, D, nullptr}, C, D, true, grads.v, D);
  mean_backward(groups, cluster, C, mean_grad, scale, D, grad_q);
}

template <class A>
inline A* zeros(int64_t count, Scratch& scratch) {
  A* x = take<A>(scratch, count);
  clear(x, size_t(count) * sizeof(A));
  return x;
}
template <class A>
inline void write_rows(const A* rows, const Slice& out, const Valid& valid, const Sizes& s) {
  clear_padding(out, valid, s);
  for (int64_t i = 0; i < valid.n; ++i) write_row(out, valid.position[i], s.D, rows + i * s.D);
  finish_streams();
}

// One fused backward; `rows` for the rows that are clustered.
template <class A, void (*rows)(const HeadBackward&, int64_t, const Rows<A>&, const Rows<A>&, const Rows<A>&, const Rows<A>&, A*, KeyGradients<A>, Scratch&)>
void fused_backward(const HeadBackward& head, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  const int64_t n = valid.n;
  const KeyGradients<A> grads{zeros<A>(n * s.D, scratch), zeros<A>(n * s.D, scratch)};
  const Rows<A> k = valid_rows<A>(head.k, valid, s.D, scratch), v = valid_rows<A>(head.v, valid, s.D, scratch);
  const int32_t* all = every_token(n, scratch).position;
  const ScratchMark before = mark(scratch);
  for (int64_t h = 0; h < head.group; ++h, release(scratch, before)) {
    A* grad_q = zeros<A>(n * s.D, scratch);
    const Rows<A> q = valid_rows<A>(head.q[h], valid, s.D, scratch), g = valid_rows<A>(head.grad[h], valid, s.D, scratch);
    if (n && head.exact) exact_backward(q, k, v, g, all, n, all, n, A(1), A(head.scale), s.D, grad_q, grads, scratch);
    if (n && !head.exact) rows(head, h, q, k, v, g, grad_q, grads, scratch);
    write_rows(grad_q, head.grad_q[h], valid, s);
  }
  write_rows(grads.k, head.grad_k, valid, s);
  write_rows(grads.v, head.grad_v, valid, s);
}

}  // namespace
