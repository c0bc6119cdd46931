// Sign hashes and K-means in Hamming space on the n valid tokens of one head; codes are words of 64 bits, `words` to a token.
#pragma once
#include "product.h"

namespace {

constexpr int64_t words_of(int64_t bits) { return (bits + 63) / 64; }

// The lanes where x > 0, one bit each.
template <class A>
CUDA_OPS_INLINE uint32_t positive_lanes(vec<A> x) {
  const integers<A> positive = (integers<A>)(x > set(A(0)));
  return lanes_at_least(integers<A>{}, positive + integer<A>(1));
}

// Bit p of token j = [x_j . plane_p > 0]. The planes are the columns of the product, so that a comparison gives the bits of one token side by side.
// With `dense`, (n, D), the rows are copied on the way.
template <class A>
inline void hash_rows(const Tokens<A>& x, int64_t n, const A* planes, int64_t P, int64_t D, uint64_t* codes, A* dense, Scratch& scratch) {
  constexpr int64_t L = Vec<A>::lanes;
  const int64_t words = words_of(P), stride = panel_count<A>(P) * PANEL<A>;
  const ScratchMark before = mark(scratch);
  const A* panels = pack_panels(Rows<A>{planes, D, nullptr}, P, D, scratch);
  each_chunk(n, scratch, [&](int64_t begin, int64_t end, Scratch& own) {
    A *rows = take<A>(own, QUERY_BLOCK * D), *dots = take<A>(own, QUERY_BLOCK * stride);
    Ahead ahead = take_ahead<A>(QUERY_BLOCK, D, own);
    for (int64_t first = begin; first < end; first += QUERY_BLOCK) {
      const int64_t here = smaller(end - first, QUERY_BLOCK), later = first + here;
      const Rows<A> block = copied_rows(x, first, here, D, dense ? dense + first * D : rows);
      ahead.set_rows(x, later, smaller(n - later, QUERY_BLOCK), D);
      tile_scores(block.base, here, panels, P, D, dots, stride, ahead);
      for (int64_t r = 0; r < here; ++r)
        for (int64_t w = 0; w < words; ++w) {
          uint64_t word = 0;
          for (int64_t p = w * 64; p < smaller(P, w * 64 + 64); p += L) word |= uint64_t(positive_lanes<A>(load(dots + r * stride + p))) << (p - w * 64);
          codes[(first + r) * words + w] = word;
        }
    }
  });
  release(scratch, before);
}

// Distance and centroid in one number: its minimum is the nearest centroid, and the lowest of several.
CUDA_OPS_INLINE void keep_nearest(Words distance, int64_t c, Words& nearest) {
  const Words both = distance << 32 | c;
  nearest = both < nearest ? both : nearest;
}

// The nearest centroid of each token, the lowest where several are.
inline void assign_codes(const uint64_t* codes, int64_t n, int64_t words, const uint64_t* centroids, int64_t C, int32_t* assignment) {
  constexpr int BLOCK = 4;  // vectors
  constexpr int64_t TOKENS = BLOCK * WORD_LANES;
  for (int64_t first = 0; first < n; first += TOKENS) {
    const int64_t count = smaller(n - first, TOKENS);
    Words nearest[BLOCK], code[BLOCK] = {};
    for (int b = 0; b < BLOCK; ++b) nearest[b] = Words{} + INT64_MAX;
    if (words == 1) {
      copy(code, codes + first, size_t(count) * 8);
      for (int64_t c = 0; c < C; ++c)
        for (int b = 0; b < BLOCK; ++b) keep_nearest(ones_of(code[b] ^ int64_t(centroids[c])), c, nearest[b]);
    } else {
      for (int64_t c = 0; c < C; ++c)
        for (int b = 0; b < BLOCK; ++b) {
          Words distance = {};
          for (int64_t w = 0; w < words; ++w) {
            for (int64_t t = b * WORD_LANES; t < smaller(count, (b + 1) * WORD_LANES); ++t) code[b][t - b * WORD_LANES] = int64_t(codes[(first + t) * words + w]);
            distance += ones_of(code[b] ^ int64_t(centroids[c * words + w]));
          }
          keep_nearest(distance, c, nearest[b]);
        }
    }
    int64_t cluster[TOKENS];
    memcpy(cluster, nearest, sizeof cluster);
    for (int64_t t = 0; t < count; ++t) assignment[first + t] = int32_t(cluster[t]);
  }
}

// Where bytes can be looked up, codes of one word lie by bytes: byte b of so many tokens, then byte b + 1 of them.
constexpr int64_t BYTE_BLOCK = 2 * VECTOR_BYTES;
constexpr int64_t HALF_BYTES = 16;  // of a code, and as many values has each

inline int8_t* codes_by_byte(const uint64_t* codes, int64_t n, Scratch& scratch) {
  int8_t* bytes = take<int8_t>(scratch, round_up(n, BYTE_BLOCK) * 8);
  for (int64_t first = 0; first < n; first += BYTE_BLOCK)
    for (int64_t t = 0; t < BYTE_BLOCK; ++t) {
      const uint64_t code = first + t < n ? codes[first + t] : 0;
      for (int64_t b = 0; b < 8; ++b) bytes[first * 8 + b * BYTE_BLOCK + t] = int8_t(code >> (8 * b));
    }
  return bytes;
}

struct HalfByteDistances {
  int8_t from[HALF_BYTES][HALF_BYTES];
  constexpr HalfByteDistances() : from{} {
    for (int a = 0; a < HALF_BYTES; ++a)
      for (int b = 0; b < HALF_BYTES; ++b) from[a][b] = int8_t(__builtin_popcount(unsigned(a ^ b)));
  }
};

// For each half byte of each centroid how many bits the values of a token's half byte differ from it.
inline void fill_distances(const uint64_t* centroids, int64_t C, int8_t* distances) {
  static constexpr HalfByteDistances half_byte;
  for (int64_t c = 0; c < C; ++c)
    for (int64_t h = 0; h < HALF_BYTES; ++h) copy(distances + (c * HALF_BYTES + h) * HALF_BYTES, half_byte.from[centroids[c] >> (4 * h) & 15], HALF_BYTES);
}

// assign_codes with these.
template <class Bytes>
inline void assign_bytes(const int8_t* codes, int64_t n, const int8_t* distances, int64_t C, int32_t* assignment) {
  for (int64_t first = 0; first < n; first += BYTE_BLOCK) {
    Bytes half[HALF_BYTES][2];
    for (int64_t b = 0; b < 8; ++b)
      for (int64_t v = 0; v < 2; ++v) {
        const Bytes byte = load_as<Bytes>(codes + first * 8 + b * BYTE_BLOCK + v * VECTOR_BYTES);
        half[2 * b][v] = byte & 15;
        half[2 * b + 1][v] = (Bytes)((Words)byte >> 4) & 15;
      }
    Bytes least[2] = {Bytes{} + 127, Bytes{} + 127}, nearest[2] = {};
    for (int64_t c = 0; c < C; ++c) {
      Bytes distance[2] = {};
#pragma GCC unroll 2  // with more GCC looks up all first and keeps them in memory
      for (int64_t h = 0; h < HALF_BYTES; ++h)
        for (int64_t v = 0; v < 2; ++v) distance[v] += look_up(distances + (c * HALF_BYTES + h) * HALF_BYTES, half[h][v]);
      for (int64_t v = 0; v < 2; ++v) {
        const Bytes closer = distance[v] < least[v];
        least[v] = closer ? distance[v] : least[v];
        nearest[v] = closer ? Bytes{} + int8_t(c) : nearest[v];
      }
    }
    uint8_t cluster[BYTE_BLOCK];
    memcpy(cluster, nearest, sizeof cluster);
    for (int64_t t = 0; t < smaller(n - first, BYTE_BLOCK); ++t) assignment[first + t] = cluster[t];
  }
}

// Adds (sign 1) or removes (sign -1) a token's bits to the counters of a cluster.
inline void count_bits(const uint64_t* code, int64_t words, int32_t sign, int32_t* ones) {
  using I = integers<float>;
  constexpr int L = Vec<float>::lanes;
  const I bit = lane_bits<float>();
  for (int64_t w = 0; w < words; ++w)
    for (int64_t p = 0; p < 64; p += L) {
      const I here = (I{} + int32_t(code[w] >> p)) & bit, count = load_as<I>(ones + w * 64 + p) + (here != 0 ? I{} + sign : I{});
      memcpy(ones + w * 64 + p, &count, sizeof count);
    }
}

// The bits that more than half of the members have.
inline uint64_t majority(const int32_t* ones, int32_t members) {
  using I = integers<float>;
  uint64_t word = 0;
  for (int p = 0; p < 64; p += Vec<float>::lanes) {
    const I count = load_as<I>(ones + p);
    word |= uint64_t(lanes_at_least(count + count, I{} + (members + 1))) << p;
  }
  return word;
}

// K-means: centroid c starts from the code of token floor(c n / C); a centroid is the bitwise majority of its members (a tie gives 0), an empty one stays;
// at most `iterations` updates, fewer when nothing changes; then the final assignment. Counters follow the tokens that changed cluster.
inline void cluster_hamming(const uint64_t* codes, int64_t n, int64_t words, int64_t C, int64_t iterations, int32_t* assignment, uint64_t* centroids, Scratch& scratch) {
  const ScratchMark before = mark(scratch);
  int32_t* ones = take<int32_t>(scratch, C * words * 64);
  int32_t* members = take<int32_t>(scratch, C);
  int32_t* next = take<int32_t>(scratch, n);
  const bool by_byte = LOOKS_UP_BYTES && words == 1 && C <= 256;
  const int8_t* bytes = by_byte ? codes_by_byte(codes, n, scratch) : nullptr;
  int8_t* distances = by_byte ? take<int8_t>(scratch, C * HALF_BYTES * HALF_BYTES) : nullptr;
  const auto assign = [&](int64_t begin, int64_t end, Scratch&) {
    if constexpr (LOOKS_UP_BYTES)
      if (by_byte) return assign_bytes<Bytes>(bytes + begin * 8, end - begin, distances, C, next + begin);
    assign_codes(codes + begin * words, end - begin, words, centroids, C, next + begin);
  };
  clear(ones, size_t(C * words * 64) * sizeof *ones);
  clear(members, size_t(C) * sizeof *members);
  for (int64_t c = 0; c < C; ++c) copy(centroids + c * words, codes + (c * n / C) * words, size_t(words) * 8);
  for (int64_t i = 0; i < n; ++i) assignment[i] = -1;
  for (int64_t round = 0;; ++round) {
    if (by_byte) fill_distances(centroids, C, distances);
    each_chunk(n, scratch, assign);
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
        const uint64_t word = majority(ones + (c * words + w) * 64, members[c]);
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
