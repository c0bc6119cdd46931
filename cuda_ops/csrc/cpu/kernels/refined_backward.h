// Gradients of refined_clustered for one (batch, key head) and the query heads that share it. Decisions are constants.
// With x_i the scaled query, delta_i = x_i - mean_c, G_i the gradient of output i and every weight divided by the query's total mass:
//   a term of weight w, sign +-1 and value u has  d logit = +-w (G_i.u - G_i.o_i)  and gives  +-w G_i  to u
//   f_im = delta_i.K_cm + min(1, |delta_i|^2 sigma_cm / 2)  collects those of the virtual key and of the band keys in cell m
//   in a cell, with omega_j = e^(s_cj) / Z_cm:  d s_cj = omega_j (d lnZ + dK.(k_j - K) + dV.(v_j - V) + d sigma (|k_j - K|^2 / D - sigma))
// Every sum runs in the order of heads, clusters, tokens.
#pragma once
#include "backward.h"
#include "refined.h"

namespace {

template <class A>
struct TailGradients {
  A *log_mass, *spread;  // (C, M)
  A *keys, *values;      // (C, M, D)
};

// What one cluster gives and takes besides its ClusterView.
template <class A>
struct ClusterGradients {
  A *mean, *scores;                        // (D), (n): added to
  A *log_mass, *spread, *keys, *values;    // (M), (M), (M, D), (M, D): written
};

// The weights of one query over its tile and band, divided by its total mass, in place of its logits.
template <class A>
inline void normalised_weights(const ClusterView<A>& view, A half, int64_t i, A* row, A* near, A* tail) {
  const int64_t width = view.band.width;
  const A total = weigh_query(view, half, i, row, near, tail).total;
  divide_row(row, total, view.columns());
  divide_row(near, total, width);
  divide_row(tail, total, width);
}

template <class A>
inline void refined_cluster_backward(const ClusterView<A>& view, const int32_t* top, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, const Rows<A>& g,
                                     const int32_t* queries, int64_t count, A scale, int64_t D, A* grad_q, KeyGradients<A> grads,
                                     ClusterGradients<A> out, Scratch& scratch) {
  const int64_t K = view.exact.count, M = view.cells.count, first_cell = view.first_cell(), stride = view.stride(), W = view.band.W, width = view.band.width,
                band = view.band.stride;
  const A *exact_values = pack_panels(view.exact.values, K, D, scratch), *cell_values = pack_panels(view.cells.values, M, D, scratch);
  A *x = take<A>(scratch, QUERY_BLOCK * D), *delta = take<A>(scratch, QUERY_BLOCK * D), *grad = take<A>(scratch, QUERY_BLOCK * D);
  A *x_grad = take<A>(scratch, QUERY_BLOCK * D), *delta_grad = take<A>(scratch, QUERY_BLOCK * D);
  A *weights = take<A>(scratch, QUERY_BLOCK * stride), *along = take<A>(scratch, QUERY_BLOCK * stride);
  A *near = take<A>(scratch, QUERY_BLOCK * band), *tail = take<A>(scratch, QUERY_BLOCK * band);
  A *key_grad = zeros<A>(K * D, scratch), *value_grad = zeros<A>(K * D, scratch);
  clear(out.keys, size_t(M * D) * sizeof(A));
  clear(out.values, size_t(M * D) * sizeof(A));
  clear(out.log_mass, size_t(M) * sizeof(A));
  clear(out.spread, size_t(M) * sizeof(A));
  for (int64_t first = 0; first < count; first += QUERY_BLOCK) {
    const int64_t here = smaller(count - first, QUERY_BLOCK);
    for (int64_t r = 0; r < here; ++r) {
      scale_row(q[queries[first + r]], scale, D, x + r * D);
      for (int64_t d = 0; d < D; ++d) delta[r * D + d] = x[r * D + d] - view.mean[d];
      copy(grad + r * D, g[queries[first + r]], size_t(D) * sizeof(A));
    }
    clear(x_grad, size_t(here * D) * sizeof(A));
    both_scores(view, x, here, view.exact.panels, view.cells.panels, D, weights);
    both_scores(view, grad, here, exact_values, cell_values, D, along);
    for (int64_t r = 0; r < here; ++r) {
      const int64_t i = queries[first + r];
      A *p = weights + r * stride, *dp = along + r * stride, *b = near + r * band, *t = tail + r * band;
      const A half = square_distance(x + r * D, view.mean, D) / 2;
      normalised_weights(view, half, i, p, b, t);
      A output = dot(p, dp, view.columns());  // G.o, with the band's share below
      for (int64_t w = 0; w < width; ++w) {
        const int64_t j = i + w - W;
        if (!view.marks.holds(view.c, j)) output += (b[w] - t[w]) * row_product(grad + r * D, v[j], D);
      }
      for (int64_t j = 0; j < view.columns(); ++j) dp[j] = p[j] * (dp[j] - output);
      A* cells = dp + first_cell;
      for (int64_t m = 0; m < M; ++m) out.log_mass[m] += cells[m];
      for (int64_t w = 0; w < width; ++w) {
        const int64_t j = i + w - W;
        if (view.marks.holds(view.c, j)) continue;
        const A beyond = row_product(grad + r * D, v[j], D) - output, exact = b[w] * beyond, counted = -t[w] * beyond;
        add_scaled(k[j], exact, D, x_grad + r * D);
        add_scaled(x + r * D, exact, D, grads.k + j * D);
        add_scaled(grad + r * D, b[w] - t[w], D, grads.v + j * D);
        out.scores[j] += counted;
        cells[view.key_cluster[j]] += counted;
      }
      A second = A(0);
      for (int64_t m = 0; m < M; ++m) {
        if (half * view.spread[m] > A(1)) continue;  // capped
        second += cells[m] * view.spread[m];
        out.spread[m] += cells[m] * half;
      }
      for (int64_t d = 0; d < D; ++d) delta_grad[r * D + d] = second * delta[r * D + d];
    }
    weighted_sum(along, stride, 1, here, view.exact_keys, K, D, true, x_grad, D);
    weighted_sum(along + first_cell, stride, 1, here, view.cell_keys, M, D, true, delta_grad, D);
    weighted_sum(along, 1, stride, K, Rows<A>{x, D, nullptr}, here, D, true, key_grad, D);
    weighted_sum(weights, 1, stride, K, Rows<A>{grad, D, nullptr}, here, D, true, value_grad, D);
    weighted_sum(along + first_cell, 1, stride, M, Rows<A>{delta, D, nullptr}, here, D, true, out.keys, D);
    weighted_sum(weights + first_cell, 1, stride, M, Rows<A>{grad, D, nullptr}, here, D, true, out.values, D);
    for (int64_t r = 0; r < here; ++r)
      for (int64_t d = 0; d < D; ++d) {
        grad_q[queries[first + r] * D + d] += scale * (x_grad[r * D + d] + delta_grad[r * D + d]);
        out.mean[d] -= delta_grad[r * D + d];
      }
  }
  for (int64_t j = 0; j < K; ++j) {
    add_row(key_grad + j * D, D, grads.k + top[j] * D);
    add_row(value_grad + j * D, D, grads.v + top[j] * D);
  }
}

// From the gradients of the cells to those of the scores (C, stride), keys and values.
template <class A>
inline void tail_backward(const Rows<A>& k, const Rows<A>& v, const Groups& groups, int64_t M, const A* by_token, int64_t stride, const Marks& marks,
                          const Tails<A>& tail, const TailGradients<A>& grad, int64_t C, int64_t D, A* score_grad, KeyGradients<A> grads, Scratch& scratch) {
  const int64_t lanes = token_stride<A>(C);
  const ScratchMark before = mark(scratch);
  for (int64_t m = 0; m < M; ++m, release(scratch, before)) {
    const int64_t count = groups.size(m), width = panel_count<A>(count) * PANEL<A>;
    if (!count) continue;
    const int32_t* members = groups.order + groups.first[m];
    const Rows<A> keys = listed_rows(k, members, count, D, scratch), values = listed_rows(v, members, count, D, scratch);
    const A *key_panels = pack_panels(keys, count, D, scratch), *value_panels = pack_panels(values, count, D, scratch);
    A *weights = take<A>(scratch, count * lanes), *spreading = take<A>(scratch, count * lanes), *unused = zeros<A>(count, scratch);
    for (int64_t c = 0; c < C; c += Vec<A>::lanes) weigh_keys(by_token, lanes, members, count, marks, c, unused, weights);
    A *by_key = take<A>(scratch, width), *by_value = take<A>(scratch, width), *key_grad = zeros<A>(count * D, scratch), *value_grad = zeros<A>(count * D, scratch);
    A* own = zeros<A>(count, scratch);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t cell = c * M + m;
      const A *key = tail.keys + cell * D, *value = tail.values + cell * D, *dkey = grad.keys + cell * D, *dvalue = grad.values + cell * D;
      A total = A(0);
      for (int64_t i = 0; i < count; ++i) total += weights[i * lanes + c];
      tile_scores(dkey, 1, key_panels, count, D, by_key, width);
      tile_scores(dvalue, 1, value_panels, count, D, by_value, width);
      const A at_mean = row_product(dkey, key, D) + row_product(dvalue, value, D);
      for (int64_t i = 0; i < count; ++i) {
        A &omega = weights[i * lanes + c], &spread = spreading[i * lanes + c];
        spread = A(0);
        if (marks.holds(c, members[i])) {
          omega = A(0);
          continue;
        }
        omega /= total;
        const A away = square_distance(keys[i], key, D) / A(D) - tail.spread[cell];
        score_grad[c * stride + members[i]] += omega * (grad.log_mass[cell] + by_key[i] + by_value[i] - at_mean + grad.spread[cell] * away);
        const A towards = 2 * omega * grad.spread[cell] / A(D);
        own[i] += towards;
        spread = -towards;
      }
    }
    weighted_sum(weights, lanes, 1, count, Rows<A>{grad.keys + m * D, M * D, nullptr}, C, D, true, key_grad, D);
    weighted_sum(spreading, lanes, 1, count, Rows<A>{tail.keys + m * D, M * D, nullptr}, C, D, true, key_grad, D);
    weighted_sum(weights, lanes, 1, count, Rows<A>{grad.values + m * D, M * D, nullptr}, C, D, true, value_grad, D);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(keys[i], own[i], D, key_grad + i * D);
      add_row(key_grad + i * D, D, grads.k + members[i] * D);
      add_row(value_grad + i * D, D, grads.v + members[i] * D);
    }
  }
}

template <class A>
inline void refined_backward_rows(const HeadBackward& head, int64_t h, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, const Rows<A>& g, A* grad_q,
                                  KeyGradients<A> grads, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const int64_t n = head.valid.n, D = s.D, M = s.M, stride = score_stride<A>(n);
  const A scale = A(head.scale);
  int32_t* named = gather_valid(head.key_assignment[h], head.valid, scratch);
  for (int64_t i = 0; i < n; ++i) named[i] = named[i] < 0 || named[i] >= M ? 0 : named[i];
  const int64_t W = smaller(head.band, n);
  const int32_t* key_cluster = guarded_clusters(named, n, M, W, scratch);
  const Groups groups = group_tokens(gather_valid(head.assignment[h], head.valid, scratch), n, s.C, scratch), key_groups = group_tokens(key_cluster, n, M, scratch);
  const int32_t* index = index_of_position(head.valid, s.N, scratch);
  int32_t* cluster = take<int32_t>(scratch, smaller(s.C, n));
  const int64_t C = filled_clusters(groups, s.C, cluster);
  const A* means = cluster_means(q, groups, cluster, C, scale, D, scratch);
  A *scores = take_guarded<A>(scratch, C * stride, W), *score_grad = zeros<A>(C * stride, scratch), *mean_grad = zeros<A>(C * D, scratch);
  panel_scores(means, C, k, n, D, scores, stride, scratch);
  int32_t *top = take<int32_t>(scratch, C * s.K), *tops = take<int32_t>(scratch, C);
  list_top(head.top_keys[h], cluster, C, s, index, top, tops);
  const Marks marks = mark_top({top, tops, s.K}, C, n, W, scratch);
  const Band<A> band = band_products(dense_rows(q, n, D, scratch), dense_rows(k, n, D, scratch), n, W, scale, D, scratch);
  const A* by_token = turn_all_scores(scores, stride, C, n, scratch);
  const Tails<A> tail = tails(k, v, key_groups, M, by_token, marks, C, D, scratch);
  const TailGradients<A> tail_grad{take<A>(scratch, C * M), take<A>(scratch, C * M), take<A>(scratch, C * M * D), take<A>(scratch, C * M * D)};
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < C; ++c, release(scratch, before)) {
    const ClusterView<A> view = view_of_cluster(tail, c, means, scores + c * stride, marks, top + c * s.K, tops[c], M, band, key_cluster, k, v, D, scratch);
    const ClusterGradients<A> out{mean_grad + c * D,        score_grad + c * stride,       tail_grad.log_mass + c * M,
                                  tail_grad.spread + c * M, tail_grad.keys + c * M * D, tail_grad.values + c * M * D};
    refined_cluster_backward(view, top + c * s.K, q, k, v, g, groups.order + groups.first[cluster[c]], groups.size(cluster[c]), scale, D, grad_q, grads, out,
                             scratch);
  }
  tail_backward(k, v, key_groups, M, by_token, stride, marks, tail, tail_grad, C, D, score_grad, grads, scratch);
  weighted_sum(score_grad, stride, 1, C, k, n, D, true, mean_grad, D);
  weighted_sum(score_grad, 1, stride, n, Rows<A>{means, D, nullptr}, C, D, true, grads.k, D);
  mean_backward(groups, cluster, C, mean_grad, scale, D, grad_q);
}

}  // namespace
