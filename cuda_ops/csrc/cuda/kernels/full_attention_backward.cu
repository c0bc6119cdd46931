#include "full_attention_backward.h"

#include "tile_product.h"

namespace {

using cuda_ops::Lists;

constexpr int STATISTICS = 3;

template <class T>
struct Inputs {
  Heads<T> grad, q, k, v;
  Tokens tokens;
  Shape shape;
  float scale;
  explicit Inputs(const cuda_ops::Incoming& in) : grad(in.grad), q(in.q), k(in.k), v(in.v), tokens(in.tokens), shape(in.shape), scale(in.scale) {}
};

// One cluster of one head: queries by rank, keys by slot, both as indices of valid tokens; none of the lists: all of them.
struct Cluster {
  const int32_t *members, *list;
  int64_t b, h, head, cluster, queries, keys;
  bool all;
  CUDA_OPS_DEVICE int64_t query(int64_t rank) const { return all ? rank : members[rank]; }
  CUDA_OPS_DEVICE int64_t key(int64_t slot) const { return all ? slot : list[slot]; }
};

CUDA_OPS_DEVICE Cluster cluster_of(const Lists& lists, const Tokens& tokens, const Shape& shape, int64_t head, int64_t c) {
  const int64_t b = head / shape.H, h = head % shape.H, cluster = head * lists.C + c;
  if (!lists.queries.first) {
    const int64_t n = count_of(tokens, b);
    return {nullptr, nullptr, b, h, head, cluster, n, n, true};
  }
  const int32_t* first = lists.queries.first + head * (lists.C + 1) + c;
  const int32_t* list = lists.keys ? lists.keys + cluster * lists.K : nullptr;
  return {lists.queries.order + head * tokens.N + first[0], list, b, h, head, cluster, first[1] - first[0], list ? lists.counts[cluster] : 0, false};
}

// Positions of the queries r0 …; -1 behind the last.
CUDA_OPS_DEVICE void list_queries(const Cluster& cluster, const Tokens& tokens, int64_t r0, int32_t* positions) {
  const int t = device::thread();
  if (t < TILE) positions[t] = r0 + t < cluster.queries ? int32_t(position_of(tokens, cluster.b, cluster.query(r0 + t))) : -1;
}
CUDA_OPS_DEVICE void list_keys(const Cluster& cluster, const Tokens& tokens, int64_t j0, int32_t* positions) {
  const int t = device::thread();
  if (t < TILE) positions[t] = j0 + t < cluster.keys ? int32_t(position_of(tokens, cluster.b, cluster.key(j0 + t))) : -1;
}
// STATISTICS numbers for each query; weights relative to them are 0 where there is no query.
CUDA_OPS_DEVICE void list_statistics(const Cluster& cluster, int64_t N, const float* statistics, int64_t r0, float* to) {
  const int t = device::thread();
  if (t >= TILE) return;
  const bool here = r0 + t < cluster.queries;
  const float* from = statistics + (cluster.head * N + (here ? cluster.query(r0 + t) : 0)) * STATISTICS;
  for (int s = 0; s < STATISTICS; ++s) to[s * TILE + t] = here ? from[s] : 0;
}

// logits[r][c] = scale * q . k and products[r][c] = grad . v for a tile of queries and one of keys. The pieces are free to use before and after.
template <class T>
CUDA_OPS_DEVICE void logits_and_products(const Inputs<T>& in, const Cluster& cluster, const int32_t* queries, const int32_t* keys, TileQuad* pieces,
                                         float (&logits)[OWN][OWN], float (&products)[OWN][OWN]) {
  constexpr int PIECE = DEPTH * TILE_QUADS;
  const int64_t D = in.shape.D, key_head = cluster.h / in.shape.group;
  for (int r = 0; r < OWN; ++r)
    for (int c = 0; c < OWN; ++c) logits[r][c] = products[r][c] = 0;
  for (int64_t d0 = 0; d0 < D; d0 += DEPTH) {
    load_across(in.q, cluster.b, cluster.h, queries, d0, D, in.scale, pieces);
    load_across(in.k, cluster.b, key_head, keys, d0, D, 1, pieces + PIECE);
    load_across(in.grad, cluster.b, cluster.h, queries, d0, D, 1, pieces + 2 * PIECE);
    load_across(in.v, cluster.b, key_head, keys, d0, D, 1, pieces + 3 * PIECE);
    device::barrier();
    add_product(pieces, pieces + PIECE, DEPTH, logits);
    add_product(pieces + 2 * PIECE, pieces + 3 * PIECE, DEPTH, products);
    device::barrier();
  }
}

// From logits to weights t_ij, and from products to the gradients by the logits; 0 where there is no query or no key.
CUDA_OPS_DEVICE void weights_and_gradients(const float* statistics, const int32_t* queries, const int32_t* keys, float (&logits)[OWN][OWN],
                                           float (&products)[OWN][OWN]) {
  for (int r = 0; r < OWN; ++r) {
    const int row = own_row() + r;
    const float largest = statistics[row], factor = statistics[TILE + row], mean = statistics[2 * TILE + row];
    for (int c = 0; c < OWN; ++c) {
      const bool here = queries[row] >= 0 && keys[own_column() + c] >= 0;
      logits[r][c] = here ? device::exponential(logits[r][c] - largest) * factor : 0;
      products[r][c] = here ? logits[r][c] * (products[r][c] - mean) : 0;
    }
  }
}

// Over the lanes that share a row, in one fixed order.
CUDA_OPS_DEVICE float row_sum(float value) {
  for (int lanes = 1; lanes < LANES_OF_ROW; lanes *= 2) value += device::shuffle_xor(value, lanes);
  return value;
}
CUDA_OPS_DEVICE float row_largest(float value) {
  for (int lanes = 1; lanes < LANES_OF_ROW; lanes *= 2) value = larger(value, device::shuffle_xor(value, lanes));
  return value;
}

// Blocks are (batch row, head, cluster, part): a part has every parts-th tile of queries, and goes over the keys with a running maximum.
template <class T>
CUDA_OPS_KERNEL statistics_of_rows(Inputs<T> in, Lists lists, int64_t parts, float* statistics) {
  CUDA_OPS_SHARED(TileQuad, pieces, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  const int64_t part = device::block() % parts, c = device::block() / parts % lists.C, head = device::block() / parts / lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, head, c);
  if (!cluster.keys) return;
  for (int64_t r0 = part * TILE; r0 < cluster.queries; r0 += parts * TILE) {
    list_queries(cluster, in.tokens, r0, queries);
    float largest[OWN], sum[OWN], mean[OWN];
    for (int r = 0; r < OWN; ++r) {
      largest[r] = -infinity();
      sum[r] = mean[r] = 0;
    }
    for (int64_t j0 = 0; j0 < cluster.keys; j0 += TILE) {
      float logits[OWN][OWN], products[OWN][OWN];
      list_keys(cluster, in.tokens, j0, keys);
      device::barrier();
      logits_and_products(in, cluster, queries, keys, pieces, logits, products);
      for (int r = 0; r < OWN; ++r) {
        float here = -infinity();
        for (int k = 0; k < OWN; ++k) {
          if (j0 + own_column() + k >= cluster.keys) logits[r][k] = -infinity();
          here = larger(logits[r][k], here);
        }
        here = larger(largest[r], row_largest(here));
        float more = 0, weighted = 0;
        for (int k = 0; k < OWN; ++k) {
          const float weight = j0 + own_column() + k < cluster.keys ? device::exponential(logits[r][k] - here) : 0;
          more += weight;
          weighted = device::fma(weight, products[r][k], weighted);
        }
        const float factor = device::exponential(largest[r] - here);
        sum[r] = device::fma(sum[r], factor, row_sum(more));
        mean[r] = device::fma(mean[r], factor, row_sum(weighted));
        largest[r] = here;
      }
      device::barrier();
    }
    for (int r = 0; r < OWN; ++r) {
      const int64_t rank = r0 + own_row() + r;
      if (own_column() || rank >= cluster.queries) continue;
      float* to = statistics + (head * in.shape.N + cluster.query(rank)) * STATISTICS;
      to[0] = largest[r];
      to[1] = 1 / sum[r];
      to[2] = mean[r] / sum[r];
    }
  }
}

// Blocks are (batch row, head, cluster, part, columns of D).
template <class T>
CUDA_OPS_KERNEL gradients_of_queries(Inputs<T> in, Lists lists, int64_t parts, int64_t slices, const float* statistics, const float* mass, const float* mean_grad,
                                     Heads<T> grad_q) {
  CUDA_OPS_SHARED(TileQuad, pieces, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(TileQuad, weights, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, part = device::block() / slices % parts, c = device::block() / slices / parts % lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, device::block() / slices / parts / lists.C, c);
  const int64_t D = in.shape.D;
  for (int64_t r0 = part * TILE; r0 < cluster.queries; r0 += parts * TILE) {
    device::barrier();
    list_queries(cluster, in.tokens, r0, queries);
    if (cluster.keys) list_statistics(cluster, in.shape.N, statistics, r0, listed);
    device::barrier();
    float sum[OWN][OWN] = {};
    for (int64_t j0 = 0; j0 < cluster.keys; j0 += TILE) {
      float logits[OWN][OWN], products[OWN][OWN];
      list_keys(cluster, in.tokens, j0, keys);
      device::barrier();
      logits_and_products(in, cluster, queries, keys, pieces, logits, products);
      weights_and_gradients(listed, queries, keys, logits, products);
      store_columns(products, weights);
      load_along(in.k, cluster.b, cluster.h / in.shape.group, keys, d0, D, 1, pieces);
      device::barrier();
      add_tile(weights, pieces, int(smaller(int64_t(TILE), cluster.keys - j0)), sum);
      device::barrier();
    }
    store_rows(sum, weights);
    device::barrier();
    const float factor = mass ? mass[cluster.cluster] : 1;
    for_each_number(weights, d0, D, [&](int i, int64_t d, float number) {
      const float shared = mean_grad ? mean_grad[cluster.cluster * D + d] : 0;
      if (queries[i] >= 0) grad_q.set(cluster.b, cluster.h, queries[i], d, in.scale * (cluster.keys ? device::fma(factor, number, shared) : shared));
    });
  }
}

// What the queries of a cluster add to the gradients of the keys j0 …, columns d0 …, in the order of the queries.
struct KeyTile {
  TileQuad *pieces, *weights;
  int32_t *queries, *keys;
  float* statistics;
};
template <class T>
CUDA_OPS_DEVICE void add_key_gradients(const Inputs<T>& in, const Cluster& cluster, const float* statistics, int64_t j0, int64_t d0, const KeyTile& s,
                                       float (&sum_k)[OWN][OWN], float (&sum_v)[OWN][OWN]) {
  const int64_t D = in.shape.D;
  list_keys(cluster, in.tokens, j0, s.keys);
  for (int64_t r0 = 0; r0 < cluster.queries; r0 += TILE) {
    const int count = int(smaller(int64_t(TILE), cluster.queries - r0));
    float logits[OWN][OWN], products[OWN][OWN];
    list_queries(cluster, in.tokens, r0, s.queries);
    list_statistics(cluster, in.shape.N, statistics, r0, s.statistics);
    device::barrier();
    logits_and_products(in, cluster, s.queries, s.keys, s.pieces, logits, products);
    weights_and_gradients(s.statistics, s.queries, s.keys, logits, products);
    store_rows(products, s.weights);
    load_along(in.q, cluster.b, cluster.h, s.queries, d0, D, in.scale, s.pieces);
    device::barrier();
    add_tile(s.weights, s.pieces, count, sum_k);
    device::barrier();
    store_rows(logits, s.weights);
    load_along(in.grad, cluster.b, cluster.h, s.queries, d0, D, 1, s.pieces);
    device::barrier();
    add_tile(s.weights, s.pieces, count, sum_v);
    device::barrier();
  }
}

// Blocks are (batch row, key head, tile of keys, columns of D).
template <class T>
CUDA_OPS_KERNEL gradients_of_keys(Inputs<T> in, int64_t tiles, int64_t slices, const float* statistics, Heads<T> grad_k, Heads<T> grad_v) {
  CUDA_OPS_SHARED(TileQuad, pieces, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(TileQuad, weights, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, j0 = device::block() / slices % tiles * TILE, key_head = device::block() / slices / tiles;
  const int64_t group = in.shape.group, key_heads = in.shape.H / group, b = key_head / key_heads, n = count_of(in.tokens, b), D = in.shape.D;
  if (j0 >= n) return;
  float sum_k[OWN][OWN] = {}, sum_v[OWN][OWN] = {};
  for (int64_t h = 0; h < group; ++h) {
    const Cluster cluster{nullptr, nullptr, b, key_head % key_heads * group + h, key_head * group + h, 0, n, n, true};
    add_key_gradients(in, cluster, statistics, j0, d0, KeyTile{pieces, weights, queries, keys, listed}, sum_k, sum_v);
  }
  store_rows(sum_k, pieces);
  store_rows(sum_v, weights);
  device::barrier();
  for_each_number(pieces, d0, D, [&](int i, int64_t d, float number) {
    if (keys[i] >= 0) grad_k.set(b, key_head % key_heads, keys[i], d, number);
  });
  for_each_number(weights, d0, D, [&](int i, int64_t d, float number) {
    if (keys[i] >= 0) grad_v.set(b, key_head % key_heads, keys[i], d, number);
  });
}

// Blocks are (batch row, head, cluster, tile of slots, columns of D).
template <class T>
CUDA_OPS_KERNEL gradients_of_slots(Inputs<T> in, Lists lists, int64_t tiles, int64_t slices, const float* statistics, const float* mass, float* slots_k,
                                   float* slots_v) {
  CUDA_OPS_SHARED(TileQuad, pieces, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(TileQuad, weights, TILE * TILE_QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, j0 = device::block() / slices % tiles * TILE, c = device::block() / slices / tiles % lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, device::block() / slices / tiles / lists.C, c);
  if (j0 >= cluster.keys) return;
  float sum_k[OWN][OWN] = {}, sum_v[OWN][OWN] = {};
  add_key_gradients(in, cluster, statistics, j0, d0, KeyTile{pieces, weights, queries, keys, listed}, sum_k, sum_v);
  const float factor = cluster.queries ? mass[cluster.cluster] : 0;
  store_rows(sum_k, pieces);
  store_rows(sum_v, weights);
  device::barrier();
  const int64_t place = (cluster.cluster * lists.K + j0) * in.shape.D;
  for_each_number(pieces, d0, in.shape.D, [&](int i, int64_t d, float number) {
    if (j0 + i < cluster.keys) slots_k[place + i * in.shape.D + d] = factor * number;
  });
  for_each_number(weights, d0, in.shape.D, [&](int i, int64_t d, float number) {
    if (j0 + i < cluster.keys) slots_v[place + i * in.shape.D + d] = factor * number;
  });
}

// Into how many parts the queries of a cluster are cut; what a row adds up does not depend on it.
int64_t parts_of(const Shape& shape, const Lists& lists) {
  const int64_t parts = tiles_of((shape.N + lists.C - 1) / lists.C);
  return parts < 1 ? 1 : parts;
}

}  // namespace

namespace cuda_ops::launch {

void row_statistics(const Incoming& in, const Lists& lists, float* statistics, Stream stream) {
  const int64_t parts = parts_of(in.shape, lists), blocks = in.shape.B * in.shape.H * lists.C * parts;
  if (!blocks || !lists.K) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    CUDA_OPS_LAUNCH(statistics_of_rows<T>, blocks, TILE_THREADS, stream, inputs, lists, parts, statistics);
  });
}

void query_gradients(const Incoming& in, const Lists& lists, const float* statistics, const float* mass, const float* mean_grad, const Vectors& grad_q,
                     Stream stream) {
  const int64_t parts = parts_of(in.shape, lists), slices = tiles_of(in.shape.D), blocks = in.shape.B * in.shape.H * lists.C * parts * slices;
  if (!blocks) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    const Heads<T> out(grad_q);
    CUDA_OPS_LAUNCH(gradients_of_queries<T>, blocks, TILE_THREADS, stream, inputs, lists, parts, slices, statistics, mass, mean_grad, out);
  });
}

void key_gradients(const Incoming& in, const float* statistics, const Vectors& grad_k, const Vectors& grad_v, Stream stream) {
  const int64_t tiles = tiles_of(in.shape.N), slices = tiles_of(in.shape.D), blocks = in.shape.B * key_heads_of(in.shape) * tiles * slices;
  if (!blocks) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    const Heads<T> out_k(grad_k), out_v(grad_v);
    CUDA_OPS_LAUNCH(gradients_of_keys<T>, blocks, TILE_THREADS, stream, inputs, tiles, slices, statistics, out_k, out_v);
  });
}

void listed_key_gradients(const Incoming& in, const Lists& lists, const float* statistics, const float* mass, float* slots_k, float* slots_v, Stream stream) {
  const int64_t tiles = tiles_of(lists.K), slices = tiles_of(in.shape.D), blocks = in.shape.B * in.shape.H * lists.C * tiles * slices;
  if (!blocks) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    CUDA_OPS_LAUNCH(gradients_of_slots<T>, blocks, TILE_THREADS, stream, inputs, lists, tiles, slices, statistics, mass, slots_k, slots_v);
  });
}

}  // namespace cuda_ops::launch
