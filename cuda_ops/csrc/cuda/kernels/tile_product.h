// Products of tiles that lie in shared memory: TILE x TILE numbers, of which a thread of the block has 4 x 4 in its registers.
#pragma once
#include "vectors.h"

namespace {

constexpr int TILE_THREADS = 256, TILE = 64, OWN = 4, LANES_OF_ROW = TILE / OWN;
struct alignas(16) TileQuad {
  float at[OWN];
};
constexpr int TILE_QUADS = TILE / OWN + 1, TILE_STRIDE = OWN * TILE_QUADS;  // one quad more, so that rows at the same place lie in different banks

CUDA_OPS_DEVICE int own_row() { return device::thread() / LANES_OF_ROW * OWN; }
CUDA_OPS_DEVICE int own_column() { return device::thread() % LANES_OF_ROW * OWN; }

// sum[r][c] += left[d][own row + r] * right[d][own column + c] over d, one chain of fused additions in its order.
CUDA_OPS_DEVICE void add_product(const TileQuad* left, const TileQuad* right, int depth, float (&sum)[OWN][OWN]) {
  left += device::thread() / LANES_OF_ROW;
  right += device::thread() % LANES_OF_ROW;
  CUDA_OPS_UNROLL(2)
  for (int d = 0; d < depth; ++d) {
    const TileQuad rows = left[d * TILE_QUADS], columns = right[d * TILE_QUADS];
    for (int r = 0; r < OWN; ++r)
      for (int c = 0; c < OWN; ++c) sum[r][c] = device::fma(rows.at[r], columns.at[c], sum[r][c]);
  }
}

// The same, the product of this tile first: a sum of many tiles is more accurate that way.
CUDA_OPS_DEVICE void add_tile(const TileQuad* left, const TileQuad* right, int depth, float (&sum)[OWN][OWN]) {
  float tile[OWN][OWN] = {};
  add_product(left, right, depth, tile);
  for (int r = 0; r < OWN; ++r)
    for (int c = 0; c < OWN; ++c) sum[r][c] += tile[r][c];
}

constexpr int DEPTH = 16;  // of the pieces that load_across loads
// to[d][i] = number d0 + d of token positions[i], 0 where there is none, for DEPTH values of d. Position -1 is no token.
template <class T>
CUDA_OPS_DEVICE void load_across(const Heads<T>& x, int64_t b, int64_t h, const int32_t* positions, int64_t d0, int64_t D, TileQuad* to) {
  const int d = device::thread() % DEPTH;
  const T* from = x.base + x.offset(b, h, 0, d0 + d);
  float* out = to->at + d * TILE_STRIDE;
  CUDA_OPS_UNROLL(4)
  for (int i = device::thread() / DEPTH; i < TILE; i += TILE_THREADS / DEPTH)
    out[i] = positions[i] >= 0 && d0 + d < D ? widen(from[positions[i] * x.token]) : 0;
}

// to[i][d] = number d0 + d of token positions[i], 0 where there is none, for TILE values of d.
template <class T>
CUDA_OPS_DEVICE void load_along(const Heads<T>& x, int64_t b, int64_t h, const int32_t* positions, int64_t d0, int64_t D, TileQuad* to) {
  const int d = device::thread() % TILE;
  const T* from = x.base + x.offset(b, h, 0, d0 + d);
  float* out = to->at + d;
  CUDA_OPS_UNROLL(4)
  for (int i = device::thread() / TILE; i < TILE; i += TILE_THREADS / TILE)
    out[i * TILE_STRIDE] = positions[i] >= 0 && d0 + d < D ? widen(from[positions[i] * x.token]) : 0;
}

CUDA_OPS_DEVICE void store_rows(const float (&from)[OWN][OWN], TileQuad* to) {
  for (int r = 0; r < OWN; ++r) {
    TileQuad row;
    for (int c = 0; c < OWN; ++c) row.at[c] = from[r][c];
    to[(own_row() + r) * TILE_QUADS + own_column() / OWN] = row;
  }
}
CUDA_OPS_DEVICE void store_columns(const float (&from)[OWN][OWN], TileQuad* to) {
  for (int c = 0; c < OWN; ++c) {
    TileQuad column;
    for (int r = 0; r < OWN; ++r) column.at[r] = from[r][c];
    to[(own_column() + c) * TILE_QUADS + own_row() / OWN] = column;
  }
}

// write(i, d0 + d, number d of row i) for the rows of a tile in shared memory, neighbours by neighbouring threads.
template <int THREADS, class Write>
CUDA_OPS_DEVICE void for_each_number(const TileQuad* tile, int64_t d0, int64_t D, const Write& write) {
  const int d = device::thread() % TILE;
  CUDA_OPS_UNROLL(4)
  for (int i = device::thread() / TILE; i < TILE; i += THREADS / TILE)
    if (d0 + d < D) write(i, d0 + d, tile->at[i * TILE_STRIDE + d]);
}

inline int64_t key_heads_of(const Shape& shape) { return shape.group ? shape.H / shape.group : 0; }
inline int64_t tiles_of(int64_t count) { return (count + TILE - 1) / TILE; }

}  // namespace
