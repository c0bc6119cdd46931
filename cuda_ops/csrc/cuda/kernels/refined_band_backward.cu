#include "refined_backward_tiles.h"

namespace {

constexpr int THREADS = 256, TOKENS = 16, OFFSETS = THREADS / TOKENS, WINDOW = TOKENS + OFFSETS - 1;

// A block has TOKENS queries of one head, side by side, and goes through their band OFFSETS neighbours at a time, a thread with one neighbour of one query.
template <class T>
CUDA_OPS_KERNEL band_products(RefinedRows<T> rows, RefinedBackward p) {
  CUDA_OPS_SHARED(float, queries, TOKENS * (PIECE_LENGTH + 1));
  CUDA_OPS_SHARED(float, grads, TOKENS * (PIECE_LENGTH + 1));
  CUDA_OPS_SHARED(float, keys, WINDOW * (PIECE_LENGTH + 1));
  CUDA_OPS_SHARED(float, values, WINDOW * (PIECE_LENGTH + 1));
  const int64_t N = p.in.shape.N, D = p.in.shape.D, tiles = (N + TOKENS - 1) / TOKENS, first = device::block() % tiles * TOKENS;
  const Cluster own = cluster_of(p, device::block() / tiles, 0);
  const int64_t key_head = own.h / p.in.shape.group;
  if (first >= own.n) return;
  const int t = device::thread(), r = t / OFFSETS, offset = t % OFFSETS;
  const int64_t i = first + r;
  const int32_t cluster = i < own.n ? p.query_clusters[own.head * N + position_of(p.in.tokens, own.b, i)] : -1;
  const bool attends = cluster >= 0 && cluster < own.clusters;
  const int32_t* top = p.top_keys + (own.head * p.budgets.C + (attends ? cluster : 0)) * p.budgets.K;
  for (int64_t w0 = 0; w0 < p.width; w0 += OFFSETS) {
    float along_x = 0, along_g = 0;
    for (int64_t d0 = 0; d0 < D; d0 += PIECE_LENGTH) {
      for (int e = t; e < (TOKENS + WINDOW) * PIECE_LENGTH; e += THREADS) {
        const bool query = e < TOKENS * PIECE_LENGTH;
        const int row = e / PIECE_LENGTH - (query ? 0 : TOKENS), at = row * (PIECE_LENGTH + 1) + e % PIECE_LENGTH;
        const int64_t token = first + row + (query ? 0 : w0 - p.W), d = d0 + e % PIECE_LENGTH;
        const bool here = token >= 0 && token < own.n && d < D;
        const int64_t position = here ? position_of(p.in.tokens, own.b, token) : 0;
        (query ? queries : keys)[at] = !here ? 0 : query ? rows.q.at(own.b, own.h, position, d) * p.in.scale : rows.k.at(own.b, key_head, position, d);
        (query ? grads : values)[at] = !here ? 0 : query ? rows.grad.at(own.b, own.h, position, d) : rows.v.at(own.b, key_head, position, d);
      }
      device::barrier();
      CUDA_OPS_UNROLL(8)
      for (int d = 0; d < PIECE_LENGTH; ++d) {
        along_x = device::fma(queries[r * (PIECE_LENGTH + 1) + d], keys[(r + offset) * (PIECE_LENGTH + 1) + d], along_x);
        along_g = device::fma(grads[r * (PIECE_LENGTH + 1) + d], values[(r + offset) * (PIECE_LENGTH + 1) + d], along_g);
      }
      device::barrier();
    }
    const int64_t w = w0 + offset, j = i + w - p.W, at = (own.head * N + i) * p.width + w;
    if (i >= own.n || w >= p.width) continue;
    const bool present = attends && j >= 0 && j < own.n && !holds(top, p.budgets.K, position_of(p.in.tokens, own.b, j));
    p.band_keys[at] = present ? along_x : attends ? -infinity() : 0;
    p.band_values[at] = present ? along_g : 0;
    p.band_scores[at] = attends ? -infinity() : 0;
  }
}

}  // namespace

namespace cuda_ops::launch {

void refined_band_backward(const RefinedBackward& p, Stream stream) {
  const int64_t blocks = p.in.shape.B * p.in.shape.H * ((p.in.shape.N + TOKENS - 1) / TOKENS);
  if (!blocks || !p.width) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    CUDA_OPS_LAUNCH(band_products<T>, blocks, THREADS, stream, RefinedRows<T>(p), p);
  });
}

}  // namespace cuda_ops::launch
