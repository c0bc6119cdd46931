#include "refined_backward_tiles.h"
#include "segments.h"

namespace {

// Keys of one key cluster in a tile, and query clusters: a thread has OWN keys, of CLUSTERS / LANES_OF_ROW clusters or of two columns.
constexpr int OWN_KEYS = 32, CLUSTERS = 32, OWN_CLUSTERS = CLUSTERS / LANES_OF_ROW, CLUSTER_STRIDE = CLUSTERS + 4;

// The cells of one key cluster with the query clusters from c0 on.
struct CellTile {
  int64_t row, m, c0;
  const bool* filled;  // whether there are queries in the cluster
};
// The numbers of these cells, (C, M, D) for a head, or with `stride` D of their query clusters.
CUDA_OPS_DEVICE void load_cells(const float* from, int64_t stride, const CellTile& tile, int64_t d0, int64_t D, TileQuad* piece) {
  const int lane = device::thread() % COLUMNS;
  const bool inside = d0 + lane < D;
  CUDA_OPS_UNROLL(4)
  for (int c = device::thread() / COLUMNS; c < CLUSTERS; c += BLOCK_THREADS / COLUMNS)
    piece->at[c * (4 * STRIDE) + lane] = tile.filled[c] && inside ? from[c * stride + d0 + lane] : 0;
}

// What a cell gives to one of its keys, and the key's distance.
struct Given {
  float product, square;
};

// Adds a piece of dKeys . (key - Key) + dValues . (value - Value), and of |key - Key|^2.
CUDA_OPS_DEVICE void add_given(const TileQuad* keys, const TileQuad* values, const TileQuad* cell_keys, const TileQuad* cell_values, const TileQuad* key_grads, const TileQuad* value_grads,
                               Given (&given)[OWN][OWN_CLUSTERS]) {
  for (int quad = 0; quad < COLUMNS / 4; ++quad) {
    TileQuad cell[OWN_CLUSTERS][4];
    for (int c = 0; c < OWN_CLUSTERS; ++c) {
      const int at = (own_lane() + c * LANES_OF_ROW) * STRIDE + quad;
      cell[c][0] = cell_keys[at];
      cell[c][1] = cell_values[at];
      cell[c][2] = key_grads[at];
      cell[c][3] = value_grads[at];
    }
    for (int r = 0; r < OWN; ++r) {
      const TileQuad key = keys[(own_row() + r) * STRIDE + quad], value = values[(own_row() + r) * STRIDE + quad];
      for (int c = 0; c < OWN_CLUSTERS; ++c)
        for (int d = 0; d < 4; ++d) {
          const float away = key.at[d] - cell[c][0].at[d];
          given[r][c].product = device::fma(cell[c][2].at[d], away, device::fma(cell[c][3].at[d], value.at[d] - cell[c][1].at[d], given[r][c].product));
          given[r][c].square = device::fma(away, away, given[r][c].square);
        }
    }
  }
}

// Adds to the gradients of the keys and values what the cells give. `towards` gets the sum of what multiplies the keys themselves.
struct Coefficients {
  const TileQuad *weights, *scores, *spreads;  // (OWN_KEYS, CLUSTER_STRIDE)
};
struct CellPieces {
  const TileQuad *keys, *means, *key_grads, *value_grads;
};
CUDA_OPS_DEVICE void add_cells(const Coefficients& of, const CellPieces& cells, bool sums_up, float (&by_key)[OWN][2], float (&by_value)[OWN][2],
                               float (&towards)[OWN]) {
  for (int quad = 0; quad < CLUSTERS / 4; ++quad) {
    float cell[4][4][2];
    for (int c = 0; c < 4; ++c)
      for (int side = 0; side < 2; ++side) {
        const int at = (quad * 4 + c) * (4 * STRIDE) + own_lane() * 2 + side;
        cell[c][0][side] = cells.key_grads->at[at];
        cell[c][1][side] = cells.keys->at[at];
        cell[c][2][side] = cells.means->at[at];
        cell[c][3][side] = cells.value_grads->at[at];
      }
    for (int r = 0; r < OWN; ++r) {
      const int at = (own_row() + r) * (CLUSTER_STRIDE / 4) + quad;
      const TileQuad weight = of.weights[at], score = of.scores[at], spread = of.spreads[at];
      for (int c = 0; c < 4; ++c) {
        for (int side = 0; side < 2; ++side) {
          by_key[r][side] = device::fma(weight.at[c], cell[c][0][side], by_key[r][side]);
          by_key[r][side] = device::fma(-spread.at[c], cell[c][1][side], by_key[r][side]);
          by_key[r][side] = device::fma(score.at[c], cell[c][2][side], by_key[r][side]);
          by_value[r][side] = device::fma(weight.at[c], cell[c][3][side], by_value[r][side]);
        }
        if (sums_up) towards[r] += spread.at[c];
      }
    }
  }
}

// Adds to the gradients of the scores what the band counted twice. Four threads have a key, each the clusters of one remainder, in the order of the queries.
CUDA_OPS_DEVICE void add_band_scores(const RefinedBackward& p, const Cluster& own, int64_t c0, const int32_t* key, float* scores) {
  const int r = device::thread() / OWN, part = device::thread() % OWN;
  const int64_t j = key[r], N = p.in.shape.N;
  if (j < 0 || !p.width) return;
  for (int64_t i = j < p.W ? 0 : j - p.W; i <= j + p.W && i < own.n; ++i) {
    const int64_t c = p.query_clusters[own.head * N + position_of(p.in.tokens, own.b, i)] - c0;
    if (c < 0 || c >= CLUSTERS || c + c0 >= own.clusters || c % OWN != part) continue;
    scores[r * CLUSTER_STRIDE + c] += p.band_scores[(own.head * N + i) * p.width + j - i + p.W];
  }
}

// A block has OWN_KEYS keys of one key cluster of a head and goes through the query clusters in their order, CLUSTERS at a time.
template <class T>
CUDA_OPS_KERNEL key_segment(RefinedRows<T> rows, RefinedBackward p, int64_t segments) {
  CUDA_OPS_SHARED(TileQuad, k, OWN_KEYS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, v, OWN_KEYS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, cell_keys, CLUSTERS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, cell_values, CLUSTERS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, key_grads, CLUSTERS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, value_grads, CLUSTERS * STRIDE);
  CUDA_OPS_SHARED(TileQuad, weights, OWN_KEYS * CLUSTER_STRIDE / 4);
  CUDA_OPS_SHARED(TileQuad, scores, OWN_KEYS * CLUSTER_STRIDE / 4);
  CUDA_OPS_SHARED(TileQuad, spreads, OWN_KEYS * CLUSTER_STRIDE / 4);
  CUDA_OPS_SHARED(int32_t, key, OWN_KEYS);
  CUDA_OPS_SHARED(int32_t, position, OWN_KEYS);
  CUDA_OPS_SHARED(bool, filled, CLUSTERS);
  const int64_t head = device::block() / segments, C = p.budgets.C, M = p.budgets.M, K = p.budgets.K, N = p.in.shape.N, D = p.in.shape.D;
  const Cluster own = cluster_of(p, head, 0);
  const int32_t *first_of = p.keys.first + head * (M + 1), *queries_of = p.queries.first + head * (C + 1);
  const Segment segment = find_segment(first_of, int(own.cells), OWN_KEYS, int(device::block() % segments));
  if (segment.cluster < 0) return;
  const int64_t m = segment.cluster, begin = first_of[m] + segment.rank, count = first_of[m + 1] - begin, key_head = own.h / p.in.shape.group;
  const int t = device::thread();
  if (t < OWN_KEYS) {
    key[t] = t < count ? p.keys.order[head * N + begin + t] : -1;
    position[t] = t < count ? int32_t(position_of(p.in.tokens, own.b, key[t])) : -1;
  }
  const TileRows<T> key_rows{rows.k, own.b, key_head, D, position}, value_rows{rows.v, own.b, key_head, D, position};
  float towards[OWN] = {};  // what multiplies the keys themselves
  for (int64_t c0 = 0; c0 < own.clusters; c0 += CLUSTERS) {
    if (t < CLUSTERS) filled[t] = c0 + t < own.clusters && queries_of[c0 + t + 1] > queries_of[c0 + t];
    device::barrier();
    const CellTile tile{head * C + c0, m, c0, filled};
    const int64_t first = (tile.row * M + m) * D;
    Given given[OWN][OWN_CLUSTERS] = {};
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      load_piece(key_rows, OWN_KEYS, d0, k);
      load_piece(value_rows, OWN_KEYS, d0, v);
      load_cells(p.cells.keys + first, M * D, tile, d0, D, cell_keys);
      load_cells(p.cells.values + first, M * D, tile, d0, D, cell_values);
      load_cells(p.cell_grads.keys + first, M * D, tile, d0, D, key_grads);
      load_cells(p.cell_grads.values + first, M * D, tile, d0, D, value_grads);
      device::barrier();
      add_given(k, v, cell_keys, cell_values, key_grads, value_grads, given);
      device::barrier();
    }
    CUDA_OPS_UNROLL(OWN_CLUSTERS)
    for (int c = 0; c < OWN_CLUSTERS; ++c) {
      const int column = own_lane() + c * LANES_OF_ROW;
      const int64_t row = tile.row + column, cell = row * M + m;
      const float log_mass = filled[column] ? p.cells.log_mass[cell] : 0, by_mass = filled[column] ? p.cell_grads.log_mass[cell] : 0;
      const float spread = filled[column] ? p.cells.spread[cell] : 0, by_spread = filled[column] ? p.cell_grads.spread[cell] : 0;
      CUDA_OPS_UNROLL(OWN)
      for (int r = 0; r < OWN; ++r) {
        const int64_t j = position[own_row() + r];
        const bool here = j >= 0 && filled[column] && !holds(p.top_keys + row * K, K, j);
        const float weight = here ? device::exponential(p.scores[row * N + j] - log_mass) : 0;
        const float away = given[r][c].square / float(D) - spread;
        const int at = (own_row() + r) * CLUSTER_STRIDE + column;
        weights->at[at] = weight;
        scores->at[at] = here ? weight * (by_mass + given[r][c].product + by_spread * away) : 0;
        spreads->at[at] = here ? 2 * weight * by_spread / float(D) : 0;
      }
    }
    device::barrier();
    add_band_scores(p, own, c0, key, scores->at);
    device::barrier();
    for (int e = t; e < OWN_KEYS * CLUSTERS; e += BLOCK_THREADS) {
      const int r = e % OWN_KEYS, c = e / OWN_KEYS;
      if (position[r] >= 0 && c0 + c < own.clusters) p.scores[(tile.row + c) * N + position[r]] = scores->at[r * CLUSTER_STRIDE + c];
    }
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      load_cells(p.cells.keys + first, M * D, tile, d0, D, cell_keys);
      load_cells(p.means + tile.row * D, D, tile, d0, D, cell_values);
      load_cells(p.cell_grads.keys + first, M * D, tile, d0, D, key_grads);
      load_cells(p.cell_grads.values + first, M * D, tile, d0, D, value_grads);
      device::barrier();
      float by_key[OWN][2] = {}, by_value[OWN][2] = {};
      add_cells({weights, scores, spreads}, {cell_keys, cell_values, key_grads, value_grads}, d0 == 0, by_key, by_value, towards);
      for (int r = 0; r < OWN; ++r)
        for (int side = 0; side < 2; ++side) {
          const int64_t d = d0 + own_lane() * 2 + side;
          if (key[own_row() + r] < 0 || d >= D) continue;
          const int64_t at = (head * N + key[own_row() + r]) * D + d;
          p.key_grads[at] = c0 == 0 ? by_key[r][side] : p.key_grads[at] + by_key[r][side];
          p.value_grads[at] = c0 == 0 ? by_value[r][side] : p.value_grads[at] + by_value[r][side];
        }
      device::barrier();
    }
  }
  for (int64_t d0 = own_lane() * 2; d0 < D; d0 += COLUMNS) {
    CUDA_OPS_UNROLL(OWN)
    for (int r = 0; r < OWN; ++r)
      for (int64_t d = d0; d < D && d < d0 + 2 && key[own_row() + r] >= 0; ++d)
        p.key_grads[(head * N + key[own_row() + r]) * D + d] += towards[r] * rows.k.at(own.b, key_head, position[own_row() + r], d);
  }
}

}  // namespace

namespace cuda_ops::launch {

void refined_tail_backward(const RefinedBackward& p, Stream stream) {
  const int64_t segments = tiles_of(p.in.shape.N, p.budgets.M, OWN_KEYS), blocks = p.in.shape.B * p.in.shape.H * segments;
  if (!blocks) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    CUDA_OPS_LAUNCH(key_segment<T>, blocks, BLOCK_THREADS, stream, RefinedRows<T>(p), p, segments);
  });
}

}  // namespace cuda_ops::launch
