#include "cluster_codes.h"

#include <algorithm>

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, TILE = 1024, COUNTERS = 8192;
constexpr int64_t HEADER = 32;  // the counters of a head lie in other cache lines than what its blocks meet at

// What the blocks of a head share. All counters follow the tokens that change cluster.
template <int WORDS>
struct Head {
  const uint64_t* codes;  // (N, WORDS)
  int32_t* assignment;    // (N)
  uint64_t* centroids;    // (C, WORDS)
  int32_t *arrivals, *changes, *counters;  // members with each bit (C, 64 WORDS), then members (C)
  Tokens tokens;
  int64_t b, n, C, part, parts;

  CUDA_OPS_DEVICE uint64_t start(int64_t c, int64_t w) const { return codes[position_of(tokens, b, c * n / C) * WORDS + w]; }
  CUDA_OPS_DEVICE int64_t count() const { return C * (64 * WORDS + 1); }
  CUDA_OPS_DEVICE void meet() const {
    if (parts > 1)
      device::meet(arrivals, int32_t(parts));
    else
      device::barrier();
  }
};

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
CUDA_OPS_DEVICE void load_tile(const Head<WORDS>& head, int64_t c0, bool starts, uint64_t* tile) {
  const int64_t here = smaller(int64_t(TILE / WORDS), head.C - c0) * WORDS;
  device::barrier();
  for (int64_t k = device::thread(); k < here; k += THREADS) tile[k] = starts ? head.start(c0 + k / WORDS, k % WORDS) : head.centroids[c0 * WORDS + k];
  device::barrier();
}

template <int WORDS>
CUDA_OPS_DEVICE void keep_nearest(const uint64_t (&code)[WORDS], int64_t c0, int64_t C, const uint64_t* tile, int& least, int32_t& nearest) {
  const int here = int(smaller(int64_t(TILE / WORDS), C - c0));
  CUDA_OPS_UNROLL(4)
  for (int c = 0; c < here; ++c) {
    int distance = 0;
    for (int w = 0; w < WORDS; ++w) distance += device::ones(code[w] ^ tile[c * WORDS + w]);
    nearest = distance < least ? int32_t(c0) + c : nearest;
    least = smaller(least, distance);
  }
}

// A warp moves its tokens one after another, a lane for each bit of half a word.
template <int WORDS>
CUDA_OPS_DEVICE void count_moves(const Head<WORDS>& head, const Counters& counters, const uint64_t (&code)[WORDS], bool moved, int32_t old, int32_t nearest) {
  const int lane = device::thread() % WARP;
  const uint32_t movers = device::ballot(moved);
  if (lane == 0 && movers) device::add(head.changes, device::ones(movers));
  for (uint32_t left = movers; left; left &= left - 1) {
    const int who = device::ones((left & (0 - left)) - 1);
    const int64_t from = device::shuffle(old, who), to = device::shuffle(nearest, who);
    for (int half = 0; half < 2 * WORDS; ++half) {
      const uint32_t bits = uint32_t(device::shuffle(int32_t(uint32_t(code[half / 2] >> 32 * (half % 2))), who));
      const bool bit = bits >> lane & 1;
      if (bit) counters.add(to * 64 * WORDS + half * WARP + lane, 1);
      if (bit && from >= 0) counters.add(from * 64 * WORDS + half * WARP + lane, -1);
    }
    if (lane == 0) counters.add(head.C * 64 * WORDS + to, 1);
    if (lane == 0 && from >= 0) counters.add(head.C * 64 * WORDS + from, -1);
  }
}

// Each token of this part to its nearest centroid, the lowest where several are; in the first round centroids are the starts and no token has a cluster.
template <int WORDS>
CUDA_OPS_DEVICE void assign(const Head<WORDS>& head, const Counters& counters, bool first_round, bool last_round, uint64_t* tile) {
  const int64_t begin = head.n * head.part / head.parts, end = head.n * (head.part + 1) / head.parts;
  for (int64_t first = begin; first < end; first += THREADS) {
    const int64_t i = first + device::thread();
    const bool here = i < end;
    const int64_t position = here ? position_of(head.tokens, head.b, i) : 0;
    uint64_t code[WORDS];
    for (int w = 0; w < WORDS; ++w) code[w] = here ? head.codes[position * WORDS + w] : 0;
    int least = 64 * WORDS + 1;
    int32_t nearest = 0;
    for (int64_t c0 = 0; c0 < head.C; c0 += TILE / WORDS) {
      if (first == begin || head.C > TILE / WORDS) load_tile(head, c0, first_round, tile);
      keep_nearest(code, c0, head.C, tile, least, nearest);
    }
    const int32_t old = here && !first_round ? head.assignment[position] : -1;
    const bool moved = here && nearest != old;
    if (moved) head.assignment[position] = nearest;
    if (!last_round) count_moves(head, counters, code, moved, old, nearest);
  }
}

// What this block counted, to the counters of the head.
template <int WORDS>
CUDA_OPS_DEVICE void add_up(const Head<WORDS>& head, const Counters& counters) {
  device::barrier();
  for (int64_t k = device::thread(); counters.fit && k < head.count(); k += THREADS) {
    if (counters.near[k]) device::add(&counters.all[k], counters.near[k]);
    counters.near[k] = 0;
  }
}

// The bits that more than half of the members have; a cluster without members keeps its centroid. Each warp of the head has words of its own.
template <int WORDS>
CUDA_OPS_DEVICE void update(const Head<WORDS>& head) {
  const int lane = device::thread() % WARP;
  for (int64_t word = head.part * WARPS + device::thread() / WARP; word < head.C * WORDS; word += head.parts * WARPS) {
    const int32_t* ones = head.counters + word * 64;
    const int32_t members = head.counters[head.C * 64 * WORDS + word / WORDS];
    const uint32_t low = device::ballot(2 * ones[lane] > members), high = device::ballot(2 * ones[WARP + lane] > members);
    if (lane == 0 && members > 0) head.centroids[word] = uint64_t(high) << 32 | low;
  }
}

// `parts` blocks for each head, each with a range of its tokens.
template <int WORDS>
CUDA_OPS_KERNEL cluster_head(const uint64_t* codes, Tokens tokens, int64_t H, int64_t C, int64_t iterations, int64_t parts, int32_t* memory, int32_t* assignment,
                             uint64_t* centroids) {
  CUDA_OPS_SHARED(uint64_t, tile, TILE);
  CUDA_OPS_SHARED(int32_t, near, COUNTERS);
  const int64_t N = tokens.N, h = device::block() / parts, part = device::block() % parts, b = h / H;
  int32_t* own = memory + h * (HEADER + C * (64 * WORDS + 1));
  const Head<WORDS> head{codes + h * N * WORDS, assignment + h * N, centroids + h * C * WORDS, own, own + 1, own + HEADER, tokens, b, count_of(tokens, b), C, part, parts};
  const Counters counters{near, head.counters, head.count() <= COUNTERS};
  const int64_t first = part * THREADS + device::thread(), step = parts * THREADS;
  for (int64_t i = first; i < N; i += step)
    if (index_of(tokens, b, i) < 0) head.assignment[i] = -1;
  for (int64_t k = first; k < C * WORDS; k += step) head.centroids[k] = head.n ? head.start(k / WORDS, k % WORDS) : 0;
  for (int k = device::thread(); k < COUNTERS; k += THREADS) near[k] = 0;
  device::barrier();
  int32_t changes = 0;
  for (int64_t round = 0; head.n; ++round) {
    assign(head, counters, round == 0, round == iterations, tile);
    if (round == iterations) break;
    add_up(head, counters);
    head.meet();
    if (*head.changes == changes) break;  // no token has moved, so no centroid would
    changes = *head.changes;
    update(head);
    head.meet();
  }
}

template <int WORDS>
void cluster_heads(const uint64_t* codes, const Tokens& tokens, int64_t B, int64_t H, int64_t C, int64_t iterations, int32_t* memory, int32_t* assignment,
                   uint64_t* centroids, Stream stream) {
  const int64_t heads = B * H, at_once = CUDA_OPS_BLOCKS_AT_ONCE(cluster_head<WORDS>, THREADS) / heads, useful = (tokens.N + THREADS - 1) / THREADS;
  const int64_t parts = std::max<int64_t>(1, std::min(at_once, useful));
  if (parts > 1)
    CUDA_OPS_LAUNCH_TOGETHER(cluster_head<WORDS>, heads * parts, THREADS, stream, codes, tokens, H, C, iterations, parts, memory, assignment, centroids);
  else
    CUDA_OPS_LAUNCH(cluster_head<WORDS>, heads, THREADS, stream, codes, tokens, H, C, iterations, parts, memory, assignment, centroids);
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

int64_t cluster_codes_memory(int64_t B, int64_t H, int64_t bits, int64_t C) { return B * H * (HEADER + C * (64 * ((bits + 63) / 64) + 1)); }

}  // namespace cuda_ops::launch
