// The queries of one cluster over their tile: K exact keys and M virtual ones, under one maximum with their bands.
#pragma once
#include "band.h"
#include "tail.h"

namespace {

// The key cluster of each token and of those outside of the text, with M for none.
inline int32_t* guarded_clusters(const int32_t* cluster, int64_t n, int64_t M, int64_t W, Scratch& scratch) {
  int32_t* guarded = take_guarded<int32_t>(scratch, n, W);
  for (int64_t j = -W; j < n + W + VECTOR_BYTES; ++j) guarded[j] = j < 0 || j >= n || cluster[j] < 0 || cluster[j] > M ? int32_t(M) : cluster[j];
  return guarded;
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
  const Parts blocks(count, QUERY_BLOCK);
  for (int64_t block = 0; block < blocks.number; ++block) {
    const int64_t first = blocks.begin(block), here = blocks.begin(block + 1) - first;
    for (int64_t r = 0; r < here; ++r) scale_row(x + queries[first + r] * D, scale, D, scaled + r * D);
    const int32_t* later = queries + first + here;
    const int64_t then = smaller(count - first - here, here);
    ahead.clear();
    ahead.add_rows(then, D * int64_t(sizeof(A)), [&](int64_t r) { return x + later[r] * D; });
    ahead.add_rows(then, view.band.width * int64_t(sizeof(A)), [&](int64_t r) { return view.band.weights + later[r] * padded; });
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
  const Rows<A> keys = listed_rows(k, top, K, D, scratch), cell_keys{tail.keys + c * M * D, D, nullptr};
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

}  // namespace
