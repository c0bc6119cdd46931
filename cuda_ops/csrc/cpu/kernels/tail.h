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
  constexpr int L = Vec<A>::lanes;
  vec<A> sum = set(A(0));
  int64_t d = 0;
  for (; d + L <= D; d += L) {
    const vec<A> difference = load(a + d) - load(b + d);
    sum = fma(difference, difference, sum);
  }
  if (d < D) {
    const vec<A> difference = load_part(a + d, D - d) - load_part(b + d, D - d);
    sum = fma(difference, difference, sum);
  }
  return sum_lanes<A>(sum);
}

// T_c of C clusters: `found[c]` valid indices at `keys + c * stride`.
struct TopLists {
  const int32_t *keys, *found;
  int64_t stride;
};

// T_c by token: bit c % 32 of word c / 32 is set for its tokens, and all bits outside of the text.
struct Marks {
  uint32_t* base;
  int64_t stride;  // from one word's tokens to the next
  const uint32_t* word(int64_t c) const { return base + c / 32 * stride; }
  bool holds(int64_t c, int64_t j) const { return word(c)[j] >> (c % 32) & 1; }
  void add(int64_t c, int64_t j) const { base[c / 32 * stride + j] |= uint32_t(1) << (c % 32); }
};

// `count` elements with readable ones before and behind them: a band is read in whole vectors, whatever lies outside is masked.
template <class T>
inline T* take_guarded(Scratch& scratch, int64_t count, int64_t W) {
  const int64_t before = round_up(W, VECTOR_BYTES);
  return take<T>(scratch, before + count + W + VECTOR_BYTES) + before;
}

inline Marks unmarked(int64_t C, int64_t n, int64_t W, Scratch& scratch) {
  const int64_t before = round_up(W, VECTOR_BYTES), stride = before + n + W + VECTOR_BYTES, words = (C + 31) / 32;
  const Marks marks{take_guarded<uint32_t>(scratch, words * stride, W), stride};
  memset(marks.base - before, 0xff, size_t(words * stride) * sizeof(uint32_t));
  for (int64_t w = 0; w < words; ++w) clear(marks.base + w * stride, size_t(n) * sizeof(uint32_t));
  return marks;
}

inline Marks mark_top(const TopLists& top, int64_t C, int64_t n, int64_t W, Scratch& scratch) {
  const Marks marks = unmarked(C, n, W, scratch);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t j = 0; j < top.found[c]; ++j) marks.add(c, top.keys[c * top.stride + j]);
  return marks;
}

// Scores by token, C of them padded to whole vectors: a cell takes its keys one by one, the clusters in the lanes.
template <class A>
inline int64_t token_stride(int64_t C) {
  return round_up(C, Vec<A>::lanes);
}

// The scores of one panel, (C, stride) from `first` on, to the rows of its tokens in `by_token`.
template <class A>
inline void turn_scores(const A* scores, int64_t stride, int64_t C, int64_t first, int64_t count, A* by_token) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t width = token_stride<A>(C);
  for (int64_t t = 0; t < count; t += L)
    for (int64_t c = 0; c < C; c += L) {
      vec<A> block[L];
      for (int64_t r = 0; r < L; ++r) block[r] = c + r < C ? load(scores + (c + r) * stride + first + t) : set(A(0));
      transpose<A>(block);
      for (int64_t r = 0; r < smaller(L, count - t); ++r) store(by_token + (first + t + r) * width + c, block[r]);
    }
}

// Of one cell's keys and L clusters: what the weights e^(s - largest) sum up to, over the keys outside T_c.
template <class A>
struct Mass {
  vec<A> largest, total, square;  // square: sum of weight times squared distance from the cell's centre
  integers<A> keys;               // how many there are, known by the marks and never by a weight of 0
};

// Scores of `members` by token to `weights` (count, width) in their order, for the L clusters from c on; 0 on the top keys.
template <class A>
inline Mass<A> weigh_keys(const A* by_token, int64_t width, const int32_t* members, int64_t count, const Marks& marks, int64_t c, const A* away, A* weights) {
  const uint32_t* marked = marks.word(c);
  const integers<A> bits = lane_bits<A>();
  Mass<A> mass{set(-infinity<A>()), set(A(0)), set(A(0)), {}};
  for (int64_t i = 0; i < count; ++i) {
    const integers<A> top = (integers<A>{} + integer<A>(marked[members[i]] >> (c % 32))) & bits, outside = (integers<A>)(top == 0);
    const vec<A> score = outside ? load(by_token + members[i] * width + c) : set(-infinity<A>());
    mass.largest = larger(score, mass.largest);
    mass.keys -= outside;
    store(weights + i * width + c, score);
  }
  const vec<A> shift = mass.keys != 0 ? mass.largest : set(A(0));
  for (int64_t i = 0; i < count; ++i) {
    const vec<A> weight = exponential<A>(load(weights + i * width + c) - shift);
    store(weights + i * width + c, weight);
    mass.total = mass.total + weight;
    mass.square = fma(weight, set(away[i]), mass.square);
  }
  return mass;
}

// mean = sum * inverse; returns |mean - center|^2.
template <class A>
inline A finish_mean(const A* sum, A inverse, const A* center, int64_t D, A* mean) {
  constexpr int L = Vec<A>::lanes;
  vec<A> square = set(A(0));
  int64_t d = 0;
  for (; d + L <= D; d += L) {
    const vec<A> here = load(sum + d) * set(inverse), away = here - load(center + d);
    store(mean + d, here);
    square = fma(away, away, square);
  }
  if (d < D) {
    const vec<A> here = load_part(sum + d, D - d) * set(inverse), away = here - load_part(center + d, D - d);
    store_part(mean + d, here, D - d);
    square = fma(away, away, square);
  }
  return sum_lanes<A>(square);
}

template <class A>
inline void one_cell(const Rows<A>& k, const Rows<A>& v, const int32_t* members, int64_t count, const A* by_token, const Marks& marks, int64_t C, int64_t D, int64_t m,
                     int64_t M, const Tails<A>& result, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t width = token_stride<A>(C);
  A *center = take<A>(scratch, D), *away = take<A>(scratch, count), *weights = take<A>(scratch, count * width);
  A *key_sums = take<A>(scratch, C * D), *value_sums = take<A>(scratch, C * D);
  const Rows<A> keys = listed_rows(k, members, count, D, scratch), values = listed_rows(v, members, count, D, scratch);
  mean_row(k, members, count, A(1), D, center);
  for (int64_t i = 0; i < count; ++i) away[i] = square_distance(keys[i], center, D);
  Mass<A>* masses = take<Mass<A>>(scratch, width / L);
  for (int64_t c = 0; c < C; c += L) masses[c / L] = weigh_keys(by_token, width, members, count, marks, c, away, weights);
  sums_by_block(weights, 1, width, C, keys, count, D, key_sums, D, scratch);
  sums_by_block(weights, 1, width, C, values, count, D, value_sums, D, scratch);
  for (int64_t first = 0; first < C; first += L) {
    const Mass<A>& mass = masses[first / L];
    const vec<A> log_mass = mass.largest + logarithms<A>(mass.total), inverse = set(A(1)) / mass.total, square = mass.square * inverse;
    for (int64_t c = first; c < smaller(C, first + L); ++c) {
      const int64_t cell = c * M + m, lane = c - first;
      A *key = result.keys + cell * D, *value = result.values + cell * D;
      if (!mass.keys[lane]) {
        result.log_mass[cell] = -infinity<A>();
        result.spread[cell] = A(0);
        clear(key, size_t(D) * sizeof(A));
        clear(value, size_t(D) * sizeof(A));
        continue;
      }
      // sum e |k - mu|^2 / sum e - |K - mu|^2, over D: differences to the cell's centre mu, not to 0.
      const A spread = (square[lane] - finish_mean(key_sums + c * D, inverse[lane], center, D, key)) / A(D);
      scale_row(value_sums + c * D, inverse[lane], D, value);
      result.spread[cell] = spread < A(0) ? A(0) : spread;
      result.log_mass[cell] = log_mass[lane];
    }
  }
}

template <class A>
inline Tails<A> tails(const Rows<A>& k, const Rows<A>& v, const Groups& groups, int64_t M, const A* by_token, const Marks& marks, int64_t C, int64_t D, Scratch& scratch) {
  const Tails<A> result{take<A>(scratch, C * M), take<A>(scratch, C * M), take<A>(scratch, C * M * D), take<A>(scratch, C * M * D)};
  each(M, scratch, [&](int64_t m, Scratch& own) {
    one_cell(k, v, groups.order + groups.first[m], groups.size(m), by_token, marks, C, D, m, M, result, own);
  });
  return result;
}

}  // namespace
