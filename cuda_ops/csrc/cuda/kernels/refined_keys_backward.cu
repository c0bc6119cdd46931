#include "refined_backward_tiles.h"

namespace {

constexpr int THREADS = 256, TOKENS = THREADS / WARP, PIECES = 256 / WARP;

// The gradients of one key and value: a lane has every WARP-th number.
struct KeySums {
  float key[PIECES], value[PIECES];
};
CUDA_OPS_DEVICE void add_floats(const float* keys, const float* values, int64_t D, KeySums& sums) {
  CUDA_OPS_UNROLL(8)
  for (int piece = 0; piece < PIECES; ++piece) {
    const int64_t d = piece * WARP + device::thread() % WARP;
    if (d >= D) continue;
    sums.key[piece] += keys[d];
    sums.value[piece] += values[d];
  }
}

// A warp has one key of one key head and adds up, head by head of its group: what came through the tail, the queries that have it in their band, and the clusters
// that have it among their top keys.
template <class T>
CUDA_OPS_KERNEL sum_keys(RefinedRows<T> rows, RefinedBackward p, Heads<T> grad_k, Heads<T> grad_v, int64_t key_heads) {
  const int64_t N = p.in.shape.N, D = p.in.shape.D, C = p.budgets.C, K = p.budgets.K, tiles = (N + TOKENS - 1) / TOKENS;
  const int64_t key_head = device::block() / tiles % key_heads, b = device::block() / tiles / key_heads;
  const int64_t token = device::block() % tiles * TOKENS + device::thread() / WARP, j = token < N ? index_of(p.in.tokens, b, token) : -1;
  const int lane = device::thread() % WARP;
  KeySums sums = {};
  for (int64_t h = key_head * p.in.shape.group; h < (key_head + 1) * p.in.shape.group && j >= 0; ++h) {
    const Cluster own = cluster_of(p, b * p.in.shape.H + h, 0);
    const int32_t m = p.key_clusters[own.head * N + token];
    if (m >= 0 && m < own.cells) add_floats(p.key_grads + (own.head * N + j) * D, p.value_grads + (own.head * N + j) * D, D, sums);
    for (int64_t i = j < p.W ? 0 : j - p.W; p.width && i <= j + p.W && i < own.n; ++i) {
      const int64_t at = (own.head * N + i) * p.width + j - i + p.W, position = position_of(p.in.tokens, b, i);
      const float by_key = p.band_keys[at] * p.in.scale, by_value = p.band_values[at];
      CUDA_OPS_UNROLL(8)
      for (int piece = 0; piece < PIECES; ++piece) {
        const int64_t d = piece * WARP + lane;
        if (d >= D) continue;
        sums.key[piece] = device::fma(by_key, rows.q.at(b, h, position, d), sums.key[piece]);
        sums.value[piece] = device::fma(by_value, rows.grad.at(b, h, position, d), sums.value[piece]);
      }
    }
    const int32_t* first_of = p.queries.first + own.head * (C + 1);
    for (int64_t c0 = 0; K && c0 < own.clusters; c0 += WARP) {
      const int64_t c = c0 + lane;
      const bool filled = c < own.clusters && first_of[c + 1] > first_of[c];
      const int32_t mine = filled ? int32_t(slot_of(p.top_keys + (own.head * C + c) * K, K, token)) : -1;
      for (uint32_t left = device::ballot(mine >= 0); left; left &= left - 1) {
        const int next = device::ones((left & (~left + 1)) - 1);
        const int64_t at = ((own.head * C + c0 + next) * K + device::shuffle(mine, next)) * D;
        add_floats(p.top_key_grads + at, p.top_value_grads + at, D, sums);
      }
    }
  }
  if (j < 0) return;
  CUDA_OPS_UNROLL(8)
  for (int piece = 0; piece < PIECES; ++piece) {
    const int64_t d = piece * WARP + lane;
    if (d >= D) continue;
    grad_k.set(b, key_head, token, d, sums.key[piece]);
    grad_v.set(b, key_head, token, d, sums.value[piece]);
  }
}

}  // namespace

namespace cuda_ops::launch {

void refined_keys_backward(const RefinedBackward& p, Stream stream) {
  const int64_t key_heads = p.in.shape.H / p.in.shape.group, blocks = p.in.shape.B * key_heads * ((p.in.shape.N + TOKENS - 1) / TOKENS);
  if (!blocks) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    CUDA_OPS_LAUNCH(sum_keys<T>, blocks, THREADS, stream, RefinedRows<T>(p), p, Heads<T>(p.grad_k), Heads<T>(p.grad_v), key_heads);
  });
}

}  // namespace cuda_ops::launch
