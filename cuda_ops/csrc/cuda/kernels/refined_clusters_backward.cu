#include "refined_backward_tiles.h"

namespace {

// One column of the tile for one of the first SLOTS threads: sums over the queries of what its cell gets, less what the band adds.
struct CellSums {
  float log_mass = 0, spread = 0, shift = 0;
};

// Adds to (slots, D) numbers the products of `values` (QUERIES, slots), turned, with the rows of a piece; a thread has 2 OWN slots side by side and two columns.
CUDA_OPS_DEVICE void add_to_slots(const Quad* values, const Quad* piece, bool fresh, int64_t count, int64_t d0, int64_t D, float* to) {
  const int first = device::thread() / LANES * (2 * OWN);
  float sum[2 * OWN][2] = {};
  CUDA_OPS_UNROLL(4)
  for (int r = 0; r < QUERIES; ++r) {
    const Quad low = values[r * SLOT_STRIDE + first / 4], high = values[r * SLOT_STRIDE + first / 4 + 1];
    const float* row = piece->at + r * (4 * STRIDE) + own_lane() * 2;
    for (int side = 0; side < 2; ++side) {
      for (int s = 0; s < 4; ++s) sum[s][side] = device::fma(low.at[s], row[side], sum[s][side]);
      for (int s = 0; s < 4; ++s) sum[4 + s][side] = device::fma(high.at[s], row[side], sum[4 + s][side]);
    }
  }
  for (int s = 0; s < 2 * OWN; ++s)
    for (int side = 0; side < 2; ++side) {
      const int64_t d = d0 + own_lane() * 2 + side;
      if (first + s >= count || d >= D) continue;
      float& number = to[(first + s) * D + d];
      number = fresh ? sum[s][side] : number + sum[s][side];
    }
}

// A block has SLOTS exact keys or cells of one cluster and goes through the cluster's queries in their order, QUERIES at a time.
// The bound leaves registers for three blocks.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(3 * TILE_THREADS) slot_gradients(RefinedRows<T> rows, RefinedBackward p, int64_t exact_tiles, int64_t tiles) {
  CUDA_OPS_SHARED(Quad, x, QUERIES * STRIDE);
  CUDA_OPS_SHARED(Quad, g, QUERIES * STRIDE);
  CUDA_OPS_SHARED(Quad, k, SLOTS * STRIDE);
  CUDA_OPS_SHARED(Quad, v, SLOTS * STRIDE);
  CUDA_OPS_SHARED(Quad, weights, QUERIES * SLOT_STRIDE);
  CUDA_OPS_SHARED(Quad, values, QUERIES * SLOT_STRIDE);
  CUDA_OPS_SHARED(int32_t, query, QUERIES);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(int32_t, slot, SLOTS);
  CUDA_OPS_SHARED(QueryTotals, totals, QUERIES);
  const int64_t C = p.budgets.C, M = p.budgets.M, K = p.budgets.K, D = p.in.shape.D, n = device::block() % tiles;
  const Cluster own = cluster_of(p, device::block() / tiles / C, device::block() / tiles % C);
  const bool cells = n >= exact_tiles;
  const int64_t first = (cells ? n - exact_tiles : n) * SLOTS, count = smaller<int64_t>(SLOTS, (cells ? own.cells : K) - first);
  const int32_t* first_of = p.queries.first + own.head * (C + 1) + own.c;
  const int64_t begin = first_of[0], end = first_of[1];
  if (own.c >= own.clusters || begin == end || count <= 0 || (!cells && p.top_keys[own.row * K + first] < 0)) return;
  const int32_t* members = p.queries.order + own.head * p.in.shape.N;
  const TileMemory tile{x, g, k, v, query, position, slot, totals};
  const int t = device::thread();
  float* key_grads = cells ? p.cell_grads.keys + (own.row * M + first) * D : p.top_key_grads + (own.row * K + first) * D;
  float* value_grads = cells ? p.cell_grads.values + (own.row * M + first) * D : p.top_value_grads + (own.row * K + first) * D;
  CellSums sums;
  const float own_spread = cells && t < count ? p.cells.spread[own.row * M + first + t] : 0;
  if (!cells) list_slots(p, own, first, tile);
  for (int64_t member = begin; member < end; member += QUERIES) {
    list_queries(p, own, members + member, end - member, tile);
    if (t < QUERIES) totals[t] = member + t < end ? p.totals[own.head * p.in.shape.N + members[member + t]] : QueryTotals{0, 0, 0, 0, 0};
    device::barrier();
    float along_x[OWN][OWN], along_g[OWN][OWN];
    tile_products(rows, p, own, cells, first, tile, along_x, along_g);
    for (int s = 0; s < OWN; ++s) {
      const int column = own_lane() + s * LANES;
      const Slot at = slot_at(p, own, cells, first, tile, column);
      for (int r = 0; r < OWN; ++r) {
        const QueryTotals& total = totals[own_row() + r];
        const float weight = query[own_row() + r] >= 0 ? weight_of(at, along_x[r][s], total) : 0;
        weights->at[(own_row() + r) * (4 * SLOT_STRIDE) + column] = weight;
        values->at[(own_row() + r) * (4 * SLOT_STRIDE) + column] = at.here ? weight * (along_g[r][s] - total.output) : 0;
      }
    }
    device::barrier();
    if (cells) {
      for (int r = 0; r < QUERIES && t < SLOTS; ++r) sums.log_mass += values->at[r * (4 * SLOT_STRIDE) + t];
      device::barrier();
      add_counted_twice(p, own, first, tile, values->at);
      device::barrier();
      for (int r = 0; r < QUERIES && t < SLOTS; ++r) {
        const float value = values->at[r * (4 * SLOT_STRIDE) + t];
        sums.shift += value;
        if (!capped(totals[r].half, own_spread)) sums.spread = device::fma(value, totals[r].half, sums.spread);
      }
    }
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      load_rows(rows.q, own.b, own.h, position, QUERIES, d0, D, p.in.scale, cells ? p.means + own.row * D : nullptr, x);
      load_rows(rows.grad, own.b, own.h, position, QUERIES, d0, D, 1, nullptr, g);
      device::barrier();
      add_to_slots(values, x, member == begin, count, d0, D, key_grads);
      add_to_slots(weights, g, member == begin, count, d0, D, value_grads);
      device::barrier();
    }
  }
  if (cells && t < count) {
    const int64_t cell = own.row * M + first + t;
    p.cell_grads.log_mass[cell] = sums.log_mass;
    p.cell_grads.spread[cell] = sums.spread;
    p.cell_grads.shift[cell] = sums.shift;
  }
}

}  // namespace

namespace cuda_ops::launch {

void refined_clusters_backward(const RefinedBackward& p, Stream stream) {
  const int64_t exact_tiles = (p.budgets.K + SLOTS - 1) / SLOTS, tiles = exact_tiles + (p.budgets.M + SLOTS - 1) / SLOTS;
  const int64_t blocks = p.in.shape.B * p.in.shape.H * p.budgets.C * tiles;
  if (!blocks || !p.in.shape.N) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    CUDA_OPS_LAUNCH(slot_gradients<T>, blocks, TILE_THREADS, stream, RefinedRows<T>(p), p, exact_tiles, tiles);
  });
}

}  // namespace cuda_ops::launch
