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
template <class Tile, class T>
CUDA_OPS_DEVICE void measure_away(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < Tile::QUERIES; r += BLOCK_THREADS / WARP) {
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
template <class Tile>
CUDA_OPS_DEVICE void score_band(const RefinedBackward& p, const Cluster& own, const SlotTile& slots, const TileMemory& tile, const float* shifts) {
  const int r = device::thread() / SHARERS<Tile>;
  const int64_t i = tile.query[r], N = p.in.shape.N;
  if (i < 0) return;
  for (int64_t w = (device::thread() % SHARERS<Tile> + p.W) % SHARERS<Tile>; w < p.width; w += SHARERS<Tile>) {
    const int64_t j = i + w - p.W, at = (own.head * N + i) * p.width + w;
    if (j < 0 || j >= own.n || p.band_keys[at] == -infinity()) continue;
    const int64_t position = position_of(p.in.tokens, own.b, j), m = p.key_clusters[own.head * N + position] - slots.first;
    if (m >= 0 && m < slots.count) p.band_scores[at] = p.scores[own.row * N + position] + shifts[r * TILE_STRIDE + m];
  }
}

// Completes the totals with the band and turns its logits into coefficients. The sharers of a query have the offsets of one remainder each: whatever W is.
template <class Tile>
CUDA_OPS_DEVICE void finish_band(const RefinedBackward& p, const Cluster& own, const TileMemory& tile, const Running* sums) {
  constexpr int SHARED = SHARERS<Tile>;
  const int r = device::thread() / SHARED;
  const int64_t i = tile.query[r], begin = (device::thread() % SHARED + p.W) % SHARED, end = i < 0 ? 0 : p.width, at = (own.head * p.in.shape.N + i) * p.width;
  float largest = sums[r].largest, total = 0, output = 0;
  for (int64_t w = begin; w < end; w += SHARED) largest = larger(p.band_keys[at + w], largest);
  for (int lanes = SHARED / 2; lanes; lanes /= 2) largest = larger(device::shuffle_xor(largest, lanes), largest);
  if (largest == -infinity()) largest = 0;
  for (int64_t w = begin; w < end; w += SHARED) {
    if (p.band_keys[at + w] == -infinity()) continue;
    const float weight = device::exponential(p.band_keys[at + w] - largest) - device::exponential(p.band_scores[at + w] - largest);
    total += weight;
    output = device::fma(weight, p.band_values[at + w], output);
  }
  for (int lanes = SHARED / 2; lanes; lanes /= 2) {
    total += device::shuffle_xor(total, lanes);
    output += device::shuffle_xor(output, lanes);
  }
  const float rescale = sums[r].largest == largest ? 1 : device::exponential(sums[r].largest - largest);
  total = device::fma(sums[r].total, rescale, total);
  output = device::fma(sums[r].output, rescale, output);
  const float inverse = total == 0 ? 0 : 1 / total;
  output *= inverse;
  for (int64_t w = begin; w < end; w += SHARED) {
    const bool present = p.band_keys[at + w] != -infinity();
    const float exact = present ? device::exponential(p.band_keys[at + w] - largest) * inverse : 0;
    const float counted = present ? device::exponential(p.band_scores[at + w] - largest) * inverse : 0, beyond = p.band_values[at + w] - output;
    p.band_keys[at + w] = present ? exact * beyond : 0;
    p.band_values[at + w] = exact - counted;
    p.band_scores[at + w] = present ? -counted * beyond : 0;
  }
  if (device::thread() % SHARED == 0) {
    tile.totals[r].largest = largest;
    tile.totals[r].inverse = inverse;
    tile.totals[r].output = output;
  }
}

// query_grads = or += values (QUERIES, slots) . keys (slots, D).
template <class Tile, class T>
CUDA_OPS_DEVICE void add_to_queries(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const SlotTile& slots, bool fresh,
                                    const TileMemory& tile, const float* values) {
  const int64_t D = p.in.shape.D;
  const auto add = [&](int r, int64_t d, float sum) {
    if (tile.query[r] < 0) return;
    float& to = p.query_grads[(own.head * p.in.shape.N + tile.query[r]) * D + d];
    to = fresh ? sum : to + sum;
  };
  if (slots.cells) Tile::weigh_slots(values, cell_rows(p.cells.keys, p, own, slots), D, slots.count, tile.memory, add);
  else Tile::weigh_slots(values, exact_rows(rows.k, p, own, tile), D, slots.count, tile.memory, add);
}

// Adds second * delta and the band's keys.
template <class Tile, class T>
CUDA_OPS_DEVICE void finish_queries(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const TileMemory& tile) {
  const int64_t N = p.in.shape.N, D = p.in.shape.D;
  for (int r = device::thread() / WARP; r < Tile::QUERIES; r += BLOCK_THREADS / WARP) {
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

// How many tiles of slots a cluster has.
struct Tiles {
  int64_t exact, all;
};

// Largest logit, mass and output of every query, without the band; what the cells counted of the band is left there.
template <class Tile, class T>
CUDA_OPS_DEVICE void sum_tiles(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const Tiles& tiles, const TileMemory& tile, Running* sums) {
  typename Tile::Numbers along_x, along_g;
  float* shifts = Tile::table(tile.memory, 0);
  Running sum[Tile::ROWS];
  bool present[Tile::ROWS];
  for (int r = 0; r < Tile::ROWS; ++r) {
    sum[r] = {-infinity(), 0, 0};
    present[r] = tile.query[Tile::row(r)] >= 0;
  }
  for (int64_t n = 0; n < tiles.all; ++n) {
    const SlotTile slots = slot_tile(p, own, tiles.exact, n);
    list_slots(p, own, slots, tile);
    device::barrier();
    tile_products<Tile>(rows, p, own, slots, tile, along_x, along_g);
    CUDA_OPS_UNROLL(Tile::COLUMNS)
    for (int s = 0; s < Tile::COLUMNS; ++s) {
      const Slot slot = tile.slots[Tile::column(s)];
      CUDA_OPS_UNROLL(Tile::ROWS)
      for (int r = 0; r < Tile::ROWS; ++r) {
        if (!slot.here || !present[r]) continue;
        const float shift = shift_of(along_x(r, s), tile.totals[Tile::row(r)].half, slot.spread);
        include(sum[r], slot.log_mass + shift, along_g(r, s));
        shifts[Tile::row(r) * TILE_STRIDE + Tile::column(s)] = shift;
      }
    }
    device::barrier();
    if (slots.cells) score_band<Tile>(p, own, slots, tile, shifts);
  }
  for (int r = 0; r < Tile::ROWS; ++r) {
    for (int lanes = Tile::LANES / 2; lanes; lanes /= 2)
      sum[r] = both(sum[r], {device::shuffle_xor(sum[r].largest, lanes), device::shuffle_xor(sum[r].total, lanes), device::shuffle_xor(sum[r].output, lanes)});
    if (device::thread() % Tile::LANES == 0) sums[Tile::row(r)] = sum[r];
  }
  device::barrier();
}

// The gradients of every query's logits, with them those of the query; returns a part of what multiplies delta, for query t / SHARERS.
template <class Tile, class T>
CUDA_OPS_DEVICE float add_tiles(const RefinedRows<T>& rows, const RefinedBackward& p, const Cluster& own, const Tiles& tiles, const TileMemory& tile) {
  typename Tile::Numbers along_x, along_g;
  float *values = Tile::table(tile.memory, 0), second = 0;
  bool present[Tile::ROWS];
  for (int r = 0; r < Tile::ROWS; ++r) present[r] = tile.query[Tile::row(r)] >= 0;
  for (int64_t n = 0; n < tiles.all; ++n) {
    const SlotTile slots = slot_tile(p, own, tiles.exact, n);
    list_slots(p, own, slots, tile);
    device::barrier();
    tile_products<Tile>(rows, p, own, slots, tile, along_x, along_g);
    CUDA_OPS_UNROLL(Tile::COLUMNS)
    for (int s = 0; s < Tile::COLUMNS; ++s) {
      const Slot slot = tile.slots[Tile::column(s)];
      CUDA_OPS_UNROLL(Tile::ROWS)
      for (int r = 0; r < Tile::ROWS; ++r) {
        const QueryTotals& total = tile.totals[Tile::row(r)];
        const bool here = slot.here && present[r];
        values[Tile::row(r) * TILE_STRIDE + Tile::column(s)] = here ? weight_of(slot, along_x(r, s), total) * (along_g(r, s) - total.output) : 0;
      }
    }
    device::barrier();
    if (slots.cells) {
      add_counted_twice<Tile>(p, own, slots, tile, values);
      const int r = device::thread() / SHARERS<Tile>;
      for (int m = device::thread() % SHARERS<Tile>; m < slots.count; m += SHARERS<Tile>) {
        const float spread = tile.slots[m].spread;
        if (!capped(tile.totals[r].half, spread)) second = device::fma(values[r * TILE_STRIDE + m], spread, second);
      }
    }
    device::barrier();
    add_to_queries<Tile>(rows, p, own, slots, n == 0, tile, values);
  }
  return second;
}

// A block has QUERIES members of one cluster and goes through the exact keys and the cells twice, SLOTS at a time: for the totals, and with them for the gradients.
// The bound leaves registers for two blocks: for three of them some architectures would spill.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(BLOCK_THREADS, 2) query_gradients(RefinedRows<T> rows, RefinedBackward p, int64_t segments) {
  using Tile = SlotsOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::template QUADS<1>);
  CUDA_OPS_SHARED(int32_t, query, Tile::QUERIES);
  CUDA_OPS_SHARED(int32_t, position, Tile::QUERIES);
  CUDA_OPS_SHARED(int32_t, key, SLOTS);
  CUDA_OPS_SHARED(Slot, slots, SLOTS);
  CUDA_OPS_SHARED(QueryTotals, totals, Tile::QUERIES);
  CUDA_OPS_SHARED(Running, sums, Tile::QUERIES);
  const int64_t head = device::block() / segments;
  const int32_t* first_of = p.queries.first + head * (p.budgets.C + 1);
  const Segment segment = find_segment(first_of, int(cluster_of(p, head, 0).clusters), Tile::QUERIES, int(device::block() % segments));
  if (segment.cluster < 0) return;
  const Cluster own = cluster_of(p, head, segment.cluster);
  const TileMemory tile{memory, query, position, key, slots, totals};
  const int64_t member = first_of[own.c] + segment.rank, exact_tiles = (p.budgets.K + SLOTS - 1) / SLOTS;
  const Tiles tiles{exact_tiles, exact_tiles + (own.cells + SLOTS - 1) / SLOTS};
  const int t = device::thread();
  list_queries<Tile>(p, own, p.queries.order + head * p.in.shape.N + member, first_of[own.c + 1] - member, tile);
  device::barrier();
  measure_away<Tile>(rows, p, own, tile);
  device::barrier();
  sum_tiles<Tile>(rows, p, own, tiles, tile, sums);
  finish_band<Tile>(p, own, tile, sums);
  device::barrier();
  float second = add_tiles<Tile>(rows, p, own, tiles, tile);
  for (int lanes = SHARERS<Tile> / 2; lanes; lanes /= 2) second += device::shuffle_xor(second, lanes);
  if (t % SHARERS<Tile> == 0) totals[t / SHARERS<Tile>].second = second;
  device::barrier();
  if (t < Tile::QUERIES && query[t] >= 0) p.totals[head * p.in.shape.N + query[t]] = totals[t];
  finish_queries<Tile>(rows, p, own, tile);
}

}  // namespace

namespace cuda_ops::launch {

void refined_queries_backward(const RefinedBackward& p, Stream stream) {
  const int64_t heads = p.in.shape.B * p.in.shape.H;
  if (!heads || !p.in.shape.N) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    const int64_t segments = tiles_of(p.in.shape.N, p.budgets.C, SlotsOf<T>::QUERIES);
    CUDA_OPS_LAUNCH(query_gradients<T>, heads * segments, BLOCK_THREADS, stream, RefinedRows<T>(p), p, segments);
  });
}

}  // namespace cuda_ops::launch
