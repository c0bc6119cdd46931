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

// `count` elements with readable ones before and behind them: a band is read in whole vectors, whatever lies outside is masked.
template <class T>
inline T* take_guarded(Scratch& scratch, int64_t count, int64_t W) {
  constexpr int64_t LANES = VECTOR_BYTES;  // of bytes, the smallest type
  const int64_t before = round_up(W, LANES);
  return take<T>(scratch, before + count + W + LANES) + before;
}

// The marks of T_c by cluster: 1 on its tokens and outside of the text, else 0.
struct Marks {
  uint8_t* base;
  int64_t stride;
  uint8_t* row(int64_t c) const { return base + c * stride; }
};

inline Marks unmarked(int64_t C, int64_t n, int64_t W, Scratch& scratch) {
  const int64_t stride = n + round_up(W, VECTOR_BYTES) + VECTOR_BYTES;
  const Marks marks{take_guarded<uint8_t>(scratch, C * stride, W), stride};
  memset(marks.base - round_up(W, VECTOR_BYTES), 1, size_t(round_up(W, VECTOR_BYTES) + C * stride));
  for (int64_t c = 0; c < C; ++c) clear(marks.row(c), size_t(n));
  return marks;
}

// The key cluster of each token and of those outside of the text, with M for none.
inline int32_t* guarded_clusters(const int32_t* cluster, int64_t n, int64_t M, int64_t W, Scratch& scratch) {
  int32_t* guarded = take_guarded<int32_t>(scratch, n, W);
  for (int64_t j = -W; j < n + W + VECTOR_BYTES; ++j) guarded[j] = j < 0 || j >= n || cluster[j] < 0 || cluster[j] > M ? int32_t(M) : cluster[j];
  return guarded;
}

// The W valid tokens on either side of each, and the token itself.
template <class A>
struct Band {
  int64_t W, width;
  A* weights;  // (n, width): the products x_i . k_(i - W + w); once query i has been attended, what multiplies the values
  int64_t begin(int64_t i) const { return i < W ? W - i : 0; }
  int64_t end(int64_t i, int64_t n) const { return smaller(width, n - i + W); }
};

// Token by token: neighbours lie side by side, where those of a cluster's queries do not.
template <class A>
inline Band<A> band_products(const Rows<A>& q, const Rows<A>& k, int64_t n, int64_t W, A scale, int64_t D, Scratch& scratch) {
  const int64_t width = W ? 2 * W + 1 : 0;
  const Band<A> band{W, width, take<A>(scratch, n * width + Vec<A>::lanes)};
  A* x = take<A>(scratch, D);
  for (int64_t i = 0; i < n && W; ++i) {
    const int64_t begin = band.begin(i), end = band.end(i, n);
    A* products = band.weights + i * width;
    for (int64_t w = 0; w < width; ++w) products[w] = A(0);
    if (i + W + AHEAD < n) {
      prefetch_rows(q, i + AHEAD, 1, D);
      prefetch_rows(k, i + W + AHEAD, 1, D);
    }
    scale_row(q[i], scale, D, x);
    row_products(x, rows_from(k, i - W + begin), end - begin, D, products + begin);
  }
  return band;
}

// What the queries of one cluster share.
template <class A>
struct ClusterView {
  const A *mean, *scores;         // (D), (n) guarded
  const uint8_t* is_top;          // (n) guarded
  const A *log_mass, *spread;     // (M)
  const A* shift;                 // (M): ln Z_cm - mean . K_cm
  KeyTile<A> exact, cells;        // K keys; M virtual ones
  Rows<A> exact_keys, cell_keys;  // the keys of both tiles as rows
  Band<A> band;
  const int32_t* key_cluster;     // (n) guarded
  A* share;                       // (M + 1): of one query, f_im less what its own log mass says; -inf for no cell
  // A row of logits: those of the exact keys, nothing up to a whole panel, those of the cells from here on.
  int64_t first_cell() const { return panel_count<A>(exact.count) * PANEL<A>; }
  int64_t columns() const { return first_cell() + cells.count; }
  int64_t stride() const { return first_cell() + panel_count<A>(cells.count) * PANEL<A>; }
};

// Products of `count` rows with the exact and the virtual rows.
template <class A>
inline void both_scores(const ClusterView<A>& view, const A* rows, int64_t count, const A* exact_panels, const A* cell_panels, int64_t D, A* out) {
  tile_scores(rows, count, exact_panels, view.exact.count, D, out, view.stride());
  tile_scores(rows, count, cell_panels, view.cells.count, D, out + view.first_cell(), view.stride());
}

// Logits of the band of query i, in whole vectors: of the exact products and of what the tail already counted; both -inf where there is nothing to exchange.
template <class A>
inline void band_logits(const ClusterView<A>& view, int64_t i, A* exact, A* counted) {
  constexpr int64_t L = Vec<A>::lanes;
  const vec<A> nothing = set(-infinity<A>());
  for (int64_t w = 0; w < view.band.width; w += L) {
    const int64_t j = i - view.band.W + w, here = smaller(view.band.width - w, L);
    integers<A> marked;
    load_bytes(view.is_top + j, marked);
    const vec<A> product = load(view.band.weights + i * view.band.width + w), score = load(view.scores + j) + gather(view.share, view.key_cluster + j);
    store_part(exact + w, marked ? nothing : product, here);
    store_part(counted + w, marked ? nothing : score, here);
  }
}

template <class A>
struct Weighed {
  A total, largest;
};

// Turns the products of query i with its tile into numerators of one common maximum, and fills those of its band; returns the tile's sum and the maximum.
// `half` is |x - mean|^2 / 2; the second-order term of a cell is capped at 1.
template <class A>
inline Weighed<A> weigh_query(const ClusterView<A>& view, A half, int64_t i, A* row, A* near, A* tail) {
  A* cells = row + view.first_cell();
  for (int64_t m = 0; m < view.cells.count; ++m) {
    const A second = half * view.spread[m];
    cells[m] += view.shift[m] + (second > A(1) ? A(1) : second);
    view.share[m] = cells[m] - view.log_mass[m];
  }
  for (A* unused = row + view.exact.count; unused < cells; ++unused) *unused = -infinity<A>();
  band_logits(view, i, near, tail);
  const A largest = larger_of(row_largest(row, view.columns()), row_largest(near, view.band.width));
  const A total = numerators(row, view.columns(), largest);
  row_largest(tail, view.band.width);  // for what it sets behind the band
  numerators(near, view.band.width, largest);
  numerators(tail, view.band.width, largest);
  return {total, largest};
}

// Attends the queries of one cluster: rows of `attended` without the band's values, whose weights are left in the band.
template <class A>
inline void attend_refined(const ClusterView<A>& view, const Rows<A>& q, const int32_t* queries, int64_t count, A scale, int64_t D, A* attended, A* log_mass,
                           Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const ScratchMark before = mark(scratch);
  const int64_t stride = view.stride(), width = view.band.width, padded = round_up(width, L);
  A *scaled = take<A>(scratch, QUERY_BLOCK * D), *logits = take<A>(scratch, QUERY_BLOCK * stride), *out = take<A>(scratch, QUERY_BLOCK * D);
  A *exact = take<A>(scratch, QUERY_BLOCK * padded), *counted = take<A>(scratch, padded);
  Weighed<A> weighed[QUERY_BLOCK];
  for (int64_t first = 0; first < count; first += QUERY_BLOCK) {
    const int64_t here = smaller(count - first, QUERY_BLOCK);
    for (int64_t r = 0; r < here; ++r) scale_row(q[queries[first + r]], scale, D, scaled + r * D);
    both_scores(view, scaled, here, view.exact.panels, view.cells.panels, D, logits);
    for (int64_t r = 0; r < here; ++r) {
      if (first + here + r < count) prefetch_rows(q, queries[first + here + r], 1, D);
      const A half = square_distance(scaled + r * D, view.mean, D) / 2;
      A* near = exact + r * padded;
      weighed[r] = weigh_query(view, half, queries[first + r], logits + r * stride, near, counted);
      vec<A> change = set(A(0));
      for (int64_t w = 0; w < padded; w += L) {
        const vec<A> weight = load(near + w) - load(counted + w);
        store(near + w, weight);
        change = change + weight;
      }
      weighed[r].total += sum_lanes<A>(change);
    }
    weighted_sum(logits, stride, 1, here, view.exact.values, view.exact.count, D, false, out, D);
    weighted_sum(logits + view.first_cell(), stride, 1, here, view.cells.values, view.cells.count, D, true, out, D);
    for (int64_t r = 0; r < here; ++r) {
      const int64_t i = queries[first + r];
      const A inverse = A(1) / weighed[r].total;
      scale_row(out + r * D, inverse, D, attended + i * D);
      scale_row(exact + r * padded, inverse, width, view.band.weights + i * width);
      log_mass[i] = weighed[r].largest + logarithm(weighed[r].total);
    }
  }
  release(scratch, before);
}

// Adds the values of the band, token by token, and writes the outputs of the tokens that have a cluster.
template <class A>
inline void write_attended(const HeadForward& head, const Band<A>& band, const Rows<A>& v, const int32_t* query_cluster, A* attended) {
  const int64_t n = head.valid.n, D = head.sizes.D;
  for (int64_t i = 0; i < n; ++i) {
    if (query_cluster[i] < 0 || query_cluster[i] >= head.sizes.C) continue;
    A* row = attended + i * D;
    const int64_t begin = band.begin(i), end = band.end(i, n), later = i + band.W + AHEAD;
    if (band.W && later < n) prefetch_rows(v, later, 1, D);
    if (band.W) weighted_sum(band.weights + i * band.width + begin, band.width, 1, 1, rows_from(v, i - band.W + begin), end - begin, D, true, row, D);
    write_row(head.out, head.valid.position[i], D, row);
  }
}

// The tiles of cluster c. The exact values are copied: their rows lie far apart and each block of queries reads them again.
template <class A>
inline ClusterView<A> view_of_cluster(const Tails<A>& tail, int64_t c, const A* means, const A* scores, const uint8_t* is_top, const int32_t* top, int64_t K, int64_t M,
                                      const Band<A>& band, const int32_t* key_cluster, const Rows<A>& k, const Rows<A>& v, int64_t D, Scratch& scratch) {
  A *values = take<A>(scratch, K * D), *shift = take<A>(scratch, M), *share = take<A>(scratch, M + 1);
  share[M] = -infinity<A>();
  for (int64_t j = 0; j < K; ++j) copy(values + j * D, v[top[j]], size_t(D) * sizeof(A));
  const Rows<A> keys = listed_rows(k, top, K, scratch), cell_keys{tail.keys + c * M * D, D, nullptr};
  for (int64_t m = 0; m < M; ++m) shift[m] = tail.log_mass[c * M + m] - row_product(means + c * D, cell_keys[m], D);
  const KeyTile<A> exact{pack_panels(keys, K, D, scratch), Rows<A>{values, D, nullptr}, K};
  const KeyTile<A> cells{pack_panels(cell_keys, M, D, scratch), Rows<A>{tail.values + c * M * D, D, nullptr}, M};
  return {means + c * D, scores, is_top, tail.log_mass + c * M, tail.spread + c * M, shift, exact, cells, keys, cell_keys, band, key_cluster, share};
}

template <class A>
inline void refined_rows(const HeadForward& head, const Rows<A>& q, const Rows<A>& k, const Rows<A>& v, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const int64_t n = head.valid.n, D = s.D, M = s.M, K = smaller(s.K, n), W = smaller(head.band, n);
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
  A* scores = take_guarded<A>(scratch, C * stride, W);
  panel_scores(means, C, k, n, D, scores, stride, scratch);

  int32_t *top = take<int32_t>(scratch, C * K), *found = take<int32_t>(scratch, C);
  const Marks marks = unmarked(C, n, W, scratch);
  for (int64_t c = 0; c < C; ++c) {
    select_top(scores + c * stride, n, K, top + c * K, scratch);
    found[c] = int32_t(K);
    for (int64_t j = 0; j < K; ++j) marks.row(c)[top[c * K + j]] = 1;
  }
  write_all_top(head, groups, top, K, scratch);
  const Tails<A> tail = tails(k, v, n, key_groups, M, key_cluster, scores, stride, {top, found, K}, C, D, scratch);

  const Band<A> band = band_products(q, k, n, W, A(head.scale), D, scratch);
  const int32_t* guarded = guarded_clusters(key_cluster, n, M, W, scratch);
  A* attended = take<A>(scratch, n * D);
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < C; ++c, release(scratch, before)) {
    const ClusterView<A> view = view_of_cluster(tail, c, means, scores + c * stride, marks.row(c), top + c * K, K, M, band, guarded, k, v, D, scratch);
    attend_refined(view, q, groups.order + groups.first[cluster[c]], groups.size(cluster[c]), A(head.scale), D, attended, log_mass, scratch);
  }
  write_attended(head, band, v, query_cluster, attended);
}

template <class A>
void cluster_rows(const Slice& x, const Valid& valid, const Sizes& s, int64_t rounds, int64_t sample, int32_t* assignment, Scratch& scratch) {
  int32_t* clusters = take<int32_t>(scratch, valid.n);
  if (valid.n) cluster_euclidean(valid_rows<A>(x, valid, s.D, scratch), valid.n, s.C, rounds, sample, s.D, clusters, scratch);
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
    for (int64_t j = 0; j < top.found[c]; ++j) marks.row(c)[top.keys[c * top.stride + j]] = 1;
  return marks;
}

template <class A>
inline A* gather_all_scores(const void* scores, const Valid& valid, const Sizes& s, int64_t stride, int64_t W, Scratch& scratch) {
  A* compact = take_guarded<A>(scratch, s.C * stride, W);
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
  list_top(top_keys, nullptr, s.C, s, index_of_position(keys, s.N, scratch), top, found);
  const A* compact = gather_all_scores<A>(scores, keys, s, stride, 0, scratch);
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
  const int32_t* query_cluster = gather_valid(head.assignment, valid, scratch);
  const Groups groups = group_tokens(query_cluster, n, s.C, scratch);
  const int64_t W = smaller(head.band, n);
  const int32_t* key_cluster = guarded_clusters(gather_valid(head.key_assignment, valid, scratch), n, s.M, W, scratch);
  int32_t *top = take<int32_t>(scratch, s.C * s.K), *found = take<int32_t>(scratch, s.C);
  list_top(head.top_keys, nullptr, s.C, s, index_of_position(valid, s.N, scratch), top, found);
  const Marks marks = mark_top({top, found, s.K}, s.C, n, W, scratch);
  const A *compact = gather_all_scores<A>(scores, valid, s, stride, W, scratch), *means = static_cast<const A*>(centroids);
  const Tails<A> tail{static_cast<A*>(cells.log_mass), static_cast<A*>(cells.spread), static_cast<A*>(cells.keys), static_cast<A*>(cells.values)};
  A *log_mass = take<A>(scratch, n), *attended = take<A>(scratch, n * s.D);
  for (int64_t i = 0; i < n; ++i) log_mass[i] = -infinity<A>();
  for (int64_t token = 0; token < s.N; ++token) clear(static_cast<A*>(head.out.base) + token * head.out.token_stride, size_t(s.D) * sizeof(A));
  const Band<A> band = band_products(q, k, n, W, A(head.scale), s.D, scratch);
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < s.C; ++c, release(scratch, before)) {
    if (!groups.size(c)) continue;
    const ClusterView<A> view = view_of_cluster(tail, c, means, compact + c * stride, marks.row(c), top + c * s.K, found[c], s.M, band, key_cluster, k, v, s.D, scratch);
    attend_refined(view, q, groups.order + groups.first[c], groups.size(c), A(head.scale), s.D, attended, log_mass, scratch);
  }
  write_attended(head, band, v, query_cluster, attended);
  scatter_values(log_mass, valid, s.N, -infinity<A>(), static_cast<A*>(head.log_mass));
}

}  // namespace
