// The two-sided tail: for every pair of a query cluster c and a key cluster m, over the keys of m outside T_c, the mass and the weighted means.
#pragma once
#include "attention.h"

namespace {

template <class A>
struct Tails {
  A* log_mass;       // (C, M): ln Z_cm, -inf for a cell without keys
  A* spread;         // (C, M): sigma_cm
  A *keys, *values;  // (C, M, D): the means of the cell, 0 for one without keys
};

template <class A>
inline A square_distance(const A* a, const A* b, int64_t D) {
  A sum = A(0);
  for (int64_t d = 0; d < D; ++d) {
    const A difference = a[d] - b[d];
    sum += difference * difference;
  }
  return sum;
}

// Scores to weights e^(s - largest of the cell), in the order of the key clusters; 0 on the top keys. Membership is a mark, never a weight of 0.
template <class A>
inline void cell_weights(const A* scores, const Groups& groups, int64_t n, int64_t M, const uint8_t* is_top, A* weights, A* largest, bool* filled) {
  for (int64_t m = 0; m < M; ++m) {
    largest[m] = -infinity<A>();
    filled[m] = false;
    for (int64_t i = groups.first[m]; i < groups.first[m + 1]; ++i) {
      const int32_t j = groups.order[i];
      if (is_top[j]) continue;
      filled[m] = true;
      largest[m] = scores[j] > largest[m] ? scores[j] : largest[m];
    }
    for (int64_t i = groups.first[m]; i < groups.first[m + 1]; ++i) {
      const int32_t j = groups.order[i];
      weights[i] = is_top[j] ? -infinity<A>() : scores[j] - largest[m];
    }
  }
  for (int64_t i = n; i < round_up(n, Vec<A>::lanes); ++i) weights[i] = A(0);
  for (int64_t i = 0; i < n; i += Vec<A>::lanes) store(weights + i, exponential<A>(load(weights + i)));
}

// `scores` (C, stride) by valid index, `is_top` (C, n). The spread uses differences from the key cluster's centre: sum e |k - mu|^2 / sum e - |K - mu|^2, over D.
template <class A>
inline Tails<A> tails(const Rows<A>& k, const Rows<A>& v, int64_t n, const Groups& groups, int64_t M, const A* scores, int64_t stride, const uint8_t* is_top, int64_t C,
                      int64_t D, Scratch& scratch) {
  const Tails<A> result{take<A>(scratch, C * M), take<A>(scratch, C * M), take<A>(scratch, C * M * D), take<A>(scratch, C * M * D)};
  const ScratchMark before = mark(scratch);
  const int64_t padded = round_up(n, Vec<A>::lanes);
  A *weights = take<A>(scratch, C * padded), *largest = take<A>(scratch, C * M), *center = take<A>(scratch, D), *away = take<A>(scratch, n);
  bool* filled = take<bool>(scratch, C * M);
  for (int64_t c = 0; c < C; ++c) cell_weights(scores + c * stride, groups, n, M, is_top + c * n, weights + c * padded, largest + c * M, filled + c * M);
  for (int64_t m = 0; m < M; ++m) {
    const int64_t first = groups.first[m], count = groups.size(m);
    const Rows<A> keys = listed_rows(k, groups.order + first, count, scratch), values = listed_rows(v, groups.order + first, count, scratch);
    mean_row(k, groups.order + first, count, A(1), D, center);
    for (int64_t i = 0; i < count; ++i) away[i] = square_distance(keys[i], center, D);
    weighted_sum(weights + first, padded, 1, C, keys, count, D, false, result.keys + m * D, M * D);
    weighted_sum(weights + first, padded, 1, C, values, count, D, false, result.values + m * D, M * D);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t cell = c * M + m;
      A *key = result.keys + cell * D, *value = result.values + cell * D;
      if (!filled[cell]) {
        result.log_mass[cell] = -infinity<A>();
        result.spread[cell] = A(0);
        clear(key, size_t(D) * sizeof(A));
        clear(value, size_t(D) * sizeof(A));
        continue;
      }
      A total = A(0), square = A(0);
      for (int64_t i = 0; i < count; ++i) {
        total += weights[c * padded + first + i];
        square += weights[c * padded + first + i] * away[i];
      }
      divide_row(key, total, D);
      divide_row(value, total, D);
      const A spread = (square / total - square_distance(key, center, D)) / A(D);
      result.spread[cell] = spread < A(0) ? A(0) : spread;
      result.log_mass[cell] = largest[cell] + logarithm(total);
    }
  }
  release(scratch, before);
  return result;
}

}  // namespace
