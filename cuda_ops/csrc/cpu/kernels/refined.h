// refined_clustered on one (batch, head): each query attends to the K exact keys of its cluster, to M virtual keys that stand for the rest, and to its band.
#pragma once
#include "heads.h"
#include "kmeans.h"
#include "tail.h"

namespace {

// The key cluster of each token and of those outside of the text, with M for none.
inline int32_t* guarded_clusters(const int32_t* cluster, int64_t n, int64_t M, int64_t W, Scratch& scratch) {
  int32_t* guarded = take_guarded<int32_t>(scratch, n, W);
  for (int64_t j = -W; j < n + W + VECTOR_BYTES; ++j) guarded[j] = j < 0 || j >= n || cluster[j] < 0 || cluster[j] > M ? int32_t(M) : cluster[j];
  return guarded;
}

// The W valid tokens on either side of each, and the token itself.
template <class A>
struct Band {
  int64_t W, width, stride;  // stride: whole vectors
  A* weights;  // (n, stride): the products x_i . k_(i - W + w); once query i has been attended, what multiplies the values
  int64_t begin(int64_t i) const { return i < W ? W - i : 0; }
  int64_t end(int64_t i, int64_t n) const { return smaller(width, n - i + W); }
};

// Of the queries i … i + PAIRS - 1, whose bands lie within the text: scaled, in `x`. What is left of a band after whole groups of products is taken for all of them.
template <class A>
inline void inner_products(const A* x, const A* keys, const Band<A>& band, int64_t i, int64_t D) {
  constexpr int R = PAIRS<A>;
  const A *query[R], *key[R];
  const int64_t grouped = band.width / R * R;
  for (int64_t t = 0; t < R; ++t)
    for (int64_t w = 0; w < grouped; w += R) {
      for (int r = 0; r < R; ++r) {
        query[r] = x + t * D;
        key[r] = keys + (i + t - band.W + w + r) * D;
      }
      store_part(band.weights + (i + t) * band.stride + w, pair_products<A, R>(query, key, D), R);
    }
  for (int64_t w = grouped; w < band.width; ++w) {
    for (int r = 0; r < R; ++r) {
      query[r] = x + r * D;
      key[r] = keys + (i + r - band.W + w) * D;
    }
    const vec<A> products = pair_products<A, R>(query, key, D);
    for (int r = 0; r < R; ++r) band.weights[(i + r) * band.stride + w] = products[r];
  }
}

// Token by token: neighbours lie side by side, where those of a cluster's queries do not.
template <class A>
inline Band<A> band_products(const A* q, const A* keys, int64_t n, int64_t W, A scale, int64_t D, Scratch& scratch) {
  constexpr int64_t R = PAIRS<A>;
  const int64_t width = W ? 2 * W + 1 : 0, stride = round_up(width, Vec<A>::lanes);
  const Band<A> band{W, width, stride, take<A>(scratch, n * stride)};
  each(W ? (n + CHUNK - 1) / CHUNK : 0, scratch, [&](int64_t chunk, Scratch& own) {
    const int64_t end = smaller(n, (chunk + 1) * CHUNK);
    A* x = take<A>(own, R * D);
    for (int64_t i = chunk * CHUNK; i < end;) {
      const int64_t count = i >= W && i + R <= end && i + R + W <= n ? R : 1;
      for (int64_t t = 0; t < count; ++t) scale_row(q + (i + t) * D, scale, D, x + t * D);
      for (int64_t w = 0; w < count * stride; w += Vec<A>::lanes) store(band.weights + i * stride + w, set(A(0)));
      if (count == R)
        inner_products(x, keys, band, i, D);
      else
        row_products(x, Rows<A>{keys + (i - W + band.begin(i)) * D, D, nullptr}, band.end(i, n) - band.begin(i), D, band.weights + i * stride + band.begin(i));
      i += count;
    }
  });
  return band;
}

// What the queries of one cluster share. The arrays of M numbers have whole vectors: a logit of -inf comes out where there is no cell.
template <class A>
struct ClusterView {
  const A *mean, *scores;         // (D), (n) guarded
  Marks marks;                    // of all clusters
  int64_t c;                      // this one
  const A *log_mass, *spread;     // (M)
  const A* shift;                 // (M): ln Z_cm - mean . K_cm
  KeyTile<A> exact, cells;        // K keys; M virtual ones
  Rows<A> exact_keys, cell_keys;  // the keys of both tiles as rows
  Band<A> band;
  const int32_t* key_cluster;     // (n) guarded
  A* share;                       // (M + 1): of one query, f_im less what its own log mass says; -inf for no cell
  // A row of logits: those of the exact keys, -inf up to a whole panel, those of the cells from here on.
  int64_t first_cell() const { return panel_count<A>(exact.count) * PANEL<A>; }
  int64_t columns() const { return first_cell() + cells.count; }
  int64_t stride() const { return first_cell() + panel_count<A>(cells.count) * PANEL<A>; }
};

// Products of `count` rows with the exact and the virtual rows.
template <class A>
inline void both_scores(const ClusterView<A>& view, const A* rows, int64_t count, const A* exact_panels, const A* cell_panels, int64_t D, A* out,
                        Ahead& ahead = nothing_ahead) {
  tile_scores(rows, count, exact_panels, view.exact.count, D, out, view.stride(), ahead);
  tile_scores(rows, count, cell_panels, view.cells.count, D, out + view.first_cell(), view.stride(), ahead);
}

// From products to logits, of the cells and behind the exact keys; returns the largest of both in each lane. `half` is |x - mean|^2 / 2; the second-order term of
// a cell is capped at 1.
template <class A>
CUDA_OPS_INLINE vec<A> tile_logits(const ClusterView<A>& view, A half, A* row) {
  constexpr int64_t L = Vec<A>::lanes;
  vec<A> most = set(-infinity<A>());
  A* cells = row + view.first_cell();
  for (int64_t m = 0; m < view.cells.count; m += L) {
    const vec<A> second = lesser(set(A(1)), set(half) * load(view.spread + m));
    const vec<A> logit = load(cells + m) + (load(view.shift + m) + second);
    store(cells + m, logit);
    store(view.share + m, logit - load(view.log_mass + m));
    most = larger(logit, most);
  }
  for (A* unused = row + view.exact.count; unused < cells; ++unused) *unused = -infinity<A>();
  for (int64_t j = 0; j < view.exact.count; j += L) most = larger(load(row + j), most);
  return most;
}

// Logits of the band of query i: of the exact products and of what the tail already counted; both -inf where there is nothing to exchange.
template <class A>
CUDA_OPS_INLINE vec<A> band_logits(const ClusterView<A>& view, int64_t i, A* exact, A* counted) {
  constexpr int64_t L = Vec<A>::lanes;
  const vec<A> nothing = set(-infinity<A>());
  const int64_t M = view.cells.count;
  const uint32_t* marked = view.marks.word(view.c);
  const integers<A> bit = integers<A>{} + integer<A>(uint32_t(1) << (view.c % 32)), lane = lane_numbers<A>();
  vec<A> most = nothing;
  for (int64_t w = 0; w < view.band.width; w += L) {
    const int64_t j = i - view.band.W + w;
    integers<A> words, cell;
    load_words(marked + j, words);
    load_words(reinterpret_cast<const uint32_t*>(view.key_cluster) + j, cell);
    const integers<A> outside = ((words & bit) != 0) | (lane >= integer<A>(view.band.width - w));
    const vec<A> share = cell == integer<A>(M) ? nothing : lookup(view.share, M, view.key_cluster + j);
    const vec<A> product = outside ? nothing : load(view.band.weights + i * view.band.stride + w), score = outside ? nothing : load(view.scores + j) + share;
    store(exact + w, product);
    store(counted + w, score);
    most = larger(product, most);
  }
  return most;
}

template <class A>
struct Weighed {
  A total, largest;
};

// Turns the products of query i with its tile into numerators of one common maximum, and fills those of its band; returns the sum of all and the maximum.
template <class A>
inline Weighed<A> weigh_query(const ClusterView<A>& view, A half, int64_t i, A* row, A* near, A* tail) {
  constexpr int64_t L = Vec<A>::lanes;
  const vec<A> most = tile_logits(view, half, row);
  const A largest = largest_lane<A>(larger(band_logits(view, i, near, tail), most));
  vec<A> total = set(A(0));
  for (int64_t j = 0; j < view.columns(); j += L) {
    const vec<A> e = exponential<A>(load(row + j) - set(largest));
    store(row + j, e);
    total = total + e;
  }
  for (int64_t w = 0; w < view.band.width; w += L) {
    const vec<A> exact = exponential<A>(load(near + w) - set(largest)), counted = exponential<A>(load(tail + w) - set(largest));
    store(near + w, exact);
    store(tail + w, counted);
    total = total + (exact - counted);
  }
  return {sum_lanes<A>(total), largest};
}

// Attends the queries of one cluster, in place: rows of `x` become outputs without the band's values, whose weights are left in the band.
template <class A>
inline void attend_refined(const ClusterView<A>& view, const int32_t* queries, int64_t count, A scale, int64_t D, A* x, A* log_mass, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t stride = view.stride(), padded = view.band.stride;
  A *scaled = take<A>(scratch, QUERY_BLOCK * D), *logits = take<A>(scratch, QUERY_BLOCK * stride), *out = take<A>(scratch, QUERY_BLOCK * D);
  A *exact = take<A>(scratch, QUERY_BLOCK * padded), *counted = take<A>(scratch, padded);
  Ahead ahead = take_ahead<A>(QUERY_BLOCK, D + padded, scratch);
  Weighed<A> weighed[QUERY_BLOCK];
  for (int64_t first = 0; first < count; first += QUERY_BLOCK) {
    const int64_t here = smaller(count - first, QUERY_BLOCK);
    for (int64_t r = 0; r < here; ++r) scale_row(x + queries[first + r] * D, scale, D, scaled + r * D);
    ahead.count = 0;
    for (int64_t r = first + here; r < smaller(count, first + 2 * QUERY_BLOCK); ++r) {
      ahead.add_row(x + queries[r] * D, D);
      ahead.add_row(view.band.weights + queries[r] * padded, view.band.width);
    }
    both_scores(view, scaled, here, view.exact.panels, view.cells.panels, D, logits, ahead);
    for (int64_t r = 0; r < here; ++r) {
      const A half = square_distance(scaled + r * D, view.mean, D) / 2;
      A* near = exact + r * padded;
      weighed[r] = weigh_query(view, half, queries[first + r], logits + r * stride, near, counted);
      for (int64_t w = 0; w < padded; w += L) store(near + w, load(near + w) - load(counted + w));
    }
    weighted_sum(logits, stride, 1, here, view.exact.values, view.exact.count, D, false, out, D, ahead);
    weighted_sum(logits + view.first_cell(), stride, 1, here, view.cells.values, view.cells.count, D, true, out, D, ahead);
    for (int64_t r = 0; r < here; ++r) {
      const int64_t i = queries[first + r];
      const A inverse = A(1) / weighed[r].total;
      scale_row(out + r * D, inverse, D, x + i * D);
      scale_row(exact + r * padded, inverse, padded, view.band.weights + i * padded);
      log_mass[i] = weighed[r].largest + logarithm(weighed[r].total);
    }
  }
}

// to = row + sum_w weights[w] * values[w], V vectors of d at a time.
template <class A, int V>
CUDA_OPS_INLINE void add_values(const A* weights, const A* values, int64_t count, int64_t D, const A* row, A* to) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load(row + v * L);
  for (int64_t w = 0; w < count; ++w)
    for (int v = 0; v < V; ++v) sum[v] = fma(set(weights[w]), load(values + w * D + v * L), sum[v]);
  for (int v = 0; v < V; ++v) store(to + v * L, sum[v]);
}
template <class A>
inline void add_band(const A* weights, const A* values, int64_t count, int64_t D, const A* row, A* to) {
  constexpr int64_t L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L) add_values<A, 4>(weights, values + d, count, D, row + d, to + d);
  for (; d + L <= D; d += L) add_values<A, 1>(weights, values + d, count, D, row + d, to + d);
  if (d == D) return;
  vec<A> sum = load_part(row + d, D - d);
  for (int64_t w = 0; w < count; ++w) sum = fma(set(weights[w]), load_part(values + w * D + d, D - d), sum);
  store_part(to + d, sum, D - d);
}

// Adds the values of the band, token by token, and writes the outputs of the tokens that have a cluster.
template <class A>
inline void write_attended(const HeadForward& head, const Band<A>& band, const A* v, const int32_t* query_cluster, A* attended, Scratch& scratch) {
  const int64_t n = head.valid.n, D = head.sizes.D;
  const int32_t* position = head.valid.position;
  each((n + CHUNK - 1) / CHUNK, scratch, [&](int64_t chunk, Scratch&) {
    for (int64_t i = chunk * CHUNK; i < smaller(n, (chunk + 1) * CHUNK); ++i) {
      if (query_cluster[i] < 0 || query_cluster[i] >= head.sizes.C) continue;
      A *row = attended + i * D, *to = own_row<A>(head.out, position[i]);
      if (to && i + AHEAD < n) prefetch_row(own_row<A>(head.out, position[i + AHEAD]), D);
      const int64_t begin = band.begin(i), end = band.W ? band.end(i, n) : begin;
      add_band(band.weights + i * band.stride + begin, v + (i - band.W + begin) * D, end - begin, D, row, to ? to : row);
      if (!to) write_row(head.out, position[i], D, row);
    }
  });
}

// `count` numbers and up to a whole vector behind them `fill`.
template <class A>
inline A* padded_copy(const A* from, int64_t count, A fill, Scratch& scratch) {
  const int64_t padded = round_up(count, Vec<A>::lanes);
  A* to = take<A>(scratch, padded + Vec<A>::lanes);
  for (int64_t m = 0; m < padded; ++m) to[m] = m < count ? from[m] : fill;
  return to;
}

// The tiles of cluster c.
template <class A>
inline ClusterView<A> view_of_cluster(const Tails<A>& tail, int64_t c, const A* means, const A* scores, const Marks& marks, const int32_t* top, int64_t K, int64_t M,
                                      const Band<A>& band, const int32_t* key_cluster, const Rows<A>& k, const Rows<A>& v, int64_t D, Scratch& scratch) {
  const A *log_mass = tail.log_mass + c * M, *mean = means + c * D;
  const Rows<A> keys = listed_rows(k, top, K, scratch), cell_keys{tail.keys + c * M * D, D, nullptr};
  A *shift = padded_copy(log_mass, M, -infinity<A>(), scratch), *share = take<A>(scratch, round_up(M, Vec<A>::lanes) + 2 * Vec<A>::lanes), *at_mean = take<A>(scratch, M);
  row_products(mean, cell_keys, M, D, at_mean);
  for (int64_t m = 0; m < M; ++m) shift[m] -= at_mean[m];
  const KeyTile<A> cells{pack_panels(cell_keys, M, D, scratch), Rows<A>{tail.values + c * M * D, D, nullptr}, M};
  return {mean,
          scores,
          marks,
          c,
          padded_copy(log_mass, M, A(0), scratch),
          padded_copy(tail.spread + c * M, M, A(0), scratch),
          shift,
          compact_tile(k, v, top, K, D, scratch),
          cells,
          keys,
          cell_keys,
          band,
          key_cluster,
          share};
}

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
inline void refined_rows(const HeadForward& head, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const int64_t n = head.valid.n, D = s.D, M = s.M, K = smaller(s.K, n), W = smaller(head.band, n);
  int32_t *query_cluster = take<int32_t>(scratch, n), *key_cluster = take<int32_t>(scratch, n), *cluster = take<int32_t>(scratch, smaller(s.C, n));
  A *x = dense_target(q, n, D, scratch), *keys = dense_target(k, n, D, scratch), *values = dense_target(v, n, D, scratch);
  // Queries are clustered unscaled: the scale changes no distance's order.
  assign_rows(q, n, sample_centroids(q, n, s.C, head.iterations, head.sample, D, scratch), D, query_cluster, x, scratch);
  scatter_valid(query_cluster, head.valid, s.N, head.assignment);
  const Groups groups = group_tokens(query_cluster, n, s.C, scratch);
  const int64_t C = filled_clusters(groups, s.C, cluster), stride = score_stride<A>(n);
  const A* means = cluster_means(Rows<A>{x, D, nullptr}, groups, cluster, C, A(head.scale), D, scratch);

  // Keys and values pass by once: assigned, scored both ways round, and copied.
  A *scores = take_guarded<A>(scratch, C * stride, W), *by_token = take<A>(scratch, n * token_stride<A>(C));
  const Centroids<A> centroids = sample_centroids(k, n, M, head.iterations, head.sample, D, scratch);
  each_panel(k, n, D, scratch, [&](int64_t first, int64_t count, const A* panel, Ahead& ahead, Scratch& own) {
    for (int64_t i = first + count; i < smaller(n, first + count + PANEL<A>); ++i) ahead.add_row(v[i], D);
    copy_rows(k, first, count, D, keys);
    copy_rows(v, first, count, D, values);
    assign_panel(panel, count, centroids, D, key_cluster + first, ahead, own);
    product(means, D, C, panel, D, scores + first, stride, ahead);
    turn_scores(scores, stride, C, first, count, by_token);
  });
  scatter_valid(key_cluster, head.valid, s.N, head.key_assignment);

  int32_t *top = take<int32_t>(scratch, C * K), *found = take<int32_t>(scratch, C);
  const Marks marks = unmarked(C, n, W, scratch);
  each(C, scratch, [&](int64_t c, Scratch& own) { select_top(scores + c * stride, n, K, top + c * K, own); });
  for (int64_t c = 0; c < C; ++c) {
    found[c] = int32_t(K);
    for (int64_t j = 0; j < K; ++j) marks.add(c, top[c * K + j]);
  }
  write_all_top(head, groups, top, K, scratch);
  const Tails<A> tail = tails(Rows<A>{keys, D, nullptr}, Rows<A>{values, D, nullptr}, group_tokens(key_cluster, n, M, scratch), M, by_token, marks, C, D, scratch);
  attend_clusters(head, groups, cluster, C, means, scores, stride, marks, {top, found, K}, tail, query_cluster, key_cluster, x, keys, values, log_mass, scratch);
}

template <class A>
void cluster_rows(const Slice& x, const Valid& valid, const Sizes& s, int64_t rounds, int64_t sample, int32_t* assignment, Scratch& scratch) {
  int32_t* clusters = take<int32_t>(scratch, valid.n);
  if (valid.n) {
    const Rows<A> rows = valid_rows<A>(x, valid, s.D, scratch);
    assign_rows(rows, valid.n, sample_centroids(rows, valid.n, s.C, rounds, sample, s.D, scratch), s.D, clusters, static_cast<A*>(nullptr), scratch);
  }
  scatter_valid(clusters, valid, s.N, assignment);
}

// The valid ones among the top keys, from token positions, for C clusters: the listed ones, or the first without a list. `index` leads from positions to valid
// indices.
inline void list_top(const int32_t* top_keys, const int32_t* cluster, int64_t C, const Sizes& s, const int32_t* index, int32_t* top, int32_t* found) {
  for (int64_t c = 0; c < C; ++c) found[c] = int32_t(s.K ? valid_top(top_keys + (cluster ? cluster[c] : c) * s.K, s.K, s.N, index, top + c * s.K) : 0);
}
inline Marks mark_top(const TopLists& top, int64_t C, int64_t n, int64_t W, Scratch& scratch) {
  const Marks marks = unmarked(C, n, W, scratch);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t j = 0; j < top.found[c]; ++j) marks.add(c, top.keys[c * top.stride + j]);
  return marks;
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
  copy_rows(rows, 0, n, D, dense);
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
