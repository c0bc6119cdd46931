#include "refined_backward_tiles.h"
#include "segments.h"

namespace {

// A softmax on its way: the largest logit, the sum of e^(logit - largest), and the same sum times gradient . value.
struct Running {
  float largest, total, output;
};
CUDA_OPS_DEVICE void include(Running& sum, float logit, float along_g) {
  if (logit == -infinity()) return;
  if (logit > sum.largest) {
    const float rescale = device::exponential(sum.largest - logit);
    sum = {logit, sum.total * rescale, sum.output * rescale};
  }
  const float weight = device::exponential(logit - sum.largest);
  sum.total += weight;
  sum.output = device::fma(weight, along_g, sum.output);
}
// The same bits whichever comes first.
CUDA_OPS_DEVICE Running both(const Running& x, const Running& y) {
  const float largest = larger(x.largest, y.largest);
  const float left = x.largest == largest ? 1 : device::exponential(x.largest - largest);
  const float right = y.largest == largest ? 1 : device::exponential(y.largest - largest);
  return {largest, x.total * left + y.total * right, x.output * left + y.output * right};
}

// |delta|^2 / 2 of each query, a warp for each.
template <class T>
CUDA_OPS_DEVICE void measure_away(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < QUERIES; r += TILE_THREADS / WARP) {
    float sum = 0;
    for (int64_t d = lane; d < p.in.shape.D && tile.position[r] >= 0; d += WARP) {
      const float away = rows.q.at(own.b, own.h, tile.position[r], d) * p.in.scale - p.means[own.row * p.in.shape.D + d];
      sum = device::fma(away, away, sum);
    }
    for (int lanes = WARP / 2; lanes; lanes /= 2) sum += device::shuffle_xor(sum, lanes);
    if (lane == 0) tile.totals[r].half = sum / 2;
  }
}

// With what each query brings to the cells of the tile in `shifts`: logits of the band keys that these cells counted.
CUDA_OPS_DEVICE void score_band(const RefinedBackward& p, const Cluster& own, int64_t first, const TileMemory& tile, const float* shifts) {
  const int r = device::thread() / OWN;
  const int64_t i = tile.query[r], N = p.in.shape.N;
  if (i < 0) return;
  for (int64_t w = (device::thread() % OWN + p.W) % OWN; w < p.width; w += OWN) {
    const int64_t j = i + w - p.W, at = (own.head * N + i) * p.width + w;
    if (j < 0 || j >= own.n || p.band_keys[at] == -infinity()) continue;
    const int64_t position = position_of(p.in.tokens, own.b, j), m = p.key_clusters[own.head * N + position] - first;
    if (m >= 0 && m < SLOTS && m + first < own.cells) p.band_scores[at] = p.scores[own.row * N + position] + shifts[r * (4 * SLOT_STRIDE) + m];
  }
}

// Completes the totals with the band and turns its logits into coefficients. Four threads have a query, each the offsets of one remainder: whatever W is.
CUDA_OPS_DEVICE void finish_band(const RefinedBackward& p, const Cluster& own, const TileMemory& tile, const Running* sums) {
  const int r = device::thread() / OWN;
  const int64_t i = tile.query[r], begin = (device::thread() % OWN + p.W) % OWN, end = i < 0 ? 0 : p.width, at = (own.head * p.in.shape.N + i) * p.width;
  float largest = sums[r].largest, total = 0, output = 0;
  for (int64_t w = begin; w < end; w += OWN) largest = larger(p.band_keys[at + w], largest);
  for (int lanes = OWN / 2; lanes; lanes /= 2) largest = larger(device::shuffle_xor(largest, lanes), largest);
  if (largest == -infinity()) largest = 0;
  for (int64_t w = begin; w < end; w += OWN) {
    if (p.band_keys[at + w] == -infinity()) continue;
    const float weight = device::exponential(p.band_keys[at + w] - largest) - device::exponential(p.band_scores[at + w] - largest);
    total += weight;
    output = device::fma(weight, p.band_values[at + w], output);
  }
  for (int lanes = OWN / 2; lanes; lanes /= 2) {
    total += device::shuffle_xor(total, lanes);
    output += device::shuffle_xor(output, lanes);
  }
  const float rescale = sums[r].largest == largest ? 1 : device::exponential(sums[r].largest - largest);
  total = device::fma(sums[r].total, rescale, total);
  output = device::fma(sums[r].output, rescale, output);
  const float inverse = total == 0 ? 0 : 1 / total;
  output *= inverse;
  for (int64_t w = begin; w < end; w += OWN) {
    const bool present = p.band_keys[at + w] != -infinity();
    const float exact = present ? device::exponential(p.band_keys[at + w] - largest) * inverse : 0;
    const float counted = present ? device::exponential(p.band_scores[at + w] - largest) * inverse : 0, beyond = p.band_values[at + w] - output;
    p.band_keys[at + w] = present ? exact * beyond : 0;
    p.band_values[at + w] = exact - counted;
    p.band_scores[at + w] = present ? -counted * beyond : 0;
  }
  if (device::thread() % OWN == 0) {
    tile.totals[r].largest = largest;
    tile.totals[r].inverse = inverse;
    tile.totals[r].output = output;
  }
}

// query_grads = or += values (QUERIES, slots) . keys (slots, D): those of the tile, or cells from `first` on.
template <class T>
CUDA_OPS_DEVICE void add_to_queries(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, bool cells, int64_t first, bool fresh,
                                    const TileMemory& tile, const Quad* values) {
  const int64_t D = p.in.shape.D;
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    if (cells) load_floats(p.cells.keys + (own.row * p.budgets.M + first) * D, D, own.cells - first, SLOTS, d0, D, tile.k);
    else load_rows(rows.k, own.b, own.h / p.in.shape.group, tile.slot, SLOTS, d0, D, 1, nullptr, tile.k);
    device::barrier();
    float sum[OWN][2] = {};
    const float* keys = tile.k->at + own_lane() * 2;
    CUDA_OPS_UNROLL(2)
    for (int quad = 0; quad < SLOTS / 4; ++quad) {
      float key[4][2];
      for (int s = 0; s < 4; ++s)
        for (int side = 0; side < 2; ++side) key[s][side] = keys[(quad * 4 + s) * (4 * STRIDE) + side];
      for (int r = 0; r < OWN; ++r) {
        const Quad value = values[(own_row() + r) * SLOT_STRIDE + quad];
        for (int s = 0; s < 4; ++s)
          for (int side = 0; side < 2; ++side) sum[r][side] = device::fma(value.at[s], key[s][side], sum[r][side]);
      }
    }
    for (int r = 0; r < OWN; ++r)
      for (int side = 0; side < 2; ++side) {
        const int64_t i = tile.query[own_row() + r], d = d0 + own_lane() * 2 + side;
        if (i < 0 || d >= D) continue;
        float& to = p.query_grads[(own.head * p.in.shape.N + i) * D + d];
        to = fresh ? sum[r][side] : to + sum[r][side];
      }
    device::barrier();
  }
}

// Adds second * delta and the band's keys.
template <class T>
CUDA_OPS_DEVICE void finish_queries(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  const int64_t N = p.in.shape.N, D = p.in.shape.D;
  for (int r = device::thread() / WARP; r < QUERIES; r += TILE_THREADS / WARP) {
    const int64_t i = tile.query[r];
    if (i < 0) continue;
    const float* band = p.band_keys + (own.head * N + i) * p.width;
    const int64_t begin = i < p.W ? p.W - i : 0, end = smaller(p.width, own.n - i + p.W);
    for (int64_t d = device::thread() % WARP; d < D; d += WARP) {
      const float away = rows.q.at(own.b, own.h, tile.position[r], d) * p.in.scale - p.means[own.row * D + d];
      float sum = p.query_grads[(own.head * N + i) * D + d] + tile.totals[r].second * away;
      for (int64_t w = begin; w < end; ++w)
        sum = device::fma(band[w], rows.k.at(own.b, own.h / p.in.shape.group, position_of(p.in.tokens, own.b, i + w - p.W), d), sum);
      p.query_grads[(own.head * N + i) * D + d] = sum;
    }
  }
}

// The tiles of a cluster: the exact keys, then the cells.
struct Tiles {
  int64_t exact, all;
  CUDA_OPS_DEVICE bool cells(int64_t n) const { return n >= exact; }
  CUDA_OPS_DEVICE int64_t first(int64_t n) const { return (n >= exact ? n - exact : n) * SLOTS; }
};

// Largest logit, mass and output of every query, without the band; what the cells counted of the band is left there.
template <class T>
CUDA_OPS_DEVICE void sum_tiles(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const Tiles& tiles, const TileMemory& tile, float* shifts,
                               Running* sums) {
  float along_x[OWN][OWN], along_g[OWN][OWN];
  Running sum[OWN];
  for (int r = 0; r < OWN; ++r) sum[r] = {-infinity(), 0, 0};
  for (int64_t n = 0; n < tiles.all; ++n) {
    const bool cells = tiles.cells(n);
    const int64_t first = tiles.first(n);
    if (!cells) list_slots(p, own, first, tile);
    device::barrier();
    tile_products(rows, p, own, cells, first, tile, along_x, along_g);
    for (int s = 0; s < OWN; ++s) {
      const int column = own_lane() + s * LANES;
      const Slot slot = slot_at(p, own, cells, first, tile, column);
      for (int r = 0; r < OWN; ++r) {
        const float shift = shift_of(along_x[r][s], tile.totals[own_row() + r].half, slot.spread);
        if (slot.here) include(sum[r], slot.log_mass + shift, along_g[r][s]);
        shifts[(own_row() + r) * (4 * SLOT_STRIDE) + column] = shift;
      }
    }
    device::barrier();
    if (cells) score_band(p, own, first, tile, shifts);
  }
  for (int r = 0; r < OWN; ++r) {
    for (int lanes = LANES / 2; lanes; lanes /= 2)
      sum[r] = both(sum[r], {device::shuffle_xor(sum[r].largest, lanes), device::shuffle_xor(sum[r].total, lanes), device::shuffle_xor(sum[r].output, lanes)});
    if (own_lane() == 0) sums[own_row() + r] = sum[r];
  }
  device::barrier();
}

// The gradients of every query's logits, with them those of the query; returns a part of what multiplies delta, for query t / OWN.
template <class T>
CUDA_OPS_DEVICE float add_tiles(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const Tiles& tiles, const TileMemory& tile, Quad* values) {
  float along_x[OWN][OWN], along_g[OWN][OWN], second = 0;
  for (int64_t n = 0; n < tiles.all; ++n) {
    const bool cells = tiles.cells(n);
    const int64_t first = tiles.first(n);
    if (!cells) list_slots(p, own, first, tile);
    device::barrier();
    tile_products(rows, p, own, cells, first, tile, along_x, along_g);
    for (int s = 0; s < OWN; ++s) {
      const int column = own_lane() + s * LANES;
      const Slot slot = slot_at(p, own, cells, first, tile, column);
      for (int r = 0; r < OWN; ++r) {
        const QueryTotals& total = tile.totals[own_row() + r];
        values->at[(own_row() + r) * (4 * SLOT_STRIDE) + column] = slot.here ? weight_of(slot, along_x[r][s], total) * (along_g[r][s] - total.output) : 0;
      }
    }
    device::barrier();
    if (cells) {
      add_counted_twice(p, own, first, tile, values->at);
      const int r = device::thread() / OWN;
      for (int64_t m = device::thread() % OWN; m < SLOTS && first + m < own.cells; m += OWN) {
        const float spread = p.cells.spread[own.row * p.budgets.M + first + m];
        if (!capped(tile.totals[r].half, spread)) second = device::fma(values->at[r * (4 * SLOT_STRIDE) + m], spread, second);
      }
    }
    device::barrier();
    add_to_queries(rows, p, own, cells, first, n == 0, tile, values);
  }
  return second;
}

// A block has QUERIES members of one cluster and goes through the exact keys and the cells twice, SLOTS at a time: for the totals, and with them for the gradients.
// The bound leaves registers for two blocks: for three of them some architectures would spill.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(2 * TILE_THREADS) query_gradients(RefinedRows<T> rows, RefinedBackward p, int64_t segments) {
  CUDA_OPS_SHARED(Quad, x, QUERIES * STRIDE);
  CUDA_OPS_SHARED(Quad, g, QUERIES * STRIDE);
  CUDA_OPS_SHARED(Quad, k, SLOTS * STRIDE);
  CUDA_OPS_SHARED(Quad, v, SLOTS * STRIDE);
  CUDA_OPS_SHARED(Quad, values, QUERIES * SLOT_STRIDE);
  CUDA_OPS_SHARED(int32_t, query, QUERIES);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(int32_t, slot, SLOTS);
  CUDA_OPS_SHARED(QueryTotals, totals, QUERIES);
  CUDA_OPS_SHARED(Running, sums, QUERIES);
  const int64_t head = device::block() / segments;
  const int32_t* first_of = p.queries.first + head * (p.budgets.C + 1);
  const Segment segment = find_segment(first_of, int(cluster_of(p, head, 0).clusters), QUERIES, int(device::block() % segments));
  if (segment.cluster < 0) return;
  const Cluster own = cluster_of(p, head, segment.cluster);
  const TileMemory tile{x, g, k, v, query, position, slot, totals};
  const int64_t member = first_of[own.c] + segment.rank, exact_tiles = (p.budgets.K + SLOTS - 1) / SLOTS;
  const Tiles tiles{exact_tiles, exact_tiles + (own.cells + SLOTS - 1) / SLOTS};
  const int t = device::thread();
  list_queries(p, own, p.queries.order + head * p.in.shape.N + member, first_of[own.c + 1] - member, tile);
  device::barrier();
  measure_away(rows, p, own, tile);
  device::barrier();
  sum_tiles(rows, p, own, tiles, tile, values->at, sums);
  finish_band(p, own, tile, sums);
  device::barrier();
  float second = add_tiles(rows, p, own, tiles, tile, values);
  for (int lanes = OWN / 2; lanes; lanes /= 2) second += device::shuffle_xor(second, lanes);
  if (t % OWN == 0) tile.totals[t / OWN].second = second;
  device::barrier();
  if (t < QUERIES && tile.query[t] >= 0) p.totals[head * p.in.shape.N + tile.query[t]] = tile.totals[t];
  finish_queries(rows, p, own, tile);
}

}  // namespace

namespace cuda_ops::launch {

void refined_queries_backward(const RefinedBackward& p, Stream stream) {
  const int64_t segments = tiles_of(p.in.shape.N, p.budgets.C, QUERIES), blocks = p.in.shape.B * p.in.shape.H * segments;
  if (!blocks) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    CUDA_OPS_LAUNCH(query_gradients<T>, blocks, TILE_THREADS, stream, RefinedRows<T>(p), p, segments);
  });
}

}  // namespace cuda_ops::launch
