// The K largest of n scores by a threshold, not by sorting: distinct indices for any bit pattern, the lowest index where scores are equal.
#pragma once
#include "rows.h"

namespace {

template <class A>
constexpr integer<A> LARGEST_KEY = sizeof(A) == 4 ? integer<A>(INT32_MAX) : integer<A>(INT64_MAX);

// Signed integers in the order of the scores: NaN is the largest, -0 equals +0. None is the least integer, which stands for no score.
template <class A>
CUDA_OPS_INLINE integers<A> order_keys(vec<A> x) {
  const integers<A> bits = (integers<A>)(x + set(A(0))), most = integers<A>{} + LARGEST_KEY<A>;
  const integers<A> ordered = bits ^ ((bits >> int(sizeof(A) * 8 - 1)) & most);
  return x == x ? ordered : most;
}

// How many of the keys, in whole vectors, are at least this one.
template <class A>
inline int64_t count_at_least(const integer<A>* keys, int64_t padded, integer<A> least) {
  const integers<A> bound = integers<A>{} + least;
  int64_t count = 0;
  for (int64_t j = 0; j < padded; j += Vec<A>::lanes) count += __builtin_popcount(lanes_at_least(load_as<integers<A>>(keys + j), bound));
  return count;
}

// The largest key down to bit `last` that at least K keys reach: the K-th largest itself for last = 0, or a smaller one that exactly K reach. By bisection.
template <class A>
inline integer<A> bisect(const integer<A>* keys, int64_t padded, int64_t K, int last) {
  integer<A> found = -LARGEST_KEY<A> - 1;
  if (count_at_least<A>(keys, padded, 0) >= K) found = 0;
  for (int bit = int(sizeof(A)) * 8 - 2; bit >= last; --bit) {
    const integer<A> higher = found | integer<A>(1) << bit;
    const int64_t count = count_at_least<A>(keys, padded, higher);
    if (count >= K) found = higher;
    if (count == K) break;
  }
  return found;
}

// Bits of a score beyond sign, exponent and seven of the mantissa: a bound may leave them 0.
template <class A>
constexpr int FINE_BITS = sizeof(A) == 4 ? 16 : 45;

// A bound that at least K of the n keys reach, near the K-th largest: that of the maxima of enough strided buckets.
template <class A>
inline integer<A> bound_of_top(const integer<A>* keys, int64_t padded, int64_t K, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t buckets = round_up(2 * K, L);
  if (padded < 2 * buckets) return -LARGEST_KEY<A>;
  integer<A>* maxima = take<integer<A>>(scratch, buckets);
  copy(maxima, keys, size_t(buckets) * sizeof(integer<A>));
  for (int64_t first = buckets; first < padded; first += buckets)
    for (int64_t b = 0; b < buckets && first + b < padded; b += L) {
      const integers<A> here = load_as<integers<A>>(keys + first + b), most = load_as<integers<A>>(maxima + b), more = here > most ? here : most;
      memcpy(maxima + b, &more, sizeof more);
    }
  return bisect<A>(maxima, buckets, K, FINE_BITS<A>);
}

// The marked lanes without all but the first `most` of them.
inline uint32_t first_lanes(uint32_t lanes, int64_t most) {
  while (__builtin_popcount(lanes) > most) lanes &= ~(uint32_t(1) << (31 - __builtin_clz(lanes)));
  return lanes;
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
  integer<A>*keys = take<integer<A>>(scratch, padded), *reached = take<integer<A>>(scratch, padded + L), *index = take<integer<A>>(scratch, padded + L);
  for (int64_t j = 0; j < padded; j += L) {
    const integers<A> key = order_keys<A>(j + L <= n ? load(scores + j) : load_part(scores + j, n - j));
    memcpy(keys + j, &key, sizeof key);
  }
  for (int64_t j = n; j < padded; ++j) keys[j] = -LARGEST_KEY<A> - 1;
  const integers<A> bound = integers<A>{} + bound_of_top<A>(keys, padded, K, scratch);
  integers<A> lane;
  for (int64_t i = 0; i < L; ++i) lane[i] = integer<A>(i);
  int64_t count = 0;
  for (int64_t j = 0; j < padded; j += L) {
    const integers<A> key = load_as<integers<A>>(keys + j);
    const uint32_t lanes = lanes_at_least(key, bound);
    store_marked(index + count, lane + integer<A>(j), lanes);
    count += store_marked(reached + count, key, lanes);
  }
  const int64_t candidates = round_up(count, L);
  for (int64_t j = count; j < candidates; ++j) reached[j] = -LARGEST_KEY<A> - 1;
  const integer<A> threshold = bisect<A>(reached, candidates, K, 0);
  const bool last = threshold == LARGEST_KEY<A>;  // no key is above it
  const integers<A> least = integers<A>{} + threshold, above = last ? least : least + 1;
  int64_t ties = K - (last ? 0 : count_at_least<A>(reached, candidates, threshold + 1));
  for (int64_t j = 0, found = 0; j < candidates; j += L) {
    const integers<A> key = load_as<integers<A>>(reached + j);
    const uint32_t greater = last ? 0 : lanes_at_least(key, above), equal = first_lanes(lanes_at_least(key, least) & ~greater, ties);
    ties -= __builtin_popcount(equal);
    found += store_marked(index + found, load_as<integers<A>>(index + j), greater | equal);
  }
  for (int64_t j = 0; j < K; ++j) top[j] = int32_t(index[j]);
  release(scratch, before);
}

}  // namespace
