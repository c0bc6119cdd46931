#include "refined_backward_tiles.h"

namespace {

// One column of the tile for one of the first SLOTS threads: sums over the queries of what its cell gets, less what the band adds.
struct CellSums {
  float log_mass = 0, spread = 0, shift = 0;
};

// A block has SLOTS exact keys or cells of one cluster and goes through the cluster's queries in their order, QUERIES at a time.
// The bound leaves registers for three blocks.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(BLOCK_THREADS, 3) slot_gradients(RefinedRows<T> rows, RefinedBackward p, int64_t exact_tiles, int64_t tiles) {
  using Tile = SlotsOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::template QUADS<2>);
  CUDA_OPS_SHARED(int32_t, query, Tile::QUERIES);
  CUDA_OPS_SHARED(int32_t, position, Tile::QUERIES);
  CUDA_OPS_SHARED(int32_t, key, SLOTS);
  CUDA_OPS_SHARED(Slot, slots, SLOTS);
  CUDA_OPS_SHARED(QueryTotals, totals, Tile::QUERIES);
  const int64_t C = p.budgets.C, M = p.budgets.M, K = p.budgets.K, D = p.in.shape.D;
  const Cluster own = cluster_of(p, device::block() / tiles / C, device::block() / tiles % C);
  const SlotTile own_slots = slot_tile(p, own, exact_tiles, device::block() % tiles);
  const bool cells = own_slots.cells;
  const int64_t first = own_slots.first, count = own_slots.count;
  const int32_t* first_of = p.queries.first + own.head * (C + 1) + own.c;
  const int64_t begin = first_of[0], end = first_of[1];
  if (own.c >= own.clusters || begin == end || count <= 0 || (!cells && p.top_keys[own.row * K + first] < 0)) return;
  const int32_t* members = p.queries.order + own.head * p.in.shape.N;
  const TileMemory tile{memory, query, position, key, slots, totals};
  const int t = device::thread();
  float *values = Tile::table(memory, 0), *weights = Tile::table(memory, 1);
  float* key_grads = cells ? p.cell_grads.keys + (own.row * M + first) * D : p.top_key_grads + (own.row * K + first) * D;
  float* value_grads = cells ? p.cell_grads.values + (own.row * M + first) * D : p.top_value_grads + (own.row * K + first) * D;
  CellSums sums;
  list_slots(p, own, own_slots, tile);
  for (int64_t member = begin; member < end; member += Tile::QUERIES) {
    list_queries<Tile>(p, own, members + member, end - member, tile);
    if (t < Tile::QUERIES) totals[t] = member + t < end ? p.totals[own.head * p.in.shape.N + members[member + t]] : QueryTotals{0, 0, 0, 0, 0};
    device::barrier();
    typename Tile::Numbers along_x, along_g;
    tile_products<Tile>(rows, p, own, own_slots, tile, along_x, along_g);
    CUDA_OPS_UNROLL(Tile::COLUMNS)
    for (int s = 0; s < Tile::COLUMNS; ++s) {
      const Slot slot = slots[Tile::column(s)];
      CUDA_OPS_UNROLL(Tile::ROWS)
      for (int r = 0; r < Tile::ROWS; ++r) {
        const int row = Tile::row(r), at = row * TILE_STRIDE + Tile::column(s);
        const float weight = query[row] >= 0 ? weight_of(slot, along_x(r, s), totals[row]) : 0;
        weights[at] = weight;
        values[at] = slot.here ? weight * (along_g(r, s) - totals[row].output) : 0;
      }
    }
    device::barrier();
    if (cells) {
      for (int r = 0; r < Tile::QUERIES && t < SLOTS; ++r) sums.log_mass += values[r * TILE_STRIDE + t];
      device::barrier();
      add_counted_twice<Tile>(p, own, own_slots, tile, values);
      device::barrier();
      for (int r = 0; r < Tile::QUERIES && t < SLOTS; ++r) {
        const float value = values[r * TILE_STRIDE + t];
        sums.shift += value;
        if (!capped(totals[r].half, slots[t].spread)) sums.spread = device::fma(value, totals[r].half, sums.spread);
      }
    }
    const auto add_to = [&](float* grads) {
      return [=](int s, int64_t d, float sum) {
        if (s < count) grads[s * D + d] = member == begin ? sum : grads[s * D + d] + sum;
      };
    };
    Tile::weigh_queries(values, query_rows(rows, p, own, cells, tile), D, end - member, memory, add_to(key_grads));
    Tile::weigh_queries(weights, grad_rows(rows, p, own, tile), D, end - member, memory, add_to(value_grads));
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
    CUDA_OPS_LAUNCH(slot_gradients<T>, blocks, BLOCK_THREADS, stream, RefinedRows<T>(p), p, exact_tiles, tiles);
  });
}

}  // namespace cuda_ops::launch
