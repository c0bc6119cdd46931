#include "improved_clustered_backward.h"

#include "reduce.h"
#include "tile_product.h"

namespace {

using cuda_ops::Lists;
using cuda_ops::launch::ClusterGradients;

constexpr int THREADS = 256, WARPS = THREADS / WARP, PART = 4 * TILE;

// A warp for each cluster.
CUDA_OPS_KERNEL list_keys(const int32_t* top_keys, Tokens tokens, int64_t H, int64_t C, int64_t K, int64_t clusters, int32_t* keys, int32_t* counts) {
  const int lane = device::thread() % WARP;
  const int64_t cluster = device::block() * WARPS + device::thread() / WARP;
  if (cluster >= clusters) return;
  const int64_t b = cluster / C / H;
  int32_t count = 0;
  for (int64_t s0 = 0; s0 < K; s0 += WARP) {
    const int64_t position = s0 + lane < K ? top_keys[cluster * K + s0 + lane] : -1;
    const int64_t index = position >= 0 && position < tokens.N ? index_of(tokens, b, position) : -1;
    const uint32_t votes = device::ballot(index >= 0);
    if (index >= 0) keys[cluster * K + count + device::ones(votes & ((1u << lane) - 1))] = int32_t(index);
    count += device::ones(votes);
  }
  device::warp_barrier();
  for (int64_t s = count + lane; s < K; s += WARP) keys[cluster * K + s] = -1;
  if (lane == 0) counts[cluster] = count;
}

CUDA_OPS_DEVICE float block_largest(float value, float* maxima) {
  value = warp_largest(value);
  if (device::thread() % WARP == 0) maxima[device::thread() / WARP] = value;
  device::barrier();
  float largest = maxima[0];
  for (int w = 1; w < WARPS; ++w) largest = larger(maxima[w], largest);
  device::barrier();
  return largest;
}

// Blocks are (batch row, head, cluster). Thread t has every THREADS-th valid token from t on, and their sums are added in one fixed order.
CUDA_OPS_KERNEL weights_of_cluster(Tokens tokens, Lists lists, int64_t H, const float* statistics, float* scores, float* products, float* mass) {
  CUDA_OPS_SHARED(float, shared, WARPS);
  const int64_t row = device::block(), head = row / lists.C, c = row % lists.C, b = head / H, N = tokens.N, n = count_of(tokens, b);
  if (!n) return;
  const int t = device::thread();
  const int32_t* first = lists.queries.first + head * (lists.C + 1) + c;
  const int32_t *members = lists.queries.order + head * N + first[0], *list = lists.keys ? lists.keys + row * lists.K : nullptr;
  const int64_t size = first[1] - first[0], count = list ? lists.counts[row] : 0;
  scores += row * N;
  products += row * N;
  if (!size) {
    for (int64_t i = t; i < n; i += THREADS) scores[position_of(tokens, b, i)] = products[position_of(tokens, b, i)] = 0;
    if (t == 0) mass[row] = 0;
    return;
  }
  float largest = -infinity(), sum = 0, on_top = 0, mean_products = 0, along = 0;
  for (int64_t i = t; i < n; i += THREADS) largest = larger(scores[position_of(tokens, b, i)], largest);
  largest = block_largest(largest, shared);
  for (int64_t i = t; i < n; i += THREADS) sum += device::exponential(scores[position_of(tokens, b, i)] - largest);
  const float factor = 1 / block_sum(sum, shared);
  for (int64_t s = t; s < count; s += THREADS) on_top += device::exponential(scores[position_of(tokens, b, list[s])] - largest) * factor;
  on_top = block_sum(on_top, shared);
  for (int64_t r = t; r < size && count; r += THREADS) mean_products += statistics[(head * N + members[r]) * 3 + 2];
  mean_products = block_sum(mean_products, shared) / float(size);  // the weights are multiplied by the size below
  for (int64_t s = t; s < count; s += THREADS) products[position_of(tokens, b, list[s])] = mean_products;
  device::barrier();
  for (int64_t i = t; i < n; i += THREADS) {
    const int64_t position = position_of(tokens, b, i);
    along = device::fma(device::exponential(scores[position] - largest) * factor, products[position], along);
  }
  along = block_sum(along, shared);
  for (int64_t i = t; i < n; i += THREADS) {
    const int64_t position = position_of(tokens, b, i);
    const float weight = device::exponential(scores[position] - largest) * factor * float(size);
    products[position] = weight * (products[position] - along);
    scores[position] = weight;
  }
  device::barrier();
  for (int64_t s = t; s < count; s += THREADS) scores[position_of(tokens, b, list[s])] = 0;
  if (t == 0) mass[row] = on_top;
}

CUDA_OPS_DEVICE void list_positions(const Tokens& tokens, int64_t b, int64_t i0, int64_t end, int32_t* positions) {
  const int t = device::thread();
  if (t < TILE) positions[t] = i0 + t < end ? int32_t(position_of(tokens, b, i0 + t)) : -1;
}

// Blocks are (batch row, head, part of the tokens, tile of clusters, columns of D).
template <class T>
CUDA_OPS_KERNEL sum_part(const float* score_grad, Heads<T> k, Tokens tokens, Shape shape, int64_t C, int64_t parts, int64_t tiles, int64_t slices,
                         float* part_sums) {
  CUDA_OPS_SHARED(TileQuad, weights, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(TileQuad, rows, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, positions, TILE);
  const int64_t d0 = device::block() % slices * TILE, c0 = device::block() / slices % tiles * TILE, part = device::block() / slices / tiles % parts;
  const int64_t head = device::block() / slices / tiles / parts, b = head / shape.H, h = head % shape.H, n = count_of(tokens, b), D = shape.D;
  const int t = device::thread();
  if (part * PART >= n) return;
  const int64_t end = smaller(n, (part + 1) * PART);
  float sum[OWN][OWN] = {};
  for (int64_t i0 = part * PART; i0 < end; i0 += TILE) {
    list_positions(tokens, b, i0, end, positions);
    device::barrier();
    for (int c = t / TILE; c < TILE; c += THREADS / TILE) {
      const int32_t position = positions[t % TILE];
      weights->at[t % TILE * TILE_STRIDE + c] = position >= 0 && c0 + c < C ? score_grad[(head * C + c0 + c) * tokens.N + position] : 0;
    }
    load_along(k, b, h / shape.group, positions, d0, D, rows);
    device::barrier();
    add_tile(weights, rows, int(smaller(int64_t(TILE), end - i0)), sum);
    device::barrier();
  }
  store_rows(sum, rows);
  device::barrier();
  for_each_number<TILE_THREADS>(rows, d0, D, [&](int i, int64_t d, float number) {
    if (c0 + i < C) part_sums[((head * parts + part) * C + c0 + i) * D + d] = number;
  });
}

// A thread for each number of the means adds the parts in order.
CUDA_OPS_KERNEL add_parts(Tokens tokens, cuda_ops::Groups groups, int64_t H, int64_t C, int64_t D, int64_t parts, int64_t count, const float* part_sums,
                          float* means) {
  const int64_t place = device::block() * THREADS + device::thread(), d = place % D, c = place / D % C, head = place / D / C;
  if (place >= count) return;
  const int32_t* first = groups.first + head * (C + 1) + c;
  const int64_t n = count_of(tokens, head / H);
  float sum = 0;
  for (int64_t part = 0; part * PART < n; ++part) sum += part_sums[((head * parts + part) * C + c) * D + d];
  means[place] = first[1] > first[0] ? sum / float(first[1] - first[0]) : 0;
}

// left[c][i] = weight of cluster c0 + c for token i, right[c][d] = its row.
CUDA_OPS_DEVICE void load_clusters(const float* weights, const float* rows, int64_t head, int64_t c0, int count, int64_t C, int64_t N, int64_t d0, int64_t D,
                                   const int32_t* positions, TileQuad* left, TileQuad* right) {
  const int column = device::thread() % TILE;
  for (int c = device::thread() / TILE; c < count; c += THREADS / TILE) {
    const int64_t cluster = head * C + c0 + c;
    left->at[c * TILE_STRIDE + column] = positions[column] >= 0 ? weights[cluster * N + positions[column]] : 0;
    right->at[c * TILE_STRIDE + column] = d0 + column < D ? rows[cluster * D + d0 + column] : 0;
  }
}

// The sums of those slots of `count` clusters from `cluster` on that hold one of this warp's keys, first … first + 2 * OWN - 1 as indices of valid tokens.
CUDA_OPS_DEVICE void add_slots(const ClusterGradients& in, const Lists& lists, int64_t cluster, int count, int64_t first, int64_t d0, int64_t D,
                               float (&sum_k)[OWN][OWN], float (&sum_v)[OWN][OWN]) {
  constexpr int AT_ONCE = 4;  // loads under way
  const int lane = device::thread() % WARP, own = lane / LANES_OF_ROW * OWN;
  const int64_t pieces = (lists.K + WARP - 1) / WARP;
  for (int64_t e0 = 0; e0 < count * pieces; e0 += AT_ONCE) {
    int32_t local[AT_ONCE];
    for (int e = 0; e < AT_ONCE; ++e) {
      const int64_t slot = (e0 + e) % pieces * WARP + lane;
      const int64_t key = e0 + e < count * pieces && slot < lists.K ? lists.keys[(cluster + (e0 + e) / pieces) * lists.K + slot] - first : -1;
      local[e] = key >= 0 && key < 2 * OWN ? int32_t(key) : -1;
    }
    for (int e = 0; e < AT_ONCE; ++e)
      for (uint32_t votes = device::ballot(local[e] >= 0); votes; votes &= votes - 1) {
        const int from = device::ones(votes ^ (votes - 1)) - 1, row = device::shuffle(local[e], from) - own;
        if (row < 0 || row >= OWN) continue;
        const int64_t slot = ((cluster + (e0 + e) / pieces) * lists.K + (e0 + e) % pieces * WARP + from) * D;
        for (int k = 0; k < OWN; ++k) {
          const int64_t d = d0 + own_column() + k;
          const float more_k = d < D ? in.slots_k[slot + d] : 0, more_v = d < D ? in.slots_v[slot + d] : 0;
          // Registers have no index that is known only here. Without forgetting, nvcc 13 turns the choice back into one, in local memory.
          CUDA_OPS_UNROLL(OWN)
          for (int r = 0; r < OWN; ++r) {
            int here = r == row;
            device::forget(here);
            sum_k[r][k] = here ? sum_k[r][k] + more_k : sum_k[r][k];
            sum_v[r][k] = here ? sum_v[r][k] + more_v : sum_v[r][k];
          }
        }
      }
  }
}

// Blocks are (batch row, key head, tile of keys, columns of D).
template <class T>
CUDA_OPS_KERNEL gradients_of_keys(ClusterGradients in, Tokens tokens, Shape shape, Lists lists, int64_t tiles, int64_t slices, Heads<T> grad_k, Heads<T> grad_v) {
  CUDA_OPS_SHARED(TileQuad, left, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(TileQuad, right, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, positions, TILE);
  const int64_t d0 = device::block() % slices * TILE, i0 = device::block() / slices % tiles * TILE, key_head = device::block() / slices / tiles;
  const int64_t key_heads = shape.H / shape.group, b = key_head / key_heads, n = count_of(tokens, b), D = shape.D, C = lists.C;
  if (i0 >= n) return;
  list_positions(tokens, b, i0, n, positions);
  device::barrier();
  float sum_k[OWN][OWN] = {}, sum_v[OWN][OWN] = {};
  for (int64_t head = key_head * shape.group; head < (key_head + 1) * shape.group; ++head)
    for (int64_t c0 = 0; c0 < C; c0 += TILE) {
      const int count = int(smaller(int64_t(TILE), C - c0));
      load_clusters(in.score_grad, in.centroids, head, c0, count, C, tokens.N, d0, D, positions, left, right);
      device::barrier();
      add_tile(left, right, count, sum_k);
      device::barrier();
      load_clusters(in.outside, in.mean_grad, head, c0, count, C, tokens.N, d0, D, positions, left, right);
      device::barrier();
      add_tile(left, right, count, sum_v);
      device::barrier();
      if (lists.keys) add_slots(in, lists, head * C + c0, count, i0 + device::thread() / WARP * (2 * OWN), d0, D, sum_k, sum_v);
    }
  store_rows(sum_k, left);
  store_rows(sum_v, right);
  device::barrier();
  for_each_number<TILE_THREADS>(left, d0, D, [&](int i, int64_t d, float number) {
    if (positions[i] >= 0) grad_k.set(b, key_head % key_heads, positions[i], d, number);
  });
  for_each_number<TILE_THREADS>(right, d0, D, [&](int i, int64_t d, float number) {
    if (positions[i] >= 0) grad_v.set(b, key_head % key_heads, positions[i], d, number);
  });
}

}  // namespace

namespace cuda_ops::launch {

void list_top_keys(const int32_t* top_keys, const Tokens& tokens, int64_t B, int64_t H, int64_t C, int64_t K, int32_t* keys, int32_t* counts, Stream stream) {
  const int64_t clusters = B * H * C, blocks = (clusters + WARPS - 1) / WARPS;
  if (blocks) CUDA_OPS_LAUNCH(list_keys, blocks, THREADS, stream, top_keys, tokens, H, C, K, clusters, keys, counts);
}

void centroid_gradients(const Tokens& tokens, const Lists& lists, int64_t B, int64_t H, const float* statistics, float* scores, float* products, float* mass,
                        Stream stream) {
  const int64_t blocks = B * H * lists.C;
  if (blocks) CUDA_OPS_LAUNCH(weights_of_cluster, blocks, THREADS, stream, tokens, lists, H, statistics, scores, products, mass);
}

int64_t mean_gradient_parts(int64_t N) { return (N + PART - 1) / PART; }

void mean_gradients(const float* score_grad, const Vectors& k, const Tokens& tokens, const Shape& shape, const Groups& groups, int64_t C, float* part_sums,
                    float* means, Stream stream) {
  const int64_t parts = mean_gradient_parts(shape.N), tiles = tiles_of(C), slices = tiles_of(shape.D), heads = shape.B * shape.H, count = heads * C * shape.D;
  if (!count) return;
  with_type(k.type, [&](auto type) {
    const Heads<decltype(type)> keys(k);
    if (parts)
      CUDA_OPS_LAUNCH(sum_part<decltype(type)>, heads * parts * tiles * slices, THREADS, stream,
                      score_grad, keys, tokens, shape, C, parts, tiles, slices, part_sums);
  });
  CUDA_OPS_LAUNCH(add_parts, (count + THREADS - 1) / THREADS, THREADS, stream, tokens, groups, shape.H, C, shape.D, parts, count, part_sums, means);
}

void clustered_key_gradients(const ClusterGradients& in, const Tokens& tokens, const Shape& shape, const Lists& lists, const Vectors& grad_k,
                             const Vectors& grad_v, Stream stream) {
  const int64_t tiles = tiles_of(shape.N), slices = tiles_of(shape.D), blocks = shape.B * key_heads_of(shape) * tiles * slices;
  if (!blocks) return;
  with_type(grad_k.type, [&](auto type) {
    using T = decltype(type);
    const Heads<T> out_k(grad_k), out_v(grad_v);
    CUDA_OPS_LAUNCH(gradients_of_keys<T>, blocks, THREADS, stream, in, tokens, shape, lists, tiles, slices, out_k, out_v);
  });
}

}  // namespace cuda_ops::launch
