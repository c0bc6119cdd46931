// The two skinny products that everything is made of.
// Each result is one chain of multiply-adds in the order of the summed index, started from 0 or from what is there: it does not depend on how many rows or
// columns share a register block, nor on where in a block they lie.
#pragma once
#include "rows.h"

namespace {

// A panel holds PANEL rows of D elements, transposed: element d of row t at d * PANEL + t.
template <class A>
constexpr int64_t PANEL = 2 * Vec<A>::lanes;

template <class A>
inline int64_t panel_count(int64_t n) {
  return (n + PANEL<A> - 1) / PANEL<A>;
}

// Elements from one row of n scores to the next: whole panels, and never a multiple of a page, whose rows would share the sets of a cache.
template <class A>
inline int64_t score_stride(int64_t n) {
  return (panel_count<A>(n) | 1) * PANEL<A>;
}

// Of the `left` rows from `first` on.
template <class A>
inline void pack_panel(const Rows<A>& rows, int64_t first, int64_t left, int64_t D, A* panel) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t half = 0; half < PANEL<A>; half += L) {
    const int64_t here = left - half < 0 ? 0 : smaller(left - half, L);
    const A* row[L];
    for (int64_t t = 0; t < here; ++t) row[t] = rows[first + half + t];
    int64_t d = 0;
    if (here == L)
      for (; d + L <= D; d += L) {
        vec<A> block[L];
        for (int t = 0; t < L; ++t) block[t] = load(row[t] + d);
        transpose<A>(block);
        for (int t = 0; t < L; ++t) store(panel + (d + t) * PANEL<A> + half, block[t]);
      }
    for (; d < D; ++d) {
      for (int64_t t = 0; t < here; ++t) panel[d * PANEL<A> + half + t] = row[t][d];
      for (int64_t t = here; t < L; ++t) panel[d * PANEL<A> + half + t] = A(0);
    }
  }
}

// Tokens that one worker takes at a time, in whole panels.
constexpr int64_t CHUNK = 512;

// task(begin, end, scratch) for every chunk of n tokens.
template <class Task>
inline void each_chunk(int64_t n, Scratch& scratch, const Task& task) {
  each((n + CHUNK - 1) / CHUNK, scratch, [&](int64_t chunk, Scratch& own) { task(chunk * CHUNK, smaller(n, (chunk + 1) * CHUNK), own); });
}

// visit(first, count, panel, ahead, scratch) for every panel of n rows; `ahead` holds the lines of the next one. With `dense`, (n, D), the rows are copied on the way.
template <class A, template <class> class Source, class Visit>
inline void each_panel(const Source<A>& source, int64_t n, int64_t D, A* dense, Scratch& scratch, const Visit& visit) {
  each_chunk(n, scratch, [&](int64_t begin, int64_t end, Scratch& own) {
    A *panel = take<A>(own, D * PANEL<A>), *room = dense ? nullptr : room_for(source, PANEL<A>, D, own);
    Ahead ahead = take_ahead<A>(2 * PANEL<A>, D, own);  // the visitor may add as many
    const ScratchMark before = mark(own);
    for (int64_t first = begin; first < end; first += PANEL<A>, release(own, before)) {
      const int64_t count = smaller(end - first, PANEL<A>), later = first + count;
      pack_panel(dense ? copied_rows(source, first, count, D, dense + first * D) : some_rows(source, first, count, D, room), 0, count, D, panel);
      ahead.set_rows(source, later, smaller(n - later, PANEL<A>), D);
      visit(first, count, panel, ahead, own);
    }
  });
}

// All n rows as consecutive panels.
template <class A>
inline A* pack_panels(const Rows<A>& rows, int64_t n, int64_t D, Scratch& scratch) {
  A* panels = take<A>(scratch, panel_count<A>(n) * D * PANEL<A>);
  for (int64_t j = 0; j < n; j += PANEL<A>) pack_panel(rows, j, n - j, D, panels + j * D);
  return panels;
}

// One number of each of R rows that lie equally far apart, step by step along the rows. A third as many pointers as rows, for an address may add once or twice
// the distance: with one for each row most would be in memory.
template <class A, int R>
class Walk {
 public:
  CUDA_OPS_INLINE Walk(const A* first, int64_t distance) : distance_(distance) {
#pragma GCC unroll 8
    for (int i = 0; i < POINTERS; ++i) at_[i] = first + 3 * i * distance;
  }
  CUDA_OPS_INLINE A operator[](int r) const { return at_[r / 3][r % 3 * distance_]; }
  CUDA_OPS_INLINE void step(int64_t along) {
#pragma GCC unroll 8
    for (int i = 0; i < POINTERS; ++i) {
      at_[i] += along;
      asm("" : "+r"(at_[i]));  // or the compiler has a pointer for each row again
    }
  }

 private:
  static constexpr int POINTERS = (R + 2) / 3;
  const A* at_[POINTERS];
  int64_t distance_;
};

// out[r][t] = sum_d row_r[d] * panel[d][t] for `count` rows and the PANEL columns of one panel.
template <class A, int R>
inline void product_block(const A* rows, int64_t row_stride, const A* panel, int64_t D, A* out, int64_t out_stride, Ahead& lines) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum[R][2];
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = set(A(0));
  Walk<A, R> walk(rows, row_stride);
  Ahead ahead = lines;
  for (int64_t begin = 0; begin < D; begin += AHEAD_STEPS) {
    ahead.next();
    const int64_t end = smaller(D, begin + AHEAD_STEPS);
    for (int64_t d = begin; d < end; ++d) {
      const vec<A> low = load(panel + d * PANEL<A>), high = load(panel + d * PANEL<A> + L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vec<A> x = set(walk[r]);
        sum[r][0] = fma(x, low, sum[r][0]);
        sum[r][1] = fma(x, high, sum[r][1]);
      }
      walk.step(1);
    }
  }
  lines.begin = ahead.begin;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(out + r * out_stride, sum[r][0]);
    store(out + r * out_stride + L, sum[r][1]);
  }
}

template <class A, int R>
CUDA_OPS_INLINE void product_rows(const A* rows, int64_t row_stride, int64_t count, const A* panel, int64_t D, A* out, int64_t out_stride, Ahead& ahead) {
  if constexpr (R > 0) {
    if (count == R) return product_block<A, R>(rows, row_stride, panel, D, out, out_stride, ahead);
    product_rows<A, R - 1>(rows, row_stride, count, panel, D, out, out_stride, ahead);
  }
}
template <class A>
inline void product(const A* rows, int64_t row_stride, int64_t count, const A* panel, int64_t D, A* out, int64_t out_stride, Ahead& ahead = nothing_ahead) {
  const Parts parts(count, PRODUCT_ROWS);
  for (int64_t part = 0; part < parts.number; ++part) {
    const int64_t r = parts.begin(part);
    product_rows<A, PRODUCT_ROWS>(rows + r * row_stride, row_stride, parts.begin(part + 1) - r, panel, D, out + r * out_stride, out_stride, ahead);
  }
}

// Queries at a time: enough to use a panel from cache, few enough for their scores to stay there.
constexpr int64_t QUERY_BLOCK = 2 * PRODUCT_ROWS;

// scores[r][j] = queries[r] . key_j for `count` queries, rows of `stride`.
template <class A>
inline void tile_scores(const A* queries, int64_t count, const A* panels, int64_t keys, int64_t D, A* scores, int64_t stride, Ahead& ahead = nothing_ahead) {
  for (int64_t j = 0; j < keys; j += PANEL<A>) product(queries, D, count, panels + j * D, D, scores + j, stride, ahead);
}

// out[r][d] (+)= sum_j weight[r * weight_stride + j * weight_step] * rows[j][d], j = 0 … n - 1 in this order, for R rows and V vectors of d.
template <class A, int R, int V, bool whole>
inline void weighted_block(const A* weights, int64_t weight_stride, int64_t weight_step, const Rows<A>& rows, int64_t n, int64_t d, int64_t D, bool add, A* out,
                           int64_t out_stride, Ahead& lines) {
  constexpr int L = Vec<A>::lanes;
  const int64_t last = whole ? L : D - d - (V - 1) * L;  // lanes of the last vector
  vec<A> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const A* from = out + r * out_stride + d + v * L;
      sum[r][v] = !add ? set(A(0)) : whole || v < V - 1 ? load(from) : load_part(from, last);
    }
  Walk<A, R> walk(weights, weight_stride);
  Ahead ahead = lines;
  for (int64_t begin = 0; begin < n; begin += AHEAD_STEPS) {
    ahead.next();
    const int64_t end = smaller(n, begin + AHEAD_STEPS);
    for (int64_t j = begin; j < end; ++j) {
      const A* row = rows[j] + d;
      vec<A> x[V];
      for (int v = 0; v < V; ++v) x[v] = whole || v < V - 1 ? load(row + v * L) : load_part(row + v * L, last);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const vec<A> w = set(walk[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
      }
      walk.step(weight_step);
    }
  }
  lines.begin = ahead.begin;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      A* to = out + r * out_stride + d + v * L;
      if (whole || v < V - 1)
        store(to, sum[r][v]);
      else
        store_part(to, sum[r][v], last);
    }
}

template <class A, int R>
inline void weighted_block_rows(const A* weights, int64_t weight_stride, int64_t weight_step, const Rows<A>& rows, int64_t n, int64_t D, bool add, A* out,
                                int64_t out_stride, Ahead& ahead) {
  constexpr int L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + SUM_VECTORS * L <= D; d += SUM_VECTORS * L) weighted_block<A, R, SUM_VECTORS, true>(weights, weight_stride, weight_step, rows, n, d, D, add, out, out_stride, ahead);
  if constexpr (SUM_VECTORS > 2)
    for (; d + 2 * L <= D; d += 2 * L) weighted_block<A, R, 2, true>(weights, weight_stride, weight_step, rows, n, d, D, add, out, out_stride, ahead);
  for (; d + L <= D; d += L) weighted_block<A, R, 1, true>(weights, weight_stride, weight_step, rows, n, d, D, add, out, out_stride, ahead);
  if (d < D) weighted_block<A, R, 1, false>(weights, weight_stride, weight_step, rows, n, d, D, add, out, out_stride, ahead);
}
template <class A, int R>
CUDA_OPS_INLINE void weighted_rows(const A* weights, int64_t weight_stride, int64_t weight_step, int64_t count, const Rows<A>& rows, int64_t n, int64_t D, bool add,
                                   A* out, int64_t out_stride, Ahead& ahead) {
  if constexpr (R > 0) {
    if (count == R) return weighted_block_rows<A, R>(weights, weight_stride, weight_step, rows, n, D, add, out, out_stride, ahead);
    weighted_rows<A, R - 1>(weights, weight_stride, weight_step, count, rows, n, D, add, out, out_stride, ahead);
  }
}
template <class A>
inline void weighted_sum(const A* weights, int64_t weight_stride, int64_t weight_step, int64_t count, const Rows<A>& rows, int64_t n, int64_t D, bool add, A* out,
                         int64_t out_stride, Ahead& ahead = nothing_ahead) {
  const Parts parts(count, SUM_ROWS);
  for (int64_t part = 0; part < parts.number; ++part) {
    const int64_t r = parts.begin(part);
    weighted_rows<A, SUM_ROWS>(weights + r * weight_stride, weight_stride, weight_step, parts.begin(part + 1) - r, rows, n, D, add, out + r * out_stride, out_stride, ahead);
  }
}

// Rows at a time that stay in the nearest cache while all sums take their share of them.
constexpr int64_t ROW_BLOCK = 48;

// weighted_sum over many rows for `count` sums: every row comes from memory once.
template <class A, template <class> class Source>
inline void sums_by_block(const A* weights, int64_t weight_stride, int64_t weight_step, int64_t count, const Source<A>& source, int64_t n, int64_t D, A* out, int64_t out_stride, Scratch& scratch) {
  const ScratchMark before = mark(scratch);
  A* room = room_for(source, ROW_BLOCK, D, scratch);
  Ahead ahead = take_ahead<A>(ROW_BLOCK, D, scratch);
  if (!n)
    for (int64_t r = 0; r < count; ++r) clear(out + r * out_stride, size_t(D) * sizeof(A));
  for (int64_t i = 0; i < n; i += ROW_BLOCK) {
    const int64_t later = smaller(n, i + ROW_BLOCK), here = later - i;
    const Rows<A> rows = some_rows(source, i, here, D, room);
    ahead.set_rows(source, later, smaller(n - later, ROW_BLOCK), D);
    weighted_sum(weights + i * weight_step, weight_stride, weight_step, count, rows, here, D, i > 0, out, out_stride, ahead);
  }
  release(scratch, before);
}

// a . b in the order of vectors, then of lanes.
template <class A>
inline A row_product(const A* a, const A* b, int64_t D) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum = set(A(0));
  int64_t d = 0;
  for (; d + L <= D; d += L) sum = fma(load(a + d), load(b + d), sum);
  if (d < D) sum = fma(load_part(a + d, D - d), load_part(b + d, D - d), sum);
  return sum_lanes<A>(sum);
}

// Two vectors that each hold the partial sums of some rows, 2 W lanes to a row, as one with W lanes to a row: those of a, then those of b.
template <class A, int W, int... lane>
CUDA_OPS_INLINE vec<A> merge_lanes(vec<A> a, vec<A> b) {
  constexpr int L = sizeof...(lane), half = L / 2;
  return __builtin_shufflevector(a, b, (lane < half ? lane / W * 2 * W + lane % W : L + (lane - half) / W * 2 * W + lane % W)...) +
         __builtin_shufflevector(a, b, (lane < half ? lane / W * 2 * W + lane % W + W : L + (lane - half) / W * 2 * W + lane % W + W)...);
}
template <class A, int W>
CUDA_OPS_INLINE vec<A> merge(vec<A> a, vec<A> b) {
  constexpr int L = Vec<A>::lanes;
  if constexpr (L == 2) return merge_lanes<A, W, 0, 1>(a, b);
  if constexpr (L == 4) return merge_lanes<A, W, 0, 1, 2, 3>(a, b);
  if constexpr (L == 8) return merge_lanes<A, W, 0, 1, 2, 3, 4, 5, 6, 7>(a, b);
  if constexpr (L == 16) return merge_lanes<A, W, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(a, b);
}

// The sums over the lanes of R vectors, in lanes 0 … R - 1 of the first: the bits of sum_lanes.
template <class A, int R, int W = Vec<A>::lanes / 2>
CUDA_OPS_INLINE void sum_each(vec<A>* rows) {
  if constexpr (W > 0) {
    rows[0] = merge<A, W>(rows[0], rows[R > 1 ? 1 : 0]);
    for (int r = 1; r < R / 2; ++r) rows[r] = merge<A, W>(rows[2 * r], rows[2 * r + 1]);
    sum_each<A, (R > 1 ? R / 2 : 1), W / 2>(rows);
  }
}

// x[r] . rows[r] for R pairs of rows, in the lanes 0 … R - 1: the bits of row_product.
template <class A, int R>
CUDA_OPS_INLINE vec<A> pair_products(const A* const* x, const A* const* rows, int64_t D) {
  constexpr int L = Vec<A>::lanes;
  vec<A> sum[R];
  for (int r = 0; r < R; ++r) sum[r] = set(A(0));
  int64_t d = 0;
  for (; d + L <= D; d += L)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = fma(load(x[r] + d), load(rows[r] + d), sum[r]);
  if (d < D)
    for (int r = 0; r < R; ++r) sum[r] = fma(load_part(x[r] + d, D - d), load_part(rows[r] + d, D - d), sum[r]);
  sum_each<A, R>(sum);
  return sum[0];
}

// Dot products at a time.
template <class A>
constexpr int PAIRS = Vec<A>::lanes < 8 ? Vec<A>::lanes : 8;

// out[r] = x . rows[r].
template <class A>
inline void row_products(const A* x, const Rows<A>& rows, int64_t count, int64_t D, A* out) {
  constexpr int R = PAIRS<A>;
  const A *same[R], *row[R];
  for (int i = 0; i < R; ++i) same[i] = x;
  int64_t r = 0;
  for (; r + R <= count; r += R) {
    for (int i = 0; i < R; ++i) row[i] = rows[r + i];
    store_part(out + r, pair_products<A, R>(same, row, D), R);
  }
  for (; r < count; ++r) out[r] = row_product(x, rows[r], D);
}

template <class A>
inline void add_scaled(const A* row, A weight, int64_t D, A* out) {
  constexpr int L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + L <= D; d += L) store(out + d, fma(set(weight), load(row + d), load(out + d)));
  if (d < D) store_part(out + d, fma(set(weight), load_part(row + d, D - d), load_part(out + d, D - d)), D - d);
}

}  // namespace
