// The band of refined_clustered: each query and its W neighbours on either side, token by token, for neighbours lie side by side.
#pragma once
#include "heads.h"

namespace {

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
  each_chunk(W ? n : 0, scratch, [&](int64_t first, int64_t end, Scratch& own) {
    A* x = take<A>(own, R * D);
    for (int64_t i = first; i < end;) {
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

// row += sum_w weights[w] * values[w], V vectors of d at a time.
template <class A, int V>
CUDA_OPS_INLINE void add_values(const A* weights, const A* values, int64_t count, int64_t D, A* row) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load(row + v * L);
  for (int64_t w = 0; w < count; ++w)
    for (int v = 0; v < V; ++v) sum[v] = fma(set(weights[w]), load(values + w * D + v * L), sum[v]);
  for (int v = 0; v < V; ++v) store(row + v * L, sum[v]);
}
template <class A>
inline void add_band(const A* weights, const A* values, int64_t count, int64_t D, A* row) {
  constexpr int64_t L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L) add_values<A, 4>(weights, values + d, count, D, row + d);
  for (; d + L <= D; d += L) add_values<A, 1>(weights, values + d, count, D, row + d);
  if (d == D) return;
  vec<A> sum = load_part(row + d, D - d);
  for (int64_t w = 0; w < count; ++w) sum = fma(set(weights[w]), load_part(values + w * D + d, D - d), sum);
  store_part(row + d, sum, D - d);
}

// Adds the values of the band, token by token, and writes the outputs of the tokens that have a cluster.
template <class A>
inline void write_attended(const HeadForward& head, const Band<A>& band, const A* v, const int32_t* query_cluster, A* attended, Scratch& scratch) {
  const int64_t n = head.valid.n, D = head.sizes.D;
  const int32_t* position = head.valid.position;
  each_chunk(n, scratch, [&](int64_t first, int64_t last, Scratch&) {
    for (int64_t i = first; i < last; ++i) {
      if (query_cluster[i] < 0 || query_cluster[i] >= head.sizes.C) continue;
      A* row = attended + i * D;
      const int64_t begin = band.begin(i), end = band.W ? band.end(i, n) : begin;
      add_band(band.weights + i * band.stride + begin, v + (i - band.W + begin) * D, end - begin, D, row);
      write_row(head.out, position[i], D, row);
    }
    finish_streams();
  });
}

}  // namespace
