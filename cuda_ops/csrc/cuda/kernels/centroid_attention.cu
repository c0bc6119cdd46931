#include "centroid_attention.h"

#include <algorithm>

#include "reduce.h"
#include "top_list.h"
#include "weighted_rows.h"

namespace {

constexpr int THREADS = SUM_THREADS, LENGTH = 128, SLOTS = THREADS / COLUMNS, WARPS = THREADS / WARP;
static_assert(LENGTH == 4 * WARP);

// How the n valid tokens of a row are cut into parts: enough of them for the whole card, and few to add up.
constexpr int64_t LONG = 8192, VERY_LONG = 32768;
CUDA_OPS_DEVICE int part_length(int64_t n) { return n < LONG ? LENGTH : n < VERY_LONG ? 2 * LENGTH : 4 * LENGTH; }

// LENGTH valid tokens of a part, or the last ones. A lane has four neighbours.
struct Tile {
  int first, count;
  bool plain;               // all of them are tokens number first + j, and the scores of four can be read at once
  const int32_t* position;  // otherwise: ascending, and INT32_MAX up to LENGTH

  CUDA_OPS_DEVICE static int own() { return device::thread() % WARP * 4; }
  CUDA_OPS_DEVICE int32_t at(int j) const { return plain ? first + j : position[j]; }
  CUDA_OPS_DEVICE void read(const float* scores, float (&score)[4]) const {
    if (plain) {
      const Quad four = *reinterpret_cast<const Quad*>(scores + first + own());
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) score[i] = four.at[i];
    } else {
      int j = own();
      device::forget(j);  // so that what this path takes needs no registers in the other one
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) score[i] = j + i < count ? scores[position[j + i]] : -infinity();
    }
  }
  // The rank of a token of the tile, or -1.
  CUDA_OPS_DEVICE int rank_of(int32_t token) const {
    if (plain) return token - first;
    int j = 0;
    CUDA_OPS_UNROLL(1)
    for (int step = LENGTH / 2; step; step /= 2) j += position[j + step - 1] < token ? step : 0;
    return position[j] == token ? j : -1;
  }
};

// Takes the weights of the top keys of a cluster away from row r of `weights`, and returns their sum. `key` is that of this lane in the first slots.
CUDA_OPS_DEVICE float take_top(const int32_t* list, int K, int32_t key, const Tile& tile, bfloat16* weights, int r) {
  constexpr int SHORT_LIST = 2 * WARP;
  const int lane = device::thread() % WARP;
  const int32_t begin = tile.at(0), end = tile.at(tile.count - 1);
  float sum = 0;
  int slot = 0;
  if (K > SHORT_LIST) {
    slot = slot_from(list, K, begin);
    key = slot + lane < K ? list[slot + lane] : -1;
  }
  CUDA_OPS_UNROLL(1)
  while (true) {
    const bool within = key >= begin && key <= end;
    if (device::ballot(within)) {
      const int j = within ? tile.rank_of(key) : -1;
      float weight = 0;
      if (j >= 0) {
        bfloat16* part = weights + r * (LENGTH + 8) + j;
        CUDA_OPS_UNROLL(FLOAT_PARTS)
        for (int i = FLOAT_PARTS - 1; i >= 0; --i) {
          weight += widen(part[i * CLUSTERS * (LENGTH + 8)]);
          part[i * CLUSTERS * (LENGTH + 8)] = bfloat16{};
        }
      }
      sum += warp_sum(weight);
    }
    slot += WARP;
    if (slot >= K || uint32_t(device::shuffle(key, WARP - 1)) > uint32_t(end)) return sum;
    key = slot + lane < K ? list[slot + lane] : -1;
  }
}

// Of each cluster in a part up to now: the largest score, the sum of the weights relative to it, and that of the top keys. What was added up before the last tile is
// worth `factor` of it.
struct PartMasses {
  float *largest, *sum, *top, *factor;
};

// Weights of a tile for the `clusters` clusters from `row` on, 0 for top keys.
CUDA_OPS_DEVICE void weigh(const Tile& tile, const float* scores, int64_t N, const int32_t* top_keys, int K, int64_t row, int clusters, bfloat16* weights,
                           const PartMasses& masses) {
  const int lane = device::thread() % WARP, warp = device::thread() / WARP;
  float next[4];
  if (warp < clusters) tile.read(scores + (row + warp) * N, next);
  CUDA_OPS_UNROLL(1)
  for (int r = warp; r < clusters; r += WARPS) {
    float weight[4] = {next[0], next[1], next[2], next[3]};
    const int32_t* keys = top_keys + (row + r) * K;
    const int32_t key = lane < K ? keys[lane] : -1;
    if (r + WARPS < clusters) tile.read(scores + (row + r + WARPS) * N, next);
    const float before = masses.largest[r];
    const float here = device::larger_number(device::larger_number(weight[0], weight[1]), device::larger_number(weight[2], weight[3]));
    const float most = device::larger_number(before, warp_largest_number(here)), base = most == -infinity() ? 0 : most;
    CUDA_OPS_UNROLL(4)
    for (int i = 0; i < 4; ++i) weight[i] = quick_exponential(weight[i] - base);
    const float sum = warp_sum((weight[0] + weight[1]) + (weight[2] + weight[3])), factor = quick_exponential(before - base);
    set_weights<LENGTH>(weights, r, Tile::own(), weight);
    device::warp_barrier();
    const float top = K ? take_top(keys, K, key, tile, weights, r) : 0;
    if (lane == 0) {
      masses.largest[r] = most;
      masses.sum[r] = device::fma(masses.sum[r], factor, sum);
      masses.top[r] = device::fma(masses.top[r], factor, top);
      masses.factor[r] = factor;
    }
  }
}

// Blocks are (batch row, head, part of the valid tokens): for every cluster the largest score, the sum of weights relative to it, that of the top keys, and the
// weighted sum of the values of the others.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(THREADS, DATA_PARTS<T> == 1 ? 3 : 2) sum_part(const float* scores, Heads<T> v, Tokens tokens, Shape shape, const int32_t* top_keys,
                                                                              Budgets budgets, int parts, float* part_sums, float* part_masses) {
  constexpr int TILE = DATA_PARTS<T> == 1 ? LENGTH : DATA_PARTS<T> == FLOAT_PARTS ? LENGTH / 4 : LENGTH / 2;
  CUDA_OPS_SHARED(int32_t, position, LENGTH);
  CUDA_OPS_SHARED(float, numbers, 4 * CLUSTERS);
  CUDA_OPS_SHARED(bfloat16, weights, FLOAT_PARTS * CLUSTERS * (LENGTH + 8));
  CUDA_OPS_SHARED(bfloat16, rows, DATA_PARTS<T> * TILE * ROW_STRIDE);
  const int head = int(device::block()) / parts, b = head / int(shape.H), key_head = head % int(shape.H) / int(shape.group);
  const int64_t n = count_of(tokens, b), N = tokens.N;
  const int length = part_length(n), first = int(device::block()) % parts * length, count = int(smaller(int64_t(length), n - first));
  if (count <= 0) return;
  const int C_row = step_of(budgets, n).clusters, K = int(budgets.K), D = int(shape.D), t = device::thread();
  const bool aligned = !tokens.positions && N % 4 == 0 && uintptr_t(scores) % 16 == 0;
  const PartMasses masses{numbers, numbers + CLUSTERS, numbers + 2 * CLUSTERS, numbers + 3 * CLUSTERS};
  CUDA_OPS_UNROLL(1)
  for (int c0 = 0; c0 < C_row; c0 += CLUSTERS) {
    const int64_t row = int64_t(head) * budgets.C + c0;
    const int clusters = smaller(CLUSTERS, C_row - c0);
    CUDA_OPS_UNROLL(1)
    for (int d0 = 0; d0 < D; d0 += COLUMNS) {
      RowSums sum;
      if (t < CLUSTERS) {
        masses.largest[t] = -infinity();
        masses.sum[t] = masses.top[t] = masses.factor[t] = 0;
      }
      CUDA_OPS_UNROLL(1)
      for (int r = clusters + t / WARP; r < CLUSTERS; r += WARPS) {
        float none[4] = {};
        set_weights<LENGTH>(weights, r, Tile::own(), none);
      }
      device::barrier();
      CUDA_OPS_UNROLL(1)
      for (int j0 = 0; j0 < count; j0 += LENGTH) {
        const int here = smaller(LENGTH, count - j0);
        const Tile tile{first + j0, here, aligned && here == LENGTH, position};
        if (t < LENGTH) position[t] = t < here ? int32_t(position_of(tokens, b, tile.first + t)) : INT32_MAX;
        if (TILE < LENGTH || !tile.plain) device::barrier();
        if constexpr (TILE == LENGTH) {
          const T* values = v.base + v.offset(b, key_head, 0, 0);
          if (tile.plain && v.eights && d0 + COLUMNS <= D) send_neighbours<TILE>(v, values + tile.first * v.token, d0, rows);
          else send_columns<TILE>(here, [&](int j) { return tile.at(j); }, d0, D, Sent<T>{v, values, rows});
        }
        weigh(tile, scores, N, top_keys, K, row, clusters, weights, masses);
        if constexpr (TILE == LENGTH) device::wait_for_copies();
        device::barrier();
        if (j0) sum.scale(masses.factor);
        CUDA_OPS_UNROLL(1)
        for (int t0 = 0; t0 < here; t0 += TILE) {
          if constexpr (TILE < LENGTH) {
            load_rows<TILE>(v, b, key_head, position + t0, here - t0, d0, D, rows);
            device::barrier();
          }
          int start = t0;
          device::forget(start);  // so that addresses need no registers in the meantime
          sum.template add<T, LENGTH, TILE>(weights, start, rows, here - t0);
          device::barrier();
        }
      }
      int block = int(device::block());
      device::forget(block);  // likewise
      const int64_t result = block * budgets.C + c0;
      if (t < clusters && d0 == 0) {
        float* to = part_masses + (result + t) * 3;
        to[0] = masses.largest[t];
        to[1] = masses.sum[t];
        to[2] = masses.top[t];
      }
      CUDA_OPS_UNROLL(2)
      for (int n8 = 0; n8 < 2; ++n8)
        CUDA_OPS_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
          const int c = RowSums::cluster(i), d = d0 + RowSums::column(n8, i);
          if (d < D && c < clusters) part_sums[(result + c) * D + d] = sum.at(n8, i);
        }
    }
  }
}

// Blocks are (batch row, head, cluster). Column d is added up by SLOTS threads, each every SLOTS-th part in order; then theirs, in order.
CUDA_OPS_KERNEL sum_parts(Tokens tokens, Shape shape, Budgets budgets, int64_t parts, const float* part_sums, const float* part_masses, float* rest, float* top_mass,
                          float* log_mass) {
  CUDA_OPS_SHARED(float, sums, THREADS);
  CUDA_OPS_SHARED(float, factors, THREADS);
  CUDA_OPS_SHARED(float, maxima, THREADS / WARP);
  const int64_t C = budgets.C, c = device::block() % C, head = device::block() / C, b = head / shape.H, D = shape.D, n = count_of(tokens, b);
  if (c >= step_of(budgets, n).clusters) return;
  const int64_t count = (n + part_length(n) - 1) / part_length(n);
  const int t = device::thread(), slot = t / COLUMNS;
  part_sums += (head * parts * C + c) * D;
  part_masses += (head * parts * C + c) * 3;
  float largest = -infinity();
  for (int64_t s = t; s < count; s += THREADS) largest = larger(part_masses[s * C * 3], largest);
  largest = warp_largest(largest);
  if (t % WARP == 0) maxima[t / WARP] = largest;
  device::barrier();
  for (int w = 0; w < THREADS / WARP; ++w) largest = larger(maxima[w], largest);
  float sum = 0, top = 0;
  for (int64_t s = t; s < count; s += THREADS) {
    const float factor = device::exponential(part_masses[s * C * 3] - largest);
    sum = device::fma(part_masses[s * C * 3 + 1], factor, sum);
    top = device::fma(part_masses[s * C * 3 + 2], factor, top);
  }
  sum = block_sum(sum, sums);
  top = block_sum(top, sums);
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    const int64_t d = d0 + t % COLUMNS;
    float column = 0;
    for (int64_t s0 = 0; s0 < count; s0 += THREADS) {
      const int here = int(smaller(int64_t(THREADS), count - s0));
      if (t < here) factors[t] = device::exponential(part_masses[(s0 + t) * C * 3] - largest);
      device::barrier();
      CUDA_OPS_UNROLL(8)
      for (int s = slot; s < here; s += SLOTS) column = device::fma(d < D ? part_sums[(s0 + s) * C * D + d] : 0, factors[s], column);
      device::barrier();
    }
    sums[t] = column;
    device::barrier();
    if (slot == 0 && d < D) {
      for (int other = 1; other < SLOTS; ++other) column += sums[other * COLUMNS + t];
      rest[(head * C + c) * D + d] = count ? column / sum : 0;
    }
    device::barrier();
  }
  if (t == 0) {
    top_mass[head * C + c] = count ? top / sum : 0;
    log_mass[head * C + c] = count ? largest + device::logarithm(sum) : -infinity();
  }
}

}  // namespace

namespace cuda_ops::launch {

// The most of all numbers of valid tokens up to N: longer parts are fewer.
int64_t centroid_attention_parts(int64_t N) {
  const auto parts = [](int64_t n, int64_t length) { return (n + length - 1) / length; };
  const int64_t few = parts(std::min(N, LONG - 1), LENGTH);
  return std::max({few, N < LONG ? 0 : parts(std::min(N, VERY_LONG - 1), 2 * LENGTH), N < VERY_LONG ? 0 : parts(N, 4 * LENGTH)});
}

void centroid_attention(const float* scores, const Vectors& v, const Tokens& tokens, const Shape& shape, const int32_t* top_keys, const Budgets& budgets,
                        float* part_sums, float* part_masses, float* rest, float* top_mass, float* log_mass, Stream stream) {
  const int64_t heads = shape.B * shape.H, parts = centroid_attention_parts(tokens.N);
  if (!heads) return;
  with_type(v.type, [&](auto type) {
    const Heads<decltype(type)> values(v);
    if (parts)
      CUDA_OPS_LAUNCH(sum_part<decltype(type)>, heads * parts, THREADS, stream, scores, values, tokens, shape, top_keys, budgets, int(parts), part_sums, part_masses);
  });
  CUDA_OPS_LAUNCH(sum_parts, heads * budgets.C, THREADS, stream, tokens, shape, budgets, parts, part_sums, part_masses, rest, top_mass, log_mass);
}

}  // namespace cuda_ops::launch
