// Tiles of queries of one cluster and its exact keys or its cells, the slots: their products, and sums over the ones weighted by numbers of the others. float32 by the
// FMA units (VectorSlots), 16-bit inputs on the tensor cores (MatrixSlots).
#pragma once
#include "refined_backward.h"
#include "token_tiles.h"
#include "top_list.h"

namespace {

using cuda_ops::QueryTotals;
using cuda_ops::RefinedBackward;

constexpr int BLOCK_THREADS = 128, SLOTS = TILE;

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

// Pieces of rows for the FMA units.
constexpr int PIECE_LENGTH = 32, PIECE_STRIDE = PIECE_LENGTH / OWN + 1;  // in quads; one more, so that rows at the same place of the piece lie in different banks

// PIECE_LENGTH numbers from d0 on of `count` rows.
template <class Rows>
CUDA_OPS_DEVICE void load_piece(const Rows& rows, int count, int64_t d0, TileQuad* piece) {
  const int lane = device::thread() % PIECE_LENGTH;
  CUDA_OPS_UNROLL(4)
  for (int r = device::thread() / PIECE_LENGTH; r < count; r += BLOCK_THREADS / PIECE_LENGTH) piece->at[r * (OWN * PIECE_STRIDE) + lane] = rows.at(r, d0 + lane);
}

// A thread has OWN rows side by side, from own_row() on, and of columns or slots those LANES_OF_ROW apart, or two side by side.
CUDA_OPS_DEVICE int own_lane() { return device::thread() % LANES_OF_ROW; }

// Tables (QUERIES, SLOTS) of numbers lie in rows of TILE_STRIDE.
struct VectorSlots {
  static constexpr int QUERIES = 32, ROWS = OWN, COLUMNS = OWN, LANES = LANES_OF_ROW, PIECES = 2 * (QUERIES + SLOTS) * PIECE_STRIDE;
  struct Numbers {
    float at[OWN][OWN] = {};
    CUDA_OPS_DEVICE float& operator()(int r, int s) { return at[r][s]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return own_row() + r; }
  CUDA_OPS_DEVICE static int column(int s) { return own_lane() + s * LANES; }

  // Memory with so many tables, behind the pieces.
  template <int TABLES>
  static constexpr int QUADS = PIECES + TABLES * QUERIES * TILE_QUADS;
  CUDA_OPS_DEVICE static float* table(TileQuad* memory, int which) { return (memory + PIECES + which * QUERIES * TILE_QUADS)->at; }

  template <class X, class G, class Keys>
  CUDA_OPS_DEVICE static void multiply(const X& x, const Keys& keys, const G& g, const Keys& values, int64_t D, int64_t, TileQuad* memory, Numbers& along_x,
                                       Numbers& along_g) {
    TileQuad *x_piece = memory, *g_piece = x_piece + QUERIES * PIECE_STRIDE, *key_piece = g_piece + QUERIES * PIECE_STRIDE;
    TileQuad* value_piece = key_piece + SLOTS * PIECE_STRIDE;
    along_x = along_g = Numbers();
    for (int64_t d0 = 0; d0 < D; d0 += PIECE_LENGTH) {
      load_piece(x, QUERIES, d0, x_piece);
      load_piece(g, QUERIES, d0, g_piece);
      load_piece(keys, SLOTS, d0, key_piece);
      load_piece(values, SLOTS, d0, value_piece);
      device::barrier();
      add_products(x_piece, key_piece, along_x.at);
      add_products(g_piece, value_piece, along_g.at);
      device::barrier();
    }
  }

  template <class Slots, class Write>
  CUDA_OPS_DEVICE static void weigh_slots(const float* table, const Slots& slots, int64_t D, int64_t, TileQuad* memory, const Write& write) {
    const float* piece = memory->at + own_lane() * 2;
    for (int64_t d0 = 0; d0 < D; d0 += PIECE_LENGTH) {
      load_piece(slots, SLOTS, d0, memory);
      device::barrier();
      float sum[OWN][2] = {};
      CUDA_OPS_UNROLL(2)
      for (int s0 = 0; s0 < SLOTS; s0 += 4) {
        float number[4][2];
        for (int s = 0; s < 4; ++s)
          for (int side = 0; side < 2; ++side) number[s][side] = piece[(s0 + s) * (OWN * PIECE_STRIDE) + side];
        for (int r = 0; r < OWN; ++r) {
          const TileQuad weight = four_of(table, own_row() + r, s0);
          for (int s = 0; s < 4; ++s)
            for (int side = 0; side < 2; ++side) sum[r][side] = device::fma(weight.at[s], number[s][side], sum[r][side]);
        }
      }
      for (int r = 0; r < OWN; ++r) write_two(own_row() + r, d0, D, sum[r], write);
      device::barrier();
    }
  }

  // A thread has 2 OWN slots side by side.
  template <class Queries, class Write>
  CUDA_OPS_DEVICE static void weigh_queries(const float* table, const Queries& queries, int64_t D, int64_t, TileQuad* memory, const Write& write) {
    const int first = 2 * own_row();
    for (int64_t d0 = 0; d0 < D; d0 += PIECE_LENGTH) {
      load_piece(queries, QUERIES, d0, memory);
      device::barrier();
      float sum[2 * OWN][2] = {};
      CUDA_OPS_UNROLL(4)
      for (int r = 0; r < QUERIES; ++r) {
        const TileQuad low = four_of(table, r, first), high = four_of(table, r, first + 4);
        const float* number = memory->at + r * (OWN * PIECE_STRIDE) + own_lane() * 2;
        for (int side = 0; side < 2; ++side) {
          for (int s = 0; s < 4; ++s) sum[s][side] = device::fma(low.at[s], number[side], sum[s][side]);
          for (int s = 0; s < 4; ++s) sum[4 + s][side] = device::fma(high.at[s], number[side], sum[4 + s][side]);
        }
      }
      for (int s = 0; s < 2 * OWN; ++s) write_two(first + s, d0, D, sum[s], write);
      device::barrier();
    }
  }

 private:
  // sum += row . slot over a piece, one chain of fused additions in the order of d.
  CUDA_OPS_DEVICE static void add_products(const TileQuad* rows, const TileQuad* slots, float (&sum)[OWN][OWN]) {
    CUDA_OPS_UNROLL(1)
    for (int quad = 0; quad < PIECE_LENGTH / 4; ++quad) {
      TileQuad slot[OWN];
      for (int s = 0; s < OWN; ++s) slot[s] = slots[column(s) * PIECE_STRIDE + quad];
      for (int r = 0; r < OWN; ++r) {
        const TileQuad row = rows[(own_row() + r) * PIECE_STRIDE + quad];
        for (int s = 0; s < OWN; ++s)
          for (int d = 0; d < 4; ++d) sum[r][s] = device::fma(row.at[d], slot[s].at[d], sum[r][s]);
      }
    }
  }
  CUDA_OPS_DEVICE static TileQuad four_of(const float* table, int r, int s) { return *reinterpret_cast<const TileQuad*>(table + r * TILE_STRIDE + s); }
  template <class Write>
  CUDA_OPS_DEVICE static void write_two(int row, int64_t d0, int64_t D, const float (&sum)[2], const Write& write) {
    for (int side = 0; side < 2; ++side) {
      const int64_t d = d0 + own_lane() * 2 + side;
      if (d < D) write(row, d, sum[side]);
    }
  }
};

// Tables lie where rows do while they are multiplied.
template <class T>
struct MatrixSlots {
  using Tile = MatrixTile<T>;
  using Numbers = typename Tile::Numbers;
  static constexpr int QUERIES = TILE, ROWS = Tile::ROWS, COLUMNS = Tile::COLUMNS, LANES = Tile::LANES;
  static_assert(Tile::THREADS == BLOCK_THREADS && Tile::QUADS - QUERIES * TILE_QUADS >= 2 * Tile::PIECE_QUADS);
  CUDA_OPS_DEVICE static int row(int r) { return Tile::row(r); }
  CUDA_OPS_DEVICE static int column(int s) { return Tile::column(s); }

  template <int>
  static constexpr int QUADS = Tile::QUADS;
  // The second table outlives sums weighted by the first.
  CUDA_OPS_DEVICE static float* table(TileQuad* memory, int which) { return (memory + which * (Tile::QUADS - QUERIES * TILE_QUADS))->at; }

  // x . keys and g . values; of the slots the first `count` are wanted.
  CUDA_OPS_DEVICE static void multiply(const ScaledRows<T>& x, const TileRows<T>& keys, const TileRows<T>& g, const TileRows<T>& values, int64_t, int64_t count,
                                       TileQuad* memory, Numbers& along_x, Numbers& along_g) {
    multiply_tiles<Tile>(x.rows, keys, g, values, memory, along_x, along_g, count);
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int s = 0; s < COLUMNS; ++s) along_x(r, s) *= x.scale;
  }
  // Logits take float32's accuracy, products with gradients that of a weight.
  CUDA_OPS_DEVICE static void multiply(const ScaledRows<T>& x, const FloatRows& keys, const TileRows<T>& g, const FloatRows& values, int64_t D, int64_t count,
                                       TileQuad* memory, Numbers& along_x, Numbers& along_g) {
    along_x = along_g = Numbers();
    Tile::template multiply_parts<FLOAT_PARTS>(x, keys, D, count, memory, along_x);
    Tile::template multiply_parts<2>(g, values, D, count, memory, along_g);
  }

  // write(query, d, sum over the slots of table[query][slot] * number d of the slot), for every d; the first `count` slots are wanted.
  template <class Slots, class Write>
  CUDA_OPS_DEVICE static void weigh_slots(const float* table, const Slots& slots, int64_t D, int64_t count, TileQuad* memory, const Write& write) {
    weigh([=](int r, int s) { return table[r * TILE_STRIDE + s]; }, slots, D, count, memory, write);
  }
  // write(slot, d, sum over the first `count` queries of table[query][slot] * number d of the query).
  template <class Queries, class Write>
  CUDA_OPS_DEVICE static void weigh_queries(const float* table, const Queries& queries, int64_t D, int64_t count, TileQuad* memory, const Write& write) {
    weigh([=](int s, int r) { return table[r * TILE_STRIDE + s]; }, queries, D, count, memory, write);
  }

 private:
  template <class Weight, class Columns, class Write>
  CUDA_OPS_DEVICE static void weigh(const Weight& weight, const Columns& columns, int64_t D, int64_t count, TileQuad* memory, const Write& write) {
    Numbers numbers;
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) numbers(r, c) = weight(row(r), column(c));
    const typename Tile::Weights weights(numbers);
    device::barrier();
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < D; d0 += TILE)
      Tile::weigh(weights, columns, d0, count, memory, [&](int r, int c, float sum) {
        const int64_t d = d0 + column(c);
        if (d < D) write(row(r), d, sum);
      });
  }
};

template <class T>
using SlotsOf = std::conditional_t<sizeof(T) == 2, MatrixSlots<T>, VectorSlots>;

// Of a slot: whether it is one, and a cell's log mass and spread; 0 for an exact key, whose logit is its product.
struct Slot {
  bool here;
  float log_mass, spread;
};

// What the threads of a block share.
struct TileMemory {
  TileQuad* memory;
  int32_t *query, *position;  // of each query of the tile: its valid index and token position, -1 for none
  int32_t* key;               // the token position of each exact key, -1 for none
  Slot* slots;
  QueryTotals* totals;        // of each query
};

// The queries of the tile: members `first` … of the cluster.
template <class Tile>
CUDA_OPS_DEVICE void list_queries(const RefinedBackward& p, const Cluster& own, const int32_t* members, int64_t count, const TileMemory& tile) {
  const int t = device::thread();
  if (t < Tile::QUERIES) {
    tile.query[t] = t < count ? members[t] : -1;
    tile.position[t] = t < count ? int32_t(position_of(p.in.tokens, own.b, members[t])) : -1;
  }
}

// Up to SLOTS exact keys or cells of a cluster.
struct SlotTile {
  bool cells;
  int64_t first, count;
};
// Tile n of a cluster: the exact keys come first.
CUDA_OPS_DEVICE SlotTile slot_tile(const RefinedBackward& p, const Cluster& own, int64_t exact_tiles, int64_t n) {
  const bool cells = n >= exact_tiles;
  const int64_t first = (cells ? n - exact_tiles : n) * SLOTS;
  return {cells, first, smaller<int64_t>(SLOTS, (cells ? own.cells : p.budgets.K) - first)};
}
CUDA_OPS_DEVICE void list_slots(const RefinedBackward& p, const Cluster& own, const SlotTile& slots, const TileMemory& tile) {
  const int t = device::thread();
  if (t >= SLOTS) return;
  const bool here = t < slots.count;
  if (slots.cells) {
    const int64_t cell = own.row * p.budgets.M + slots.first + t;
    tile.slots[t] = here ? Slot{true, p.cells.log_mass[cell], p.cells.spread[cell]} : Slot{false, 0, 0};
  } else {
    const int32_t position = here ? p.top_keys[own.row * p.budgets.K + slots.first + t] : -1;
    tile.key[t] = position >= 0 && position < p.in.shape.N && index_of(p.in.tokens, own.b, position) >= 0 ? position : -1;
    tile.slots[t] = {tile.key[t] >= 0, 0, 0};
  }
}

// The rows of the tile: of its queries, less the cluster's mean where they meet cells, of their gradients, and of its slots.
template <class T>
CUDA_OPS_DEVICE ScaledRows<T> query_rows(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, bool cells, const TileMemory& tile) {
  return {{rows.q, own.b, own.h, p.in.shape.D, tile.position}, p.in.scale, cells ? p.means + own.row * p.in.shape.D : nullptr};
}
template <class T>
CUDA_OPS_DEVICE TileRows<T> grad_rows(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  return {rows.grad, own.b, own.h, p.in.shape.D, tile.position};
}
template <class T>
CUDA_OPS_DEVICE TileRows<T> exact_rows(const Heads<T>& x, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  return {x, own.b, own.h / p.in.shape.group, p.in.shape.D, tile.key};
}
CUDA_OPS_DEVICE FloatRows cell_rows(const float* x, const RefinedBackward& p, const Cluster& own, const SlotTile& slots) {
  const int64_t D = p.in.shape.D;
  return {x + (own.row * p.budgets.M + slots.first) * D, D, slots.count, D};
}

// Products of the tile's queries and gradients with its keys and values; with cells of delta instead of the query. Every thread calls it behind a barrier; it ends
// with one.
template <class Tile, class T, class Numbers>
CUDA_OPS_DEVICE void tile_products(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const SlotTile& slots, const TileMemory& tile,
                                   Numbers& along_x, Numbers& along_g) {
  const ScaledRows<T> x = query_rows(rows, p, own, slots.cells, tile);
  const TileRows<T> g = grad_rows(rows, p, own, tile);
  if (slots.cells)
    Tile::multiply(x, cell_rows(p.cells.keys, p, own, slots), g, cell_rows(p.cells.values, p, own, slots), x.rows.D, slots.count, tile.memory, along_x, along_g);
  else
    Tile::multiply(x, exact_rows(rows.k, p, own, tile), g, exact_rows(rows.v, p, own, tile), x.rows.D, slots.count, tile.memory, along_x, along_g);
}

// The second-order term of a cell is capped at 1; at the cap it has no gradient.
CUDA_OPS_DEVICE bool capped(float half, float spread) { return !(half * spread < 1); }
CUDA_OPS_DEVICE float shift_of(float product, float half, float spread) { return product + lesser(1, half * spread); }
CUDA_OPS_DEVICE float weight_of(const Slot& slot, float product, const QueryTotals& total) {
  return slot.here ? device::exponential(slot.log_mass + shift_of(product, total.half, slot.spread) - total.largest) * total.inverse : 0;
}

// Blocks for clusters of n tokens cut into tiles of `length`.
inline int64_t tiles_of(int64_t n, int64_t clusters, int64_t length) { return (n + length - 1) / length + (clusters < n ? clusters : n); }

// So many threads share the work of a query.
template <class Tile>
constexpr int SHARERS = BLOCK_THREADS / Tile::QUERIES;

// Adds the gradients of what the band counted twice to those of the tile's cells, whose gradients are in a table. A thread has the cells of one remainder of one query,
// in the order of the offsets.
template <class Tile>
CUDA_OPS_DEVICE void add_counted_twice(const RefinedBackward& p, const Cluster& own, const SlotTile& slots, const TileMemory& tile, float* values) {
  const int r = device::thread() / SHARERS<Tile>, part = device::thread() % SHARERS<Tile>;
  const int64_t i = tile.query[r], N = p.in.shape.N;
  if (i < 0) return;
  for (int64_t w = 0; w < p.width; ++w) {
    const int64_t j = i + w - p.W;
    if (j < 0 || j >= own.n) continue;
    const int64_t m = p.key_clusters[own.head * N + position_of(p.in.tokens, own.b, j)] - slots.first;
    if (m >= 0 && m < slots.count && m % SHARERS<Tile> == part) values[r * TILE_STRIDE + m] += p.band_scores[(own.head * N + i) * p.width + w];
  }
}

}  // namespace
