// Sign hashes and K-means in Hamming space on the n valid tokens of one head; codes are words of 64 bits, `words` to a token.
#pragma once
#include "product.h"

namespace {

constexpr int64_t words_of(int64_t bits) { return (bits + 63) / 64; }

// Bit p of token j = [x_j . plane_p > 0].
template <class A>
inline void hash_rows(const Rows<A>& x, int64_t n, const A* planes, int64_t P, int64_t D, uint64_t* codes, Scratch& scratch) {
  const int64_t words = words_of(P);
  const ScratchMark before = mark(scratch);
  A* panel = take<A>(scratch, D * PANEL<A>);
  A* dots = take<A>(scratch, P * PANEL<A>);
  for (int64_t first = 0; first < n; first += PANEL<A>) {
    const int64_t count = n - first < PANEL<A> ? n - first : PANEL<A>;
    pack_panel(x, first, n - first, D, panel);
    product(planes, D, P, panel, D, dots, PANEL<A>);
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word[PANEL<A>] = {};
      const int64_t end = P - w * 64 < 64 ? P - w * 64 : 64;
      for (int64_t p = 0; p < end; ++p) {
        const A* dot = dots + (w * 64 + p) * PANEL<A>;
        for (int64_t t = 0; t < PANEL<A>; ++t) word[t] |= uint64_t(dot[t] > A(0)) << p;
      }
      for (int64_t t = 0; t < count; ++t) codes[(first + t) * words + w] = word[t];
    }
  }
  release(scratch, before);
}

// The nearest centroid of each token, the lowest where several are.
inline void assign_codes(const uint64_t* codes, int64_t n, int64_t words, const uint64_t* centroids, int64_t C, int32_t* assignment) {
  constexpr int64_t BLOCK = 64;
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t count = n - first < BLOCK ? n - first : BLOCK;
    uint64_t nearest[BLOCK], distance[BLOCK], cluster[BLOCK];
    for (int64_t t = 0; t < BLOCK; ++t) {
      nearest[t] = ~uint64_t(0);
      cluster[t] = 0;
    }
    for (int64_t c = 0; c < C; ++c) {
      if (words == 1) {
        for (int64_t t = 0; t < count; ++t) distance[t] = uint64_t(__builtin_popcountll(codes[first + t] ^ centroids[c]));
      } else {
        for (int64_t t = 0; t < count; ++t) {
          distance[t] = 0;
          for (int64_t w = 0; w < words; ++w) distance[t] += uint64_t(__builtin_popcountll(codes[(first + t) * words + w] ^ centroids[c * words + w]));
        }
      }
      for (int64_t t = 0; t < count; ++t) {
        const bool nearer = distance[t] < nearest[t];
        nearest[t] = nearer ? distance[t] : nearest[t];
        cluster[t] = nearer ? uint64_t(c) : cluster[t];
      }
    }
    for (int64_t t = 0; t < count; ++t) assignment[first + t] = int32_t(cluster[t]);
  }
}

// Adds (sign 1) or removes (sign -1) a token's bits to the counters of a cluster.
inline void count_bits(const uint64_t* code, int64_t words, int32_t sign, int32_t* ones) {
  for (int64_t w = 0; w < words; ++w)
    for (int64_t p = 0; p < 64; ++p) ones[w * 64 + p] += sign * int32_t((code[w] >> p) & 1);
}

// K-means: centroid c starts from the code of token floor(c n / C); a centroid is the bitwise majority of its members (a tie gives 0), an empty one stays;
// at most `iterations` updates, fewer when nothing changes; then the final assignment. Counters follow the tokens that changed cluster.
inline void cluster_hamming(const uint64_t* codes, int64_t n, int64_t words, int64_t C, int64_t iterations, int32_t* assignment, uint64_t* centroids, Scratch& scratch) {
  const ScratchMark before = mark(scratch);
  int32_t* ones = take<int32_t>(scratch, C * words * 64);
  int32_t* members = take<int32_t>(scratch, C);
  int32_t* next = take<int32_t>(scratch, n);
  clear(ones, size_t(C * words * 64) * sizeof *ones);
  clear(members, size_t(C) * sizeof *members);
  for (int64_t c = 0; c < C; ++c) copy(centroids + c * words, codes + (c * n / C) * words, size_t(words) * 8);
  for (int64_t i = 0; i < n; ++i) assignment[i] = -1;
  for (int64_t round = 0;; ++round) {
    assign_codes(codes, n, words, centroids, C, next);
    if (round == iterations) break;
    for (int64_t i = 0; i < n; ++i) {
      if (next[i] == assignment[i]) continue;
      if (assignment[i] >= 0) {
        count_bits(codes + i * words, words, -1, ones + assignment[i] * words * 64);
        --members[assignment[i]];
      }
      count_bits(codes + i * words, words, 1, ones + next[i] * words * 64);
      ++members[next[i]];
      assignment[i] = next[i];
    }
    bool changed = false;
    for (int64_t c = 0; c < C; ++c) {
      if (!members[c]) continue;
      for (int64_t w = 0; w < words; ++w) {
        uint64_t word = 0;
        for (int64_t p = 0; p < 64; ++p) word |= uint64_t(2 * int64_t(ones[(c * words + w) * 64 + p]) > members[c]) << p;
        changed |= word != centroids[c * words + w];
        centroids[c * words + w] = word;
      }
    }
    if (!changed) break;  // `next` is already the assignment by these centroids
  }
  copy(assignment, next, size_t(n) * sizeof *next);
  release(scratch, before);
}

}  // namespace
