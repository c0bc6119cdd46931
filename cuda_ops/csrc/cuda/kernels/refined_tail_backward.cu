#include "reduce.h"
#include "refined_backward_tiles.h"
#include "segments.h"

namespace {

constexpr int CLUSTERS = 32, CLUSTER_STRIDE = CLUSTERS + 4;  // query clusters of a tile, and from row to row of tables (KEYS, CLUSTERS)

// Rows of the cells of one key cluster with CLUSTERS query clusters, or of these: 0 for a cluster without queries. Relative to an origin if there is one.
struct ClusterRows {
  static constexpr int MOST_PARTS = FLOAT_PARTS;
  const float* base;
  int64_t stride, D;
  const bool* filled;
  const float* origin;
  CUDA_OPS_DEVICE float at(int c, int64_t d) const { return filled[c] && d < D ? base[c * stride + d] - (origin ? origin[d] : 0) : 0; }
  CUDA_OPS_DEVICE void read_eight(int c, int64_t d, float (&to)[8]) const {
    float from[8];
    ::read_eight(filled[c] ? base + c * stride : nullptr, d, D, to);
    ::read_eight(filled[c] ? origin : nullptr, d, D, from);
    for (int i = 0; i < 8; ++i) to[i] -= from[i];
  }
};

// Of one key cluster: its keys and values, and the cells' numbers and gradients of them.
template <class T>
struct CellTile {
  ScaledRows<T> keys, values;
  ClusterRows cell_keys, cell_values, key_grads, value_grads, means;
  int64_t D, count;  // so many query clusters
};

// float32 by the FMA units: a thread has OWN keys, of two clusters LANES_OF_ROW apart or of two columns side by side.
struct VectorCells {
  static constexpr int BLOCKS = 4;  // for which the registers do
  static constexpr bool RELATIVE = false;
  static constexpr int KEYS = 32, ROWS = OWN, COLUMNS = CLUSTERS / LANES_OF_ROW, PIECE = 32 * PIECE_STRIDE, TABLE = KEYS * CLUSTER_STRIDE / 4;
  static constexpr int QUADS = 6 * PIECE + 3 * TABLE;
  struct Numbers {
    float at[OWN][COLUMNS] = {};
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[r][c]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return own_row() + r; }
  CUDA_OPS_DEVICE static int column(int c) { return own_lane() + c * LANES_OF_ROW; }
  CUDA_OPS_DEVICE static float* table(TileQuad* memory, int which) { return (memory + 6 * PIECE + which * TABLE)->at; }

  // One chain of fused additions in the order of d for each number.
  template <class T>
  CUDA_OPS_DEVICE static void give(const CellTile<T>& tile, TileQuad* memory, Numbers& product, Numbers& square) {
    TileQuad *keys = memory, *values = keys + PIECE, *cell_keys = values + PIECE, *cell_values = cell_keys + PIECE;
    TileQuad *key_grads = cell_values + PIECE, *value_grads = key_grads + PIECE;
    for (int64_t d0 = 0; d0 < tile.D; d0 += PIECE_LENGTH) {
      load_piece(tile.keys, KEYS, d0, keys);
      load_piece(tile.values, KEYS, d0, values);
      load_piece(tile.cell_keys, CLUSTERS, d0, cell_keys);
      load_piece(tile.cell_values, CLUSTERS, d0, cell_values);
      load_piece(tile.key_grads, CLUSTERS, d0, key_grads);
      load_piece(tile.value_grads, CLUSTERS, d0, value_grads);
      device::barrier();
      for (int quad = 0; quad < PIECE_LENGTH / 4; ++quad) {
        TileQuad cell[COLUMNS][4];
        for (int c = 0; c < COLUMNS; ++c) {
          const int at = column(c) * PIECE_STRIDE + quad;
          cell[c][0] = cell_keys[at];
          cell[c][1] = cell_values[at];
          cell[c][2] = key_grads[at];
          cell[c][3] = value_grads[at];
        }
        for (int r = 0; r < OWN; ++r) {
          const TileQuad key = keys[row(r) * PIECE_STRIDE + quad], value = values[row(r) * PIECE_STRIDE + quad];
          for (int c = 0; c < COLUMNS; ++c)
            for (int d = 0; d < 4; ++d) {
              const float away = key.at[d] - cell[c][0].at[d];
              product(r, c) = device::fma(cell[c][2].at[d], away, device::fma(cell[c][3].at[d], value.at[d] - cell[c][1].at[d], product(r, c)));
              square(r, c) = device::fma(away, away, square(r, c));
            }
        }
      }
      device::barrier();
    }
  }

  template <class T, class WriteKey, class WriteValue>
  CUDA_OPS_DEVICE static void add(const CellTile<T>& tile, TileQuad* memory, const WriteKey& write_key, const WriteValue& write_value) {
    const float *weights = table(memory, 0), *scores = table(memory, 1), *spreads = table(memory, 2);
    TileQuad *cell_keys = memory, *means = cell_keys + PIECE, *key_grads = means + PIECE, *value_grads = key_grads + PIECE;
    for (int64_t d0 = 0; d0 < tile.D; d0 += PIECE_LENGTH) {
      load_piece(tile.cell_keys, CLUSTERS, d0, cell_keys);
      load_piece(tile.means, CLUSTERS, d0, means);
      load_piece(tile.key_grads, CLUSTERS, d0, key_grads);
      load_piece(tile.value_grads, CLUSTERS, d0, value_grads);
      device::barrier();
      float by_key[OWN][2] = {}, by_value[OWN][2] = {};
      for (int c0 = 0; c0 < CLUSTERS; c0 += 4) {
        float cell[4][4][2];
        for (int c = 0; c < 4; ++c)
          for (int side = 0; side < 2; ++side) {
            const int at = (c0 + c) * (OWN * PIECE_STRIDE) + own_lane() * 2 + side;
            cell[c][0][side] = key_grads->at[at];
            cell[c][1][side] = cell_keys->at[at];
            cell[c][2][side] = means->at[at];
            cell[c][3][side] = value_grads->at[at];
          }
        for (int r = 0; r < OWN; ++r) {
          const int at = row(r) * CLUSTER_STRIDE + c0;
          const TileQuad weight = four_of(weights + at), score = four_of(scores + at), spread = four_of(spreads + at);
          for (int c = 0; c < 4; ++c)
            for (int side = 0; side < 2; ++side) {
              by_key[r][side] = device::fma(weight.at[c], cell[c][0][side], by_key[r][side]);
              by_key[r][side] = device::fma(-spread.at[c], cell[c][1][side], by_key[r][side]);
              by_key[r][side] = device::fma(score.at[c], cell[c][2][side], by_key[r][side]);
              by_value[r][side] = device::fma(weight.at[c], cell[c][3][side], by_value[r][side]);
            }
        }
      }
      for (int r = 0; r < OWN; ++r)
        for (int side = 0; side < 2; ++side) {
          const int64_t d = d0 + own_lane() * 2 + side;
          if (d >= tile.D) continue;
          write_key(row(r), d, by_key[r][side]);
          write_value(row(r), d, by_value[r][side]);
        }
      device::barrier();
    }
  }

 private:
  CUDA_OPS_DEVICE static TileQuad four_of(const float* numbers) { return *reinterpret_cast<const TileQuad*>(numbers); }
};

// On the tensor cores, where |key - Key|^2 = |key|^2 + |Key|^2 - 2 key . Key, and what a cell gives is a product less that of the cell itself. Keys and values are
// relative to those of one cell, so that little of them cancels out.
template <class T>
struct MatrixCells {
  using Tile = MatrixTile<T, CLUSTERS>;
  using Numbers = typename Tile::Numbers;
  static constexpr int BLOCKS = 3;
  static constexpr bool RELATIVE = true;
  static constexpr int KEYS = TILE, ROWS = Tile::ROWS, COLUMNS = Tile::COLUMNS, TABLE = KEYS * CLUSTER_STRIDE / 4, OWN_PRODUCTS = (KEYS + 2 * CLUSTERS) / 4;
  static constexpr int QUADS = Tile::QUADS + OWN_PRODUCTS;
  static_assert(Tile::THREADS == BLOCK_THREADS && 3 * TABLE <= Tile::QUADS);
  CUDA_OPS_DEVICE static int row(int r) { return Tile::row(r); }
  CUDA_OPS_DEVICE static int column(int c) { return Tile::column(c); }
  // Where rows lie while they are multiplied.
  CUDA_OPS_DEVICE static float* table(TileQuad* memory, int which) { return (memory + which * TABLE)->at; }

  // product = dKeys . (key - Key) + dValues . (value - Value) and square = |key - Key|^2, for each key and cell.
  CUDA_OPS_DEVICE static void give(const CellTile<T>& tile, TileQuad* memory, Numbers& product, Numbers& square) {
    float *key_squares = (memory + Tile::QUADS)->at, *cell_squares = key_squares + KEYS, *cell_products = cell_squares + CLUSTERS;
    multiply_own(tile, key_squares, cell_squares, cell_products);
    Tile::template multiply_parts<2>(tile.keys, tile.key_grads, tile.D, tile.count, memory, product);
    Tile::template multiply_parts<2>(tile.values, tile.value_grads, tile.D, tile.count, memory, product);
    Tile::template multiply_parts<2>(tile.keys, tile.cell_keys, tile.D, tile.count, memory, square);
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) {
        product(r, c) -= cell_products[column(c)];
        square(r, c) = key_squares[row(r)] + cell_squares[column(c)] - 2 * square(r, c);
      }
  }

  // write_key(key, d, sum over the cells of weight dKey + score mean - spread Key) and write_value(key, d, sum of weight dValue), for every d.
  template <class WriteKey, class WriteValue>
  CUDA_OPS_DEVICE static void add(const CellTile<T>& tile, TileQuad* memory, const WriteKey& write_key, const WriteValue& write_value) {
    const typename Tile::Weights weights(fetch(table(memory, 0))), scores(fetch(table(memory, 1))), spreads(fetch(table(memory, 2)));
    device::barrier();
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < tile.D; d0 += TILE) {
      typename MatrixTile<T>::Numbers sum;
      const auto write = [&](const auto& to, int r, int c, float number) {
        const int64_t d = d0 + MatrixTile<T>::column(c);
        if (d < tile.D) to(row(r), d, number);
      };
      Tile::weigh(weights, tile.key_grads, d0, tile.count, memory, [&](int r, int c, float more) { sum(r, c) = more; });
      Tile::weigh(scores, tile.means, d0, tile.count, memory, [&](int r, int c, float more) { sum(r, c) += more; });
      Tile::weigh(spreads, tile.cell_keys, d0, tile.count, memory, [&](int r, int c, float less) { write(write_key, r, c, sum(r, c) - less); });
      Tile::weigh(weights, tile.value_grads, d0, tile.count, memory, [&](int r, int c, float number) { write(write_value, r, c, number); });
    }
  }

 private:
  // |key|^2 of every key, |Key|^2 and dKeys . Key + dValues . Value of every cell, a warp for each.
  CUDA_OPS_DEVICE static void multiply_own(const CellTile<T>& tile, float* key_squares, float* cell_squares, float* cell_products) {
    const int lane = device::thread() % WARP;
    for (int i = device::thread() / WARP; i < KEYS + CLUSTERS; i += BLOCK_THREADS / WARP) {
      const int c = i - KEYS;
      float square = 0, product = 0;
      for (int64_t d = lane; d < tile.D; d += WARP) {
        const float key = c < 0 ? tile.keys.at(i, d) : tile.cell_keys.at(c, d);
        square = device::fma(key, key, square);
        if (c >= 0) product = device::fma(tile.key_grads.at(c, d), key, device::fma(tile.value_grads.at(c, d), tile.cell_values.at(c, d), product));
      }
      square = warp_sum(square);
      product = warp_sum(product);
      if (lane) continue;
      (c < 0 ? key_squares[i] : cell_squares[c]) = square;
      if (c >= 0) cell_products[c] = product;
    }
  }
  CUDA_OPS_DEVICE static Numbers fetch(const float* table) {
    Numbers numbers;
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) numbers(r, c) = table[row(r) * CLUSTER_STRIDE + column(c)];
    return numbers;
  }
};

template <class T>
using CellsOf = std::conditional_t<sizeof(T) == 2, MatrixCells<T>, VectorCells>;

// Adds to the gradients of the scores what the band counted twice. The threads of a key have the clusters of one remainder each, in the order of the queries.
template <int KEYS>
CUDA_OPS_DEVICE void add_band_scores(const RefinedBackward& p, const Cluster& own, int64_t c0, const int32_t* key, float* scores) {
  constexpr int SHARED = BLOCK_THREADS / KEYS;
  const int r = device::thread() / SHARED, part = device::thread() % SHARED;
  const int64_t j = key[r], N = p.in.shape.N;
  if (j < 0 || !p.width) return;
  for (int64_t i = j < p.W ? 0 : j - p.W; i <= j + p.W && i < own.n; ++i) {
    const int64_t c = p.query_clusters[own.head * N + position_of(p.in.tokens, own.b, i)] - c0;
    if (c < 0 || c >= CLUSTERS || c + c0 >= own.clusters || c % SHARED != part) continue;
    scores[r * CLUSTER_STRIDE + c] += p.band_scores[(own.head * N + i) * p.width + j - i + p.W];
  }
}

// A block has KEYS keys of one key cluster of a head and goes through the query clusters in their order, CLUSTERS at a time.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(BLOCK_THREADS, CellsOf<T>::BLOCKS) key_segment(RefinedRows<T> rows, RefinedBackward p, int64_t segments) {
  using Cells = CellsOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Cells::QUADS);
  CUDA_OPS_SHARED(int32_t, key, Cells::KEYS);
  CUDA_OPS_SHARED(int32_t, position, Cells::KEYS);
  CUDA_OPS_SHARED(float, towards, Cells::KEYS);  // what multiplies the keys themselves
  CUDA_OPS_SHARED(bool, filled, CLUSTERS);
  const int64_t head = device::block() / segments, C = p.budgets.C, M = p.budgets.M, K = p.budgets.K, N = p.in.shape.N, D = p.in.shape.D;
  const Cluster own = cluster_of(p, head, 0);
  const int32_t *first_of = p.keys.first + head * (M + 1), *queries_of = p.queries.first + head * (C + 1);
  const Segment segment = find_segment(first_of, int(own.cells), Cells::KEYS, int(device::block() % segments));
  if (segment.cluster < 0) return;
  const int64_t m = segment.cluster, begin = first_of[m] + segment.rank, count = first_of[m + 1] - begin, key_head = own.h / p.in.shape.group;
  const int t = device::thread();
  if (t < Cells::KEYS) {
    key[t] = t < count ? p.keys.order[head * N + begin + t] : -1;
    position[t] = t < count ? int32_t(position_of(p.in.tokens, own.b, key[t])) : -1;
    towards[t] = 0;
  }
  int64_t origin = 0;  // the first cluster with queries
  while (origin < own.clusters && queries_of[origin + 1] == queries_of[origin]) ++origin;
  const bool relative = Cells::RELATIVE && origin < own.clusters;
  const int64_t origin_cell = ((head * C + origin) * M + m) * D;
  const float *key_origin = relative ? p.cells.keys + origin_cell : nullptr, *value_origin = relative ? p.cells.values + origin_cell : nullptr;
  const ScaledRows<T> key_rows{{rows.k, own.b, key_head, D, position}, 1, key_origin}, value_rows{{rows.v, own.b, key_head, D, position}, 1, value_origin};
  float *weights = Cells::table(memory, 0), *scores = Cells::table(memory, 1), *spreads = Cells::table(memory, 2);
  for (int64_t c0 = 0; c0 < own.clusters; c0 += CLUSTERS) {
    if (t < CLUSTERS) filled[t] = c0 + t < own.clusters && queries_of[c0 + t + 1] > queries_of[c0 + t];
    device::barrier();
    const int64_t first_row = head * C + c0;
    const auto cell_rows = [&](const float* x, const float* from) { return ClusterRows{x + (first_row * M + m) * D, M * D, D, filled, from}; };
    const CellTile<T> tile{key_rows,
                           value_rows,
                           cell_rows(p.cells.keys, key_origin),
                           cell_rows(p.cells.values, value_origin),
                           cell_rows(p.cell_grads.keys, nullptr),
                           cell_rows(p.cell_grads.values, nullptr),
                           ClusterRows{p.means + first_row * D, D, D, filled, nullptr},
                           D,
                           smaller<int64_t>(CLUSTERS, own.clusters - c0)};
    typename Cells::Numbers product, square;
    Cells::give(tile, memory, product, square);
    CUDA_OPS_UNROLL(Cells::COLUMNS)
    for (int c = 0; c < Cells::COLUMNS; ++c) {
      const int column = Cells::column(c);
      const int64_t row = first_row + column, cell = row * M + m;
      const float log_mass = filled[column] ? p.cells.log_mass[cell] : 0, by_mass = filled[column] ? p.cell_grads.log_mass[cell] : 0;
      const float spread = filled[column] ? p.cells.spread[cell] : 0, by_spread = filled[column] ? p.cell_grads.spread[cell] : 0;
      CUDA_OPS_UNROLL(Cells::ROWS)
      for (int r = 0; r < Cells::ROWS; ++r) {
        const int64_t j = position[Cells::row(r)];
        const bool here = j >= 0 && filled[column] && !holds(p.top_keys + row * K, K, j);
        const float weight = here ? device::exponential(p.scores[row * N + j] - log_mass) : 0;
        const float away = square(r, c) / float(D) - spread;
        const int at = Cells::row(r) * CLUSTER_STRIDE + column;
        weights[at] = weight;
        scores[at] = here ? weight * (by_mass + product(r, c) + by_spread * away) : 0;
        spreads[at] = here ? 2 * weight * by_spread / float(D) : 0;
      }
    }
    device::barrier();
    add_band_scores<Cells::KEYS>(p, own, c0, key, scores);
    for (int c = 0; c < CLUSTERS && t < Cells::KEYS; ++c) towards[t] += spreads[t * CLUSTER_STRIDE + c];
    device::barrier();
    for (int e = t; e < Cells::KEYS * CLUSTERS; e += BLOCK_THREADS) {
      const int r = e % Cells::KEYS, c = e / Cells::KEYS;
      if (position[r] >= 0 && c0 + c < own.clusters) p.scores[(first_row + c) * N + position[r]] = scores[r * CLUSTER_STRIDE + c];
    }
    const auto add_to = [&](float* grads) {
      return [=](int r, int64_t d, float sum) {
        if (key[r] < 0) return;
        float& number = grads[(head * N + key[r]) * D + d];
        number = c0 == 0 ? sum : number + sum;
      };
    };
    Cells::add(tile, memory, add_to(p.key_grads), add_to(p.value_grads));
  }
  for (int r = t / WARP; r < Cells::KEYS && key[r] >= 0; r += BLOCK_THREADS / WARP)
    for (int64_t d = t % WARP; d < D; d += WARP) p.key_grads[(head * N + key[r]) * D + d] += towards[r] * key_rows.at(r, d);
}

}  // namespace

namespace cuda_ops::launch {

void refined_tail_backward(const RefinedBackward& p, Stream stream) {
  const int64_t heads = p.in.shape.B * p.in.shape.H;
  if (!heads || !p.in.shape.N) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    const int64_t segments = tiles_of(p.in.shape.N, p.budgets.M, CellsOf<T>::KEYS);
    CUDA_OPS_LAUNCH(key_segment<T>, heads * segments, BLOCK_THREADS, stream, RefinedRows<T>(p), p, segments);
  });
}

}  // namespace cuda_ops::launch
