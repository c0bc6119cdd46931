// Tiles of rows in shared memory, and products of queries of one cluster with its exact keys or its cells.
#pragma once
#include "refined_backward.h"
#include "top_list.h"

namespace {

using cuda_ops::QueryTotals;
using cuda_ops::RefinedBackward;

constexpr int TILE_THREADS = 128, QUERIES = 32, SLOTS = 64, COLUMNS = 32, LANES = 16, OWN = 4;
struct alignas(16) Quad {
  float at[4];
};
constexpr int STRIDE = COLUMNS / 4 + 1;  // in quads; one more, so that rows at the same place of the piece lie in different banks
constexpr int SLOT_STRIDE = SLOTS / 4 + 1;

template <class T>
struct RefinedRows {
  Heads<T> grad, q, k, v;
  explicit RefinedRows(const RefinedBackward& p) : grad(p.in.grad), q(p.in.q), k(p.in.k), v(p.in.v) {}
};

// One cluster of a head.
struct Cluster {
  int64_t b, h, head, c, row, n, clusters, cells;  // row: of (B, H, C)
};
CUDA_OPS_DEVICE Cluster cluster_of(const RefinedBackward& p, int64_t head, int64_t c) {
  const int64_t b = head / p.in.shape.H, n = count_of(p.in.tokens, b);
  const Step step = step_of(p.budgets, n);
  const int64_t clusters = smaller<int64_t>(step.clusters, p.budgets.C), cells = smaller<int64_t>(step.key_clusters, p.budgets.M);
  return {b, head % p.in.shape.H, head, c, head * p.budgets.C + c, n, clusters, cells};
}

// COLUMNS numbers from d0 on of the rows at `position`, scaled, less `origin` if there is one; 0 for rows at a negative position.
template <class T>
CUDA_OPS_DEVICE void load_rows(const Heads<T>& x, int64_t b, int64_t h, const int32_t* position, int rows, int64_t d0, int64_t D, float scale, const float* origin,
                               Quad* piece) {
  const int lane = device::thread() % COLUMNS;
  const int64_t d = d0 + lane;
  const bool inside = d < D;
  const T* column = x.base + x.offset(b, h, 0, d);
  const float from = origin && inside ? origin[d] : 0;
  CUDA_OPS_UNROLL(4)
  for (int r = device::thread() / COLUMNS; r < rows; r += TILE_THREADS / COLUMNS) {
    const int32_t at = position[r];
    piece->at[r * (4 * STRIDE) + lane] = at >= 0 && inside ? widen(column[at * x.token]) * scale - from : 0;
  }
}
// The same of rows of a (count, D), `stride` numbers apart.
CUDA_OPS_DEVICE void load_floats(const float* from, int64_t stride, int64_t count, int rows, int64_t d0, int64_t D, Quad* piece) {
  const int lane = device::thread() % COLUMNS;
  const bool inside = d0 + lane < D;
  CUDA_OPS_UNROLL(4)
  for (int r = device::thread() / COLUMNS; r < rows; r += TILE_THREADS / COLUMNS)
    piece->at[r * (4 * STRIDE) + lane] = r < count && inside ? from[r * stride + d0 + lane] : 0;
}

// The rows of a piece that this thread has products of, and its columns or slots: OWN rows side by side, slots LANES apart.
CUDA_OPS_DEVICE int own_row() { return device::thread() / LANES * OWN; }
CUDA_OPS_DEVICE int own_lane() { return device::thread() % LANES; }

// sum += row . slot over a piece, one chain of fused additions in the order of d.
CUDA_OPS_DEVICE void add_products(const Quad* rows, const Quad* slots, float (&sum)[OWN][OWN]) {
  CUDA_OPS_UNROLL(1)
  for (int quad = 0; quad < COLUMNS / 4; ++quad) {
    Quad slot[OWN];
    for (int s = 0; s < OWN; ++s) slot[s] = slots[(own_lane() + s * LANES) * STRIDE + quad];
    for (int r = 0; r < OWN; ++r) {
      const Quad row = rows[(own_row() + r) * STRIDE + quad];
      for (int s = 0; s < OWN; ++s)
        for (int d = 0; d < 4; ++d) sum[r][s] = device::fma(row.at[d], slot[s].at[d], sum[r][s]);
    }
  }
}

// What the threads of a block share.
struct TileMemory {
  Quad *x, *g, *k, *v;          // pieces of QUERIES, QUERIES, SLOTS, SLOTS rows
  int32_t *query, *position;    // of each query of the tile: its valid index and token position, -1 for none
  int32_t* slot;                // the token position of each exact key
  QueryTotals* totals;          // of each query
};

// The queries of the tile: members `first` … of the cluster.
CUDA_OPS_DEVICE void list_queries(const RefinedBackward& p, const Cluster& own, const int32_t* members, int64_t count, const TileMemory& tile) {
  const int t = device::thread();
  if (t < QUERIES) {
    tile.query[t] = t < count ? members[t] : -1;
    tile.position[t] = t < count ? int32_t(position_of(p.in.tokens, own.b, members[t])) : -1;
  }
}
// SLOTS exact keys from slot `first` on.
CUDA_OPS_DEVICE void list_slots(const RefinedBackward& p, const Cluster& own, int64_t first, const TileMemory& tile) {
  const int t = device::thread();
  if (t >= SLOTS) return;
  const int32_t position = first + t < p.budgets.K ? p.top_keys[own.row * p.budgets.K + first + t] : -1;
  tile.slot[t] = position >= 0 && position < p.in.shape.N && index_of(p.in.tokens, own.b, position) >= 0 ? position : -1;
}

// Products of the tile's queries and gradients with SLOTS keys and values: the exact ones from `first` on, which are in tile.slot, or cells from `first` on, then of
// delta instead of the query. Every thread calls it behind a barrier; it ends with one.
template <class T>
CUDA_OPS_DEVICE void tile_products(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, bool cells, int64_t first, const TileMemory& tile,
                                   float (&along_x)[OWN][OWN], float (&along_g)[OWN][OWN]) {
  const int64_t D = p.in.shape.D, key_head = own.h / p.in.shape.group, from = (own.row * p.budgets.M + first) * D, count = own.cells - first;
  for (int r = 0; r < OWN; ++r)
    for (int s = 0; s < OWN; ++s) along_x[r][s] = along_g[r][s] = 0;
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    load_rows(rows.q, own.b, own.h, tile.position, QUERIES, d0, D, p.in.scale, cells ? p.means + own.row * D : nullptr, tile.x);
    load_rows(rows.grad, own.b, own.h, tile.position, QUERIES, d0, D, 1, nullptr, tile.g);
    if (cells) {
      load_floats(p.cells.keys + from, D, count, SLOTS, d0, D, tile.k);
      load_floats(p.cells.values + from, D, count, SLOTS, d0, D, tile.v);
    } else {
      load_rows(rows.k, own.b, key_head, tile.slot, SLOTS, d0, D, 1, nullptr, tile.k);
      load_rows(rows.v, own.b, key_head, tile.slot, SLOTS, d0, D, 1, nullptr, tile.v);
    }
    device::barrier();
    add_products(tile.x, tile.k, along_x);
    add_products(tile.g, tile.v, along_g);
    device::barrier();
  }
}

// Of a slot of the tile: whether it is one, and a cell's log mass and spread; 0 for an exact key, whose logit is its product.
struct Slot {
  bool here;
  float log_mass, spread;
};
CUDA_OPS_DEVICE Slot slot_at(const RefinedBackward& p, const Cluster& own, bool cells, int64_t first, const TileMemory& tile, int column) {
  const int64_t cell = own.row * p.budgets.M + first + column;
  if (!cells) return {tile.slot[column] >= 0, 0, 0};
  if (first + column >= own.cells) return {false, 0, 0};
  return {true, p.cells.log_mass[cell], p.cells.spread[cell]};
}

// The second-order term of a cell is capped at 1; at the cap it has no gradient.
CUDA_OPS_DEVICE bool capped(float half, float spread) { return !(half * spread < 1); }
CUDA_OPS_DEVICE float shift_of(float product, float half, float spread) { return product + lesser(1, half * spread); }
CUDA_OPS_DEVICE float weight_of(const Slot& slot, float product, const QueryTotals& total) {
  return slot.here ? device::exponential(slot.log_mass + shift_of(product, total.half, slot.spread) - total.largest) * total.inverse : 0;
}

// Blocks for clusters of n tokens cut into tiles of `length`.
inline int64_t tiles_of(int64_t n, int64_t clusters, int64_t length) { return (n + length - 1) / length + (clusters < n ? clusters : n); }

// Adds the gradients of what the band counted twice to those of the tile's cells, whose gradients are in `values` (QUERIES, 4 SLOT_STRIDE). A thread has the cells
// m % OWN == t % OWN of one query, in the order of the offsets.
CUDA_OPS_DEVICE void add_counted_twice(const RefinedBackward& p, const Cluster& own, int64_t first, const TileMemory& tile, float* values) {
  const int r = device::thread() / OWN, part = device::thread() % OWN;
  const int64_t i = tile.query[r], N = p.in.shape.N;
  if (i < 0) return;
  for (int64_t w = 0; w < p.width; ++w) {
    const int64_t j = i + w - p.W;
    if (j < 0 || j >= own.n) continue;
    const int64_t m = p.key_clusters[own.head * N + position_of(p.in.tokens, own.b, j)] - first;
    if (m >= 0 && m < SLOTS && m + first < own.cells && m % OWN == part) values[r * (4 * SLOT_STRIDE) + m] += p.band_scores[(own.head * N + i) * p.width + w];
  }
}

}  // namespace
