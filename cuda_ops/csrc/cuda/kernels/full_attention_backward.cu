#include "full_attention_backward.h"

#include "token_tiles.h"

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

// The rows of a tile of queries or keys of the cluster's head.
template <class T>
CUDA_OPS_DEVICE TileRows<T> rows_of_queries(const Inputs<T>& in, const Heads<T>& x, const Cluster& cluster, const int32_t* queries) {
  return {x, cluster.b, cluster.h, in.shape.D, queries};
}
template <class T>
CUDA_OPS_DEVICE TileRows<T> rows_of_keys(const Inputs<T>& in, const Heads<T>& x, const Cluster& cluster, const int32_t* keys) {
  return {x, cluster.b, cluster.h / in.shape.group, in.shape.D, keys};
}

// From the products q . k to the weight t_ij, and from grad . v to the gradient by the logit; 0 where there is no query or no key.
CUDA_OPS_DEVICE void weight_and_gradient(const float* statistics, int query, bool here, float scale, float& along_x, float& along_y) {
  const float largest = statistics[query], factor = statistics[TILE + query], mean = statistics[2 * TILE + query];
  along_x = here ? device::exponential(along_x * scale - largest) * factor : 0;
  along_y = here ? along_x * (along_y - mean) : 0;
}

// Over the lanes that share a row, in one fixed order.
template <int LANES>
CUDA_OPS_DEVICE float row_sum(float value) {
  for (int lanes = 1; lanes < LANES; lanes *= 2) value += device::shuffle_xor(value, lanes);
  return value;
}
template <int LANES>
CUDA_OPS_DEVICE float row_largest(float value) {
  for (int lanes = 1; lanes < LANES; lanes *= 2) value = larger(value, device::shuffle_xor(value, lanes));
  return value;
}

// Blocks are (batch row, head, cluster, part): a part has every parts-th tile of queries, and goes over the keys with a running maximum.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(TileOf<T>::THREADS) statistics_of_rows(Inputs<T> in, Lists lists, int64_t parts, float* statistics) {
  using Tile = TileOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  const int64_t part = device::block() % parts, c = device::block() / parts % lists.C, head = device::block() / parts / lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, head, c);
  if (!cluster.keys) return;
  for (int64_t r0 = part * TILE; r0 < cluster.queries; r0 += parts * TILE) {
    list_queries(cluster, in.tokens, r0, queries);
    float largest[Tile::ROWS], sum[Tile::ROWS], mean[Tile::ROWS];
    for (int r = 0; r < Tile::ROWS; ++r) {
      largest[r] = -infinity();
      sum[r] = mean[r] = 0;
    }
    for (int64_t j0 = 0; j0 < cluster.keys; j0 += TILE) {
      typename Tile::Numbers logits, products;
      list_keys(cluster, in.tokens, j0, keys);
      device::barrier();
      multiply_tiles<Tile>(rows_of_queries(in, in.q, cluster, queries), rows_of_keys(in, in.k, cluster, keys), rows_of_queries(in, in.grad, cluster, queries),
                           rows_of_keys(in, in.v, cluster, keys), memory, logits, products);
      CUDA_OPS_UNROLL(Tile::ROWS)
      for (int r = 0; r < Tile::ROWS; ++r) {
        float here = -infinity();
        CUDA_OPS_UNROLL(Tile::COLUMNS)
        for (int k = 0; k < Tile::COLUMNS; ++k) {
          logits(r, k) = j0 + Tile::column(k) < cluster.keys ? logits(r, k) * in.scale : -infinity();
          here = larger(logits(r, k), here);
        }
        here = larger(largest[r], row_largest<Tile::LANES>(here));
        float more = 0, weighted = 0;
        CUDA_OPS_UNROLL(Tile::COLUMNS)
        for (int k = 0; k < Tile::COLUMNS; ++k) {
          const float weight = j0 + Tile::column(k) < cluster.keys ? device::exponential(logits(r, k) - here) : 0;
          more += weight;
          weighted = device::fma(weight, products(r, k), weighted);
        }
        const float factor = device::exponential(largest[r] - here);
        sum[r] = device::fma(sum[r], factor, row_sum<Tile::LANES>(more));
        mean[r] = device::fma(mean[r], factor, row_sum<Tile::LANES>(weighted));
        largest[r] = here;
      }
      device::barrier();
    }
    for (int r = 0; r < Tile::ROWS; ++r) {
      const int64_t rank = r0 + Tile::row(r);
      if (Tile::column(0) || rank >= cluster.queries) continue;
      float* to = statistics + (head * in.shape.N + cluster.query(rank)) * STATISTICS;
      to[0] = largest[r];
      to[1] = 1 / sum[r];
      to[2] = mean[r] / sum[r];
    }
  }
}

// Blocks are (batch row, head, cluster, part, columns of D).
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(TileOf<T>::THREADS) gradients_of_queries(Inputs<T> in, Lists lists, int64_t parts, int64_t slices, const float* statistics,
                                                                         const float* mass, const float* mean_grad, Heads<T> grad_q) {
  using Tile = TileOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, part = device::block() / slices % parts, c = device::block() / slices / parts % lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, device::block() / slices / parts / lists.C, c);
  const int64_t D = in.shape.D;
  for (int64_t r0 = part * TILE; r0 < cluster.queries; r0 += parts * TILE) {
    list_queries(cluster, in.tokens, r0, queries);
    if (cluster.keys) list_statistics(cluster, in.shape.N, statistics, r0, listed);
    device::barrier();
    typename Tile::Numbers sum;
    for (int64_t j0 = 0; j0 < cluster.keys; j0 += TILE) {
      typename Tile::Numbers weights, products;
      list_keys(cluster, in.tokens, j0, keys);
      device::barrier();
      const TileRows<T> key_rows = rows_of_keys(in, in.k, cluster, keys);
      multiply_tiles<Tile>(rows_of_queries(in, in.q, cluster, queries), key_rows, rows_of_queries(in, in.grad, cluster, queries),
                           rows_of_keys(in, in.v, cluster, keys), memory, weights, products);
      CUDA_OPS_UNROLL(Tile::ROWS)
      for (int r = 0; r < Tile::ROWS; ++r)
        CUDA_OPS_UNROLL(Tile::COLUMNS)
        for (int k = 0; k < Tile::COLUMNS; ++k)
          weight_and_gradient(listed, Tile::row(r), queries[Tile::row(r)] >= 0 && keys[Tile::column(k)] >= 0, in.scale, weights(r, k), products(r, k));
      Tile::add(products, key_rows, d0, memory, sum);
    }
    const float factor = mass ? mass[cluster.cluster] : 1;
    each_number<Tile>(sum, d0, D, memory, [&](int i, int64_t d, float number) {
      const float shared = mean_grad ? mean_grad[cluster.cluster * D + d] : 0;
      if (queries[i] >= 0) grad_q.set(cluster.b, cluster.h, queries[i], d, in.scale * (cluster.keys ? device::fma(factor, number, shared) : shared));
    });
  }
}

// What the queries of a cluster add to the gradients of the keys j0 …, columns d0 …, in the order of the queries; that of the keys is without the scale.
struct KeyTile {
  TileQuad* memory;
  int32_t *queries, *keys;
  float* statistics;
};
template <class Tile, class T, class Numbers>
CUDA_OPS_DEVICE void add_key_gradients(const Inputs<T>& in, const Cluster& cluster, const float* statistics, int64_t j0, int64_t d0, const KeyTile& tile,
                                       Numbers& sum_k, Numbers& sum_v) {
  list_keys(cluster, in.tokens, j0, tile.keys);
  for (int64_t r0 = 0; r0 < cluster.queries; r0 += TILE) {
    Numbers weights, products;
    list_queries(cluster, in.tokens, r0, tile.queries);
    list_statistics(cluster, in.shape.N, statistics, r0, tile.statistics);
    device::barrier();
    const TileRows<T> query_rows = rows_of_queries(in, in.q, cluster, tile.queries), grad_rows = rows_of_queries(in, in.grad, cluster, tile.queries);
    multiply_tiles<Tile>(rows_of_keys(in, in.k, cluster, tile.keys), query_rows, rows_of_keys(in, in.v, cluster, tile.keys), grad_rows, tile.memory, weights,
                         products);
    CUDA_OPS_UNROLL(Tile::ROWS)
    for (int k = 0; k < Tile::ROWS; ++k)
      CUDA_OPS_UNROLL(Tile::COLUMNS)
      for (int r = 0; r < Tile::COLUMNS; ++r) {
        const int query = Tile::column(r);
        weight_and_gradient(tile.statistics, query, tile.queries[query] >= 0 && tile.keys[Tile::row(k)] >= 0, in.scale, weights(k, r), products(k, r));
      }
    Tile::add(products, query_rows, d0, tile.memory, sum_k);
    Tile::add(weights, grad_rows, d0, tile.memory, sum_v);
  }
}

// Blocks are (batch row, key head, tile of keys, columns of D).
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(TileOf<T>::THREADS) gradients_of_keys(Inputs<T> in, int64_t tiles, int64_t slices, const float* statistics, Heads<T> grad_k,
                                                                      Heads<T> grad_v) {
  using Tile = TileOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, j0 = device::block() / slices % tiles * TILE, key_head = device::block() / slices / tiles;
  const int64_t group = in.shape.group, key_heads = in.shape.H / group, b = key_head / key_heads, n = count_of(in.tokens, b), D = in.shape.D;
  if (j0 >= n) return;
  typename Tile::Numbers sum_k, sum_v;
  for (int64_t h = 0; h < group; ++h) {
    const Cluster cluster{nullptr, nullptr, b, key_head % key_heads * group + h, key_head * group + h, 0, n, n, true};
    add_key_gradients<Tile>(in, cluster, statistics, j0, d0, KeyTile{memory, queries, keys, listed}, sum_k, sum_v);
  }
  each_number<Tile>(sum_k, d0, D, memory, [&](int i, int64_t d, float number) {
    if (keys[i] >= 0) grad_k.set(b, key_head % key_heads, keys[i], d, in.scale * number);
  });
  each_number<Tile>(sum_v, d0, D, memory, [&](int i, int64_t d, float number) {
    if (keys[i] >= 0) grad_v.set(b, key_head % key_heads, keys[i], d, number);
  });
}

// Blocks are (batch row, head, cluster, tile of slots, columns of D).
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(TileOf<T>::THREADS) gradients_of_slots(Inputs<T> in, Lists lists, int64_t tiles, int64_t slices, const float* statistics,
                                                                       const float* mass, float* slots_k, float* slots_v) {
  using Tile = TileOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Tile::QUADS);
  CUDA_OPS_SHARED(int32_t, queries, TILE);
  CUDA_OPS_SHARED(int32_t, keys, TILE);
  CUDA_OPS_SHARED(float, listed, TILE * STATISTICS);
  const int64_t d0 = device::block() % slices * TILE, j0 = device::block() / slices % tiles * TILE, c = device::block() / slices / tiles % lists.C;
  const Cluster cluster = cluster_of(lists, in.tokens, in.shape, device::block() / slices / tiles / lists.C, c);
  if (j0 >= cluster.keys) return;
  typename Tile::Numbers sum_k, sum_v;
  add_key_gradients<Tile>(in, cluster, statistics, j0, d0, KeyTile{memory, queries, keys, listed}, sum_k, sum_v);
  const float factor = cluster.queries ? mass[cluster.cluster] : 0;
  const int64_t place = (cluster.cluster * lists.K + j0) * in.shape.D;
  each_number<Tile>(sum_k, d0, in.shape.D, memory, [&](int i, int64_t d, float number) {
    if (j0 + i < cluster.keys) slots_k[place + i * in.shape.D + d] = factor * in.scale * number;
  });
  each_number<Tile>(sum_v, d0, in.shape.D, memory, [&](int i, int64_t d, float number) {
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
    CUDA_OPS_LAUNCH(statistics_of_rows<T>, blocks, TileOf<T>::THREADS, stream, inputs, lists, parts, statistics);
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
    CUDA_OPS_LAUNCH(gradients_of_queries<T>, blocks, TileOf<T>::THREADS, stream, inputs, lists, parts, slices, statistics, mass, mean_grad, out);
  });
}

void key_gradients(const Incoming& in, const float* statistics, const Vectors& grad_k, const Vectors& grad_v, Stream stream) {
  const int64_t tiles = tiles_of(in.shape.N), slices = tiles_of(in.shape.D), blocks = in.shape.B * key_heads_of(in.shape) * tiles * slices;
  if (!blocks) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    const Heads<T> out_k(grad_k), out_v(grad_v);
    CUDA_OPS_LAUNCH(gradients_of_keys<T>, blocks, TileOf<T>::THREADS, stream, inputs, tiles, slices, statistics, out_k, out_v);
  });
}

void listed_key_gradients(const Incoming& in, const Lists& lists, const float* statistics, const float* mass, float* slots_k, float* slots_v, Stream stream) {
  const int64_t tiles = tiles_of(lists.K), slices = tiles_of(in.shape.D), blocks = in.shape.B * in.shape.H * lists.C * tiles * slices;
  if (!blocks) return;
  with_type(in.q.type, [&](auto type) {
    using T = decltype(type);
    const Inputs<T> inputs(in);
    CUDA_OPS_LAUNCH(gradients_of_slots<T>, blocks, TileOf<T>::THREADS, stream, inputs, lists, tiles, slices, statistics, mass, slots_k, slots_v);
  });
}

}  // namespace cuda_ops::launch
