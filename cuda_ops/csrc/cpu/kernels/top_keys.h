// The K largest of n scores by radix selection on order-preserving integer keys: distinct indices for any bit pattern, the lowest index where scores are equal.
#pragma once
#include "rows.h"

namespace {

// NaN is the largest, -0 equals +0.
inline uint32_t order_key(float x) {
  if (x != x) return ~uint32_t(0);
  const uint32_t bits = float_to_bits(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline uint64_t order_key(double x) {
  if (x != x) return ~uint64_t(0);
  x += 0.0;
  uint64_t bits;
  memcpy(&bits, &x, 8);
  return bits >> 63 ? ~bits : bits | (uint64_t(1) << 63);
}

// Writes the indices of the K largest (0 <= K <= n) ascending.
template <class A>
inline void select_top(const A* scores, int64_t n, int64_t K, int32_t* top, Scratch& scratch) {
  using key_type = decltype(order_key(A(0)));
  if (K >= n) {
    for (int64_t j = 0; j < n; ++j) top[j] = int32_t(j);
    return;
  }
  if (K == 0) return;
  const ScratchMark before = mark(scratch);
  key_type* keys = take<key_type>(scratch, n);
  key_type* rest = take<key_type>(scratch, n);
  for (int64_t j = 0; j < n; ++j) rest[j] = keys[j] = order_key(scores[j]);
  // Digit by digit from the top: the digit of the K-th largest key, then only the keys that share it. `wanted` counts what is still to be found among those.
  key_type threshold = 0;
  int64_t wanted = K, left = n;
  for (int shift = int(sizeof(key_type)) * 8 - 8; shift >= 0; shift -= 8) {
    int32_t histogram[256] = {};
    for (int64_t j = 0; j < left; ++j) ++histogram[(rest[j] >> shift) & 255];
    int digit = 255;
    for (; histogram[digit] < wanted; --digit) wanted -= histogram[digit];
    threshold |= key_type(digit) << shift;
    int64_t kept = 0;
    for (int64_t j = 0; j < left; ++j)
      if (int((rest[j] >> shift) & 255) == digit) rest[kept++] = rest[j];
    left = kept;
  }
  int64_t found = 0;
  for (int64_t j = 0; j < n && found < K; ++j) {
    const bool equal = keys[j] == threshold;
    if (keys[j] > threshold || (equal && wanted > 0)) {
      wanted -= equal;
      top[found++] = int32_t(j);
    }
  }
  release(scratch, before);
}

}  // namespace
