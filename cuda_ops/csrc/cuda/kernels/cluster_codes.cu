#include "cluster_codes.h"

#include <algorithm>

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, TILE = 1024, COUNTERS = 8192;
constexpr int NEAR = 5120, NEAR_TILE = NEAR / 65 + 1, BUFFERS = 3;  // most counters that every block keeps for itself, and the words of their clusters
constexpr int64_t HEADER = 32;  // the counters of a head lie in other cache lines than what its blocks meet at

// Of the memory of a head: its counters, as in count_moves, and the integers that they take with what keeps them in cache lines of their own.
struct Sizes {
  int count, buffer;
  int64_t head;
  bool near;

  Sizes(int64_t C, int64_t words) : count(int(C * (64 * words + 1) + 1)), buffer(int((count + HEADER - 1) / HEADER * HEADER)), near(count <= NEAR) {
    head = HEADER + int64_t(near ? BUFFERS : 1) * buffer;
  }
};

// The nearest of up to TILE / WORDS centroids, the first one where several are, as distance * TILE + centroid.
template <int WORDS>
CUDA_OPS_DEVICE int nearest_of(const uint64_t (&code)[WORDS], const uint64_t* tile, int count) {
  int nearest = INT32_MAX;
  CUDA_OPS_UNROLL(4)
  for (int c = 0; c < count; ++c) {
    int distance = 0;
    CUDA_OPS_UNROLL(WORDS)
    for (int w = 0; w < WORDS; ++w) distance += device::ones(code[w] ^ tile[c * WORDS + w]);
    nearest = smaller(nearest, distance * TILE + c);
  }
  return nearest;
}

// Tokens of a warp from cluster `old`, which none has in the first round, to `nearest`: a lane for each bit of half a word of one token after another. Counters
// are the bits of the clusters, (C, 64 WORDS), then their members, (C), then all moves.
template <int WORDS, class Add>
CUDA_OPS_DEVICE void count_moves(const uint64_t (&code)[WORDS], bool moved, bool first_round, int32_t old, int32_t nearest, int C, const Add& add) {
  constexpr int TOKENS = 4;
  const int lane = device::thread() % WARP;
  const uint32_t movers = device::ballot(moved);
  if (!movers) return;
  if (moved) add(C * 64 * WORDS + nearest, 1);
  if (moved && !first_round) add(C * 64 * WORDS + old, -1);
  if (lane == 0) add(C * (64 * WORDS + 1), device::ones(movers));
  CUDA_OPS_UNROLL(1)
  for (int first = 0; first < WARP; first += TOKENS) {
    if (!(movers >> first & ((1 << TOKENS) - 1))) continue;
    CUDA_OPS_UNROLL(TOKENS)
    for (int who = first; who < first + TOKENS; ++who) {
      const uint32_t moves = movers >> who & 1;
      const int from = device::shuffle(moved ? old : 0, who), to = device::shuffle(nearest, who);
      CUDA_OPS_UNROLL(2 * WORDS)
      for (int half = 0; half < 2 * WORDS; ++half) {
        const uint32_t bits = uint32_t(device::shuffle(int32_t(uint32_t(code[half / 2] >> 32 * (half % 2))), who));
        const int32_t bit = int32_t(bits >> lane & moves);
        add(to * 64 * WORDS + half * WARP + lane, bit);
        if (!first_round) add(from * 64 * WORDS + half * WARP + lane, -bit);
      }
    }
  }
}

// A warp gives a word of a centroid the bits that more than half of the members have; without members it stays.
CUDA_OPS_DEVICE void update(const int32_t* ones, int32_t members, uint64_t* centroid) {
  const int lane = device::thread() % WARP;
  const uint32_t low = device::ballot(2 * ones[lane] > members), high = device::ballot(2 * ones[WARP + lane] > members);
  if (lane == 0 && members > 0) *centroid = uint64_t(high) << 32 | low;
}

// What the blocks of a head share.
template <int WORDS>
struct Head {
  const uint64_t* codes;   // (N, WORDS)
  int32_t* assignment;     // (N)
  uint64_t* centroids;     // (C, WORDS)
  int32_t *arrivals, *counters;
  const int32_t *positions, *indices;
  int N, n, C, part, parts;

  CUDA_OPS_DEVICE Head(const uint64_t* codes, const Tokens& tokens, int64_t H, int64_t C, int64_t parts, const Sizes& sizes, int32_t* memory, int32_t* assignment,
                       uint64_t* centroids)
      : N(int(tokens.N)), C(int(C)), part(int(device::block() % parts)), parts(int(parts)) {
    const int64_t head = device::block() / parts, b = head / H;
    this->codes = codes + head * N * WORDS;
    this->assignment = assignment + head * N;
    this->centroids = centroids + head * C * WORDS;
    arrivals = memory + head * sizes.head;
    counters = arrivals + HEADER;
    positions = tokens.positions ? tokens.positions + b * N : nullptr;
    indices = tokens.indices ? tokens.indices + b * N : nullptr;
    n = int(count_of(tokens, b));
  }
  CUDA_OPS_DEVICE int position(int i) const { return positions ? positions[i] : i; }
  CUDA_OPS_DEVICE uint64_t start(int c, int w) const { return codes[int64_t(position(int(int64_t(c) * n / C))) * WORDS + w]; }
  CUDA_OPS_DEVICE int first() const { return int(int64_t(n) * part / parts); }
  CUDA_OPS_DEVICE int last() const { return int(int64_t(n) * (part + 1) / parts); }
  // Threads of all blocks of the head, for what they share.
  CUDA_OPS_DEVICE int thread() const { return part * THREADS + device::thread(); }
  CUDA_OPS_DEVICE int threads() const { return parts * THREADS; }
  CUDA_OPS_DEVICE void clear_padding() const {
    for (int i = thread(); i < N; i += threads())
      if (n == 0 || (indices && indices[i] < 0)) assignment[i] = -1;
  }
};

template <int WORDS>
struct Token {
  uint64_t code[WORDS];
  int position;
  int32_t cluster;
  bool here;

  CUDA_OPS_DEVICE Token(const Head<WORDS>& head, int i, int end, bool first_round) {
    here = i < end;
    position = here ? head.position(i) : 0;
    CUDA_OPS_UNROLL(WORDS)
    for (int w = 0; w < WORDS; ++w) code[w] = here ? head.codes[int64_t(position) * WORDS + w] : 0;
    cluster = here && !first_round ? head.assignment[position] : -1;
  }
};

// `parts` blocks for each head, each with a range of its tokens. Every block has all centroids and all counters: the changes of a round are added up in a buffer,
// the blocks meet, and each of them goes on alone. Three buffers take turns, for a buffer can be cleared when all have met again, and is added to when all have
// met once more.
template <int WORDS>
CUDA_OPS_KERNEL cluster_head(const uint64_t* codes, Tokens tokens, int64_t H, int64_t C, int64_t iterations, int64_t parts, Sizes sizes, int32_t* memory,
                             int32_t* assignment, uint64_t* centroids) {
  CUDA_OPS_SHARED(uint64_t, tile, NEAR_TILE);
  CUDA_OPS_SHARED(int32_t, totals, NEAR);
  CUDA_OPS_SHARED(int32_t, changed, NEAR);
  const int count = sizes.count, words = int(C) * WORDS, t = device::thread(), warp = t / WARP;
  const Head<WORDS> head(codes, tokens, H, C, parts, sizes, memory, assignment, centroids);
  const auto add = [&](int counter, int32_t what) { device::add(&changed[counter], what); };
  head.clear_padding();
  for (int k = t; k < count; k += THREADS) totals[k] = changed[k] = 0;
  for (int k = t; k < words; k += THREADS) tile[k] = head.n ? head.start(k / WORDS, k % WORDS) : 0;
  device::barrier();
  const int begin = head.first(), end = head.last();
  Token<WORDS> mine(head, begin + t, end, true);  // the first token of a thread stays in its registers
  int32_t moves = 0;
  for (int64_t round = 0; head.n; ++round) {
    for (int i = begin; i < end; i += THREADS) {
      Token<WORDS> token = mine;
      if (i > begin) token = Token<WORDS>(head, i + t, end, round == 0);
      const int32_t nearest = nearest_of(token.code, tile, int(C)) % TILE;
      const bool moved = token.here && nearest != token.cluster;
      if (moved) head.assignment[token.position] = nearest;
      if (round < iterations) count_moves(token.code, moved, round == 0, token.cluster, nearest, int(C), add);
      if (i == begin) mine.cluster = nearest;
    }
    if (round == iterations) break;
    device::barrier();
    int32_t *const buffer = head.counters + round % BUFFERS * sizes.buffer, *const next = head.counters + (round + BUFFERS - 1) % BUFFERS * sizes.buffer;
    for (int k = t; k < count; k += THREADS) {
      const int32_t change = changed[k];
      if (head.parts == 1) totals[k] += change;
      if (head.parts > 1 && change) device::add(&buffer[k], change);
      changed[k] = 0;
    }
    if (head.parts > 1) {
      device::meet(head.arrivals, head.parts);
      CUDA_OPS_UNROLL(8)
      for (int k = t; k < count; k += THREADS) totals[k] += buffer[k];
      for (int k = head.thread(); k < count; k += head.threads()) next[k] = 0;
    }
    device::barrier();
    if (totals[count - 1] == moves) break;  // no token has moved, so no centroid would
    moves = totals[count - 1];
    for (int word = warp; word < words; word += WARPS) update(totals + word * 64, totals[words * 64 + word / WORDS], tile + word);
    device::barrier();
  }
  for (int k = head.thread(); k < words; k += head.threads()) head.centroids[k] = tile[k];
}

// Counts in shared memory where all counters fit there, for many tokens share one.
struct Counters {
  int32_t *near, *all;
  bool fit;

  CUDA_OPS_DEVICE void add(int64_t k, int32_t what) const {
    if (fit)
      device::add(&near[k], what);
    else
      device::add(&all[k], what);
  }
};

template <int WORDS>
CUDA_OPS_DEVICE void load_tile(const Head<WORDS>& head, int c0, bool starts, uint64_t* tile) {
  const int here = smaller(TILE / WORDS, head.C - c0) * WORDS;
  device::barrier();
  for (int k = device::thread(); k < here; k += THREADS) tile[k] = starts ? head.start(c0 + k / WORDS, k % WORDS) : head.centroids[int64_t(c0) * WORDS + k];
  device::barrier();
}

// The same where there are more counters: the blocks share the counters of all tokens and the centroids, and meet twice in a round.
template <int WORDS>
CUDA_OPS_KERNEL cluster_large_head(const uint64_t* codes, Tokens tokens, int64_t H, int64_t C, int64_t iterations, int64_t parts, Sizes sizes, int32_t* memory,
                                   int32_t* assignment, uint64_t* centroids) {
  CUDA_OPS_SHARED(uint64_t, tile, TILE);
  CUDA_OPS_SHARED(int32_t, near, COUNTERS);
  const int count = sizes.count, words = int(C) * WORDS, t = device::thread(), warp = t / WARP;
  const Head<WORDS> head(codes, tokens, H, C, parts, sizes, memory, assignment, centroids);
  const Counters counters{near, head.counters, count <= COUNTERS};
  const auto add = [&](int counter, int32_t what) {
    if (what) counters.add(counter, what);
  };
  const auto meet = [&] {
    if (head.parts > 1)
      device::meet(head.arrivals, head.parts);
    else
      device::barrier();
  };
  head.clear_padding();
  for (int k = head.thread(); k < words; k += head.threads()) head.centroids[k] = head.n ? head.start(k / WORDS, k % WORDS) : 0;
  for (int k = t; k < COUNTERS; k += THREADS) near[k] = 0;
  device::barrier();
  const int begin = head.first(), end = head.last();
  int32_t moves = 0;
  for (int64_t round = 0; head.n; ++round) {
    for (int i = begin; i < end; i += THREADS) {
      const Token<WORDS> token(head, i + t, end, round == 0);
      int least = INT32_MAX;
      int32_t nearest = 0;
      for (int c0 = 0; c0 < head.C; c0 += TILE / WORDS) {
        if (i == begin || head.C > TILE / WORDS) load_tile(head, c0, round == 0, tile);
        const int here = nearest_of(token.code, tile, smaller(TILE / WORDS, head.C - c0));
        nearest = here / TILE < least ? c0 + here % TILE : nearest;
        least = smaller(least, here / TILE);
      }
      const bool moved = token.here && nearest != token.cluster;
      if (moved) head.assignment[token.position] = nearest;
      if (round < iterations) count_moves(token.code, moved, round == 0, token.cluster, nearest, head.C, add);
    }
    if (round == iterations) break;
    device::barrier();
    for (int k = t; k < count && counters.fit; k += THREADS) {
      if (near[k]) device::add(&head.counters[k], near[k]);
      near[k] = 0;
    }
    meet();
    const int32_t all_moves = head.counters[count - 1];
    if (all_moves == moves) break;  // no token has moved, so no centroid would
    moves = all_moves;
    for (int word = head.part * WARPS + warp; word < words; word += head.parts * WARPS)
      update(head.counters + int64_t(word) * 64, head.counters[int64_t(words) * 64 + word / WORDS], head.centroids + word);
    meet();
  }
}

template <int WORDS>
void cluster_heads(const uint64_t* codes, const Tokens& tokens, int64_t B, int64_t H, int64_t C, int64_t iterations, int32_t* memory, int32_t* assignment,
                   uint64_t* centroids, Stream stream) {
  const Sizes sizes(C, WORDS);
  const int64_t heads = B * H, useful = (tokens.N + THREADS - 1) / THREADS;
  const int64_t at_once = sizes.near ? CUDA_OPS_BLOCKS_AT_ONCE(cluster_head<WORDS>, THREADS) : CUDA_OPS_BLOCKS_AT_ONCE(cluster_large_head<WORDS>, THREADS);
  const int64_t parts = std::max<int64_t>(1, std::min(at_once / heads, useful)), blocks = heads * parts;
  const auto kernel = sizes.near ? cluster_head<WORDS> : cluster_large_head<WORDS>;
  if (parts > 1)
    CUDA_OPS_LAUNCH_TOGETHER(kernel, blocks, THREADS, stream, codes, tokens, H, C, iterations, parts, sizes, memory, assignment, centroids);
  else
    CUDA_OPS_LAUNCH(kernel, blocks, THREADS, stream, codes, tokens, H, C, iterations, parts, sizes, memory, assignment, centroids);
}

}  // namespace

namespace cuda_ops::launch {

void cluster_codes(const uint64_t* codes, const Tokens& tokens, int64_t B, int64_t H, int64_t bits, int64_t C, int64_t iterations, int32_t* memory, int32_t* assignment,
                   uint64_t* centroids, Stream stream) {
  if (B * H == 0) return;
  const int64_t words = (bits + 63) / 64;
  const auto run = words == 1 ? cluster_heads<1> : words == 2 ? cluster_heads<2> : words == 3 ? cluster_heads<3> : cluster_heads<4>;
  run(codes, tokens, B, H, C, iterations, memory, assignment, centroids, stream);
}

int64_t cluster_codes_memory(int64_t B, int64_t H, int64_t bits, int64_t C) { return B * H * Sizes(C, (bits + 63) / 64).head; }

}  // namespace cuda_ops::launch
