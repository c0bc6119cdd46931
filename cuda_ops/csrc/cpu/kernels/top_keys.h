// The K largest of n scores by a threshold, not by sorting: distinct indices for any bit pattern, the lowest index where scores are equal.
#pragma once
#include "rows.h"

namespace {

template <class A>
using integers = typename Vec<A>::integers;
template <class A>
using key_of = decltype(integers<A>{}[0] + 0);

template <class A>
constexpr key_of<A> LARGEST_KEY = sizeof(A) == 4 ? key_of<A>(INT32_MAX) : key_of<A>(INT64_MAX);

// Signed integers in the order of the scores: NaN is the largest, -0 equals +0. None is the least integer, which stands for no score.
template <class A>
CUDA_OPS_INLINE integers<A> order_keys(vec<A> x) {
  const integers<A> bits = (integers<A>)(x + set(A(0))), most = integers<A>{} + LARGEST_KEY<A>;
  const integers<A> ordered = bits ^ ((bits >> int(sizeof(A) * 8 - 1)) & most);
  return x == x ? ordered : most;
}

// How many of the keys, in whole vectors, are at least this one.
template <class A>
inline int64_t count_at_least(const key_of<A>* keys, int64_t padded, key_of<A> least) {
  const integers<A> bound = integers<A>{} + least;
  int64_t count = 0;
  for (int64_t j = 0; j < padded; j += Vec<A>::lanes) count += __builtin_popcount(lanes_at_least(load_as<integers<A>>(keys + j), bound));
  return count;
}

// The K-th largest of at least K keys, by bisection from the top bit.
template <class A>
inline key_of<A> kth_largest(const key_of<A>* keys, int64_t padded, int64_t K) {
  key_of<A> found = -LARGEST_KEY<A> - 1;
  if (count_at_least<A>(keys, padded, 0) >= K) found = 0;
  for (int bit = int(sizeof(A)) * 8 - 2; bit >= 0; --bit) {
    const key_of<A> higher = found | key_of<A>(1) << bit;
    if (count_at_least<A>(keys, padded, higher) >= K) found = higher;
  }
  return found;
}

// A bound that at least K of the n keys reach, near the K-th largest: that of the maxima of enough strided buckets.
template <class A>
inline key_of<A> bound_of_top(const key_of<A>* keys, int64_t padded, int64_t K, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t buckets = round_up(2 * K, L);
  if (padded < 2 * buckets) return -LARGEST_KEY<A>;
  key_of<A>* maxima = take<key_of<A>>(scratch, buckets);
  copy(maxima, keys, size_t(buckets) * sizeof(key_of<A>));
  for (int64_t first = buckets; first < padded; first += buckets)
    for (int64_t b = 0; b < buckets && first + b < padded; b += L) {
      const integers<A> here = load_as<integers<A>>(keys + first + b), most = load_as<integers<A>>(maxima + b), more = here > most ? here : most;
      memcpy(maxima + b, &more, sizeof more);
    }
  return kth_largest<A>(maxima, buckets, K);
}

// Writes the indices of the K largest (0 <= K <= n) ascending.
template <class A>
inline void select_top(const A* scores, int64_t n, int64_t K, int32_t* top, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  if (K >= n) {
    for (int64_t j = 0; j < n; ++j) top[j] = int32_t(j);
    return;
  }
  if (K == 0) return;
  const ScratchMark before = mark(scratch);
  const int64_t padded = round_up(n, L);
  key_of<A>*keys = take<key_of<A>>(scratch, padded), *reached = take<key_of<A>>(scratch, padded + L);
  int32_t* index = take<int32_t>(scratch, padded);
  for (int64_t j = 0; j < padded; j += L) {
    const integers<A> key = order_keys<A>(j + L <= n ? load(scores + j) : load_part(scores + j, n - j));
    memcpy(keys + j, &key, sizeof key);
  }
  for (int64_t j = n; j < padded; ++j) keys[j] = -LARGEST_KEY<A> - 1;
  const integers<A> bound = integers<A>{} + bound_of_top<A>(keys, padded, K, scratch);
  int64_t count = 0;
  for (int64_t j = 0; j < padded; j += L)
    for (uint32_t lanes = lanes_at_least(load_as<integers<A>>(keys + j), bound); lanes; lanes &= lanes - 1) {
      index[count] = int32_t(j + __builtin_ctz(lanes));
      reached[count] = keys[index[count]];
      ++count;
    }
  for (int64_t j = count; j < round_up(count, L); ++j) reached[j] = -LARGEST_KEY<A> - 1;
  const key_of<A> threshold = kth_largest<A>(reached, round_up(count, L), K);
  int64_t ties = K - (threshold == LARGEST_KEY<A> ? 0 : count_at_least<A>(reached, round_up(count, L), threshold + 1));
  for (int64_t j = 0, found = 0; found < K; ++j) {
    if (reached[j] < threshold || (reached[j] == threshold && ties-- <= 0)) continue;
    top[found++] = index[j];
  }
  release(scratch, before);
}

}  // namespace
