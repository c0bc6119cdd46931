#include "refined_attention.h"

#include "attend.h"
#include "segments.h"
#include "top_list.h"

namespace {

constexpr int NEIGHBOURS = 12, LANES = 8;  // so many neighbours of a query at a time, so many threads to a pair

// The virtual keys of one cluster: logits x . K_cm + (ln Z_cm - mean . K_cm) + min(1, |x - mean|^2 spread_cm / 2). In 16 bits a key is two numbers, relative to the
// mean of the keys, and all of the logit is computed from what they add up to: with one number it would be 0.4 off where scores are 200.
template <class T>
struct CellKeys {
  const float *keys, *values, *log_mass, *spread, *mean;
  int64_t D, count;
  float *shift, *own_spread;  // (KEYS): of one tile, shared
  const float* half;          // (QUERIES): |x - mean|^2 / 2
  const float* own;           // (QUERIES): (x - mean) . middle
  const float* middle;        // (D): the mean of the keys; 0 for float32
  static constexpr int PARTS = std::is_same_v<T, float> ? 1 : 2;
  CUDA_OPS_DEVICE float part_of_key(int64_t j, int64_t d, int part) const {
    float rest = keys[j * D + d] - middle[d];
    T stored;
    narrow(rest, stored);
    if (part == 0) return widen(stored);
    rest -= widen(stored);
    narrow(rest, stored);
    return widen(stored);
  }
  CUDA_OPS_DEVICE float key(int64_t j, int64_t d) const { return PARTS == 1 ? part_of_key(j, d, 0) : part_of_key(j, d, 0) + part_of_key(j, d, 1); }
  CUDA_OPS_DEVICE float value(int64_t j, int64_t d) const { return values[j * D + d]; }
  CUDA_OPS_DEVICE void copy_key(int64_t j, int64_t d, int part, T* to) const {
    for (int i = 0; i < 8; ++i) narrow(j < count && d + i < D ? part_of_key(j, d + i, part) : 0, to[i]);
  }
  CUDA_OPS_DEVICE void copy_value(int64_t j, int64_t d, T* to) const {
    for (int i = 0; i < 8; ++i) narrow(j < count && d + i < D ? value(j, d + i) : 0, to[i]);
  }
  CUDA_OPS_DEVICE void prepare(int64_t j0) const {
    const int lane = device::thread() % WARP;
    for (int j = device::thread() / WARP; j < KEYS; j += device::threads() / WARP) {
      const bool here = j0 + j < count;
      float product = 0;
      for (int64_t d = lane; d < D && here; d += WARP) product = device::fma(mean[d], key(j0 + j, d), product);
      product = warp_sum(product);
      if (lane == 0 && here) shift[j] = log_mass[j0 + j] - product;
      if (lane == 0 && here) own_spread[j] = spread[j0 + j];
    }
  }
  CUDA_OPS_DEVICE float logit(float product, int64_t r, int64_t j) const { return product + (own[r] + shift[j] + lesser(half[r] * own_spread[j], 1)); }
};

// The neighbours of the queries of a block, NEIGHBOURS of each at a time: two logits a pair, of the exact product and of what the tail has already counted.
struct Neighbours {
  int32_t* position;      // (QUERIES, NEIGHBOURS): of the key, -1 where there is nothing to exchange
  float *exact, *counted;  // (QUERIES, NEIGHBOURS)
  const int32_t* index;   // (QUERIES): of the queries among the valid tokens
};

template <int QUERIES, class T, class Cells>
CUDA_OPS_DEVICE void neighbour_logits(const QueryRows<T>& queries, const ListedKeys<T>& top, const Cells& cells, const float* scores, const int32_t* key_assignment,
                                      int64_t n, int64_t first, int width, const Neighbours& near) {
  const int lane = device::thread() % LANES;
  for (int p0 = 0; p0 < QUERIES * width; p0 += device::threads() / LANES) {
    const int pair = p0 + device::thread() / LANES, r = pair / width, w = pair % width;
    const bool asked = pair < QUERIES * width && r < queries.count;
    const int64_t j = asked ? near.index[r] + first + w : -1, position = j >= 0 && j < n ? position_of(top.tokens, queries.b, j) : -1;
    const bool here = position >= 0 && !holds(top.list, top.count, position);
    const int64_t m = here ? key_assignment[position] : -1;
    const bool in_tail = m >= 0 && m < cells.count;
    float exact = 0, share = 0;
    for (int64_t d = lane; d < queries.D && here; d += LANES) {
      const float x = queries.at(r, d);
      exact = device::fma(x, top.k.at(queries.b, top.h, position, d), exact);
      if (in_tail) share = device::fma(x - cells.mean[d], cells.keys[m * queries.D + d], share);
    }
    for (int lanes = LANES / 2; lanes; lanes /= 2) {
      exact += device::shuffle_xor(exact, lanes);
      share += device::shuffle_xor(share, lanes);
    }
    if (lane == 0 && pair < QUERIES * width) {
      const int place = r * NEIGHBOURS + w;
      near.position[place] = int32_t(here ? position : -1);
      near.exact[place] = here ? exact : -infinity();
      near.counted[place] = in_tail ? scores[position] + (share + lesser(cells.half[r] * cells.spread[m], 1)) : -infinity();
    }
  }
  device::barrier();
}

// Takes the neighbours into the running softmax; what is left of a pair is the difference of its two numerators.
template <int QUERIES>
CUDA_OPS_DEVICE void weigh_neighbours(const Running& running, int width, const Neighbours& near) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < QUERIES; r += device::threads() / WARP) {
    const int place = r * NEIGHBOURS + lane;
    const bool here = lane < width && near.position[place] >= 0;
    const float exact = here ? near.exact[place] : -infinity(), counted = here ? near.counted[place] : -infinity();
    const float most = warp_largest(larger(larger(exact, counted), running.largest[r]));
    const float weight = here ? numerator(exact, most) - numerator(counted, most) : 0, sum = warp_sum(weight);
    if (lane < width) near.exact[place] = weight;
    device::warp_barrier();  // every lane has read the largest
    if (lane == 0) running.take(r, most, sum);
  }
  device::barrier();
}

// Blocks are (batch row, head, QUERIES members of a cluster).
template <class T, class Out, int SIZE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK((AttentionOf<T, SIZE>::THREADS)) attend_refined(Heads<T> q, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups,
                                                                               cuda_ops::Refined refined, Budgets budgets, int64_t segments, Heads<Out> out,
                                                                               float* log_mass) {
  using Attention = AttentionOf<T, SIZE>;
  using Stored = std::conditional_t<(SIZE > 128), float, T>;
  constexpr int QUERIES = Attention::QUERIES, WARPS = Attention::THREADS / WARP;
  CUDA_OPS_SHARED(Quad, memory, Attention::QUADS);
  CUDA_OPS_SHARED(int32_t, index, QUERIES);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(int32_t, counters, WARPS);
  CUDA_OPS_SHARED(Segment, found, 1);
  CUDA_OPS_SHARED(float, half, QUERIES);
  CUDA_OPS_SHARED(float, own_product, QUERIES);
  CUDA_OPS_SHARED(float, middle, SIZE);
  CUDA_OPS_SHARED(float, shift, KEYS);
  CUDA_OPS_SHARED(float, spread, KEYS);
  CUDA_OPS_SHARED(int32_t, near_position, QUERIES * NEIGHBOURS);
  CUDA_OPS_SHARED(float, near_exact, QUERIES * NEIGHBOURS);
  CUDA_OPS_SHARED(float, near_counted, QUERIES * NEIGHBOURS);
  const int64_t head = device::block() / segments, b = head / shape.H, h = head % shape.H, N = tokens.N, D = shape.D, C = budgets.C, M = budgets.M;
  const int32_t* first = groups.first + head * (C + 1);
  const Segment own = find_segment(first, C, QUERIES, device::block() % segments, counters, found);
  if (own.cluster < 0) return;
  const int t = device::thread(), lane = t % WARP;
  const int64_t n = count_of(tokens, b), cluster = head * C + own.cluster;
  const int64_t begin = first[own.cluster] + own.rank, count = smaller(int64_t(QUERIES), first[own.cluster + 1] - begin);
  if (t < count) {
    index[t] = groups.order[head * N + begin + t];
    position[t] = int32_t(position_of(tokens, b, index[t]));
  }
  const cuda_ops::Cells& cells = refined.cells;
  const CellKeys<Stored> tail{cells.keys + cluster * M * D,   cells.values + cluster * M * D,   cells.log_mass + cluster * M,
                              cells.spread + cluster * M,     refined.means + cluster * D,      D,
                              step_of(budgets, n).key_clusters, shift, spread, half, own_product, middle};
  for (int64_t d = t; d < D; d += Attention::THREADS) {
    float sum = 0;
    for (int64_t m = 0; m < tail.count && !std::is_same_v<Stored, float>; ++m) sum += tail.keys[m * D + d];
    middle[d] = sum / float(tail.count);
  }
  Attention attention(memory);
  device::barrier();
  const QueryRows<T> queries{q, b, h, D, count, position, refined.scale};
  const int32_t* list = refined.top_keys + cluster * budgets.K;
  const ListedKeys<T> top{k, v, b, h / shape.group, D, named_keys(list, budgets.K, N), list, tokens};
  for (int64_t r = t / WARP; r < QUERIES; r += WARPS) {
    float square = 0, product = 0;
    for (int64_t d = lane; d < D && r < count; d += WARP) {
      const float away = queries.at(r, d) - tail.mean[d];
      square = device::fma(away, away, square);
      product = device::fma(away, middle[d], product);
    }
    square = warp_sum(square);
    product = warp_sum(product);
    if (lane == 0) half[r] = square / 2;
    if (lane == 0) own_product[r] = product;
  }
  attention.start(queries);
  attention.add(queries, top);
  attention.add(queries, tail);
  attention.publish();
  const Running& running = attention.running();
  const int64_t band = smaller(refined.band, n), width = band ? 2 * band + 1 : 0;
  const Neighbours near{near_position, near_exact, near_counted, index};
  for (int64_t w0 = 0; w0 < width; w0 += NEIGHBOURS) {
    const int here = int(smaller(int64_t(NEIGHBOURS), width - w0));
    neighbour_logits<QUERIES>(queries, top, tail, refined.scores + cluster * N, refined.key_assignment + head * N, n, w0 - band, here, near);
    weigh_neighbours<QUERIES>(running, here, near);
    attention.add_own(v, b, h / shape.group, D, here, NEIGHBOURS, near_position, near_exact);
  }
  attention.each(count, D, [&](int r, int64_t d, float sum) { out.set(b, h, position[r], d, sum / running.total[r]); });
  if (t < count) log_mass[head * N + position[t]] = running.largest[t] + device::logarithm(running.total[t]);
}

}  // namespace

namespace cuda_ops::launch {

void refined_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, const Refined& refined,
                       const Budgets& budgets, const Vectors& out, float* log_mass, Stream stream) {
  if (!shape.B || !shape.H || !tokens.N) return;
  with_type(q.type, [&](auto type) {
    with_size(shape.D, [&](auto size) {
      using T = decltype(type);
      constexpr int SIZE = decltype(size)::value;
      using Attention = AttentionOf<T, SIZE>;
      const int64_t segments = (tokens.N + Attention::QUERIES - 1) / Attention::QUERIES + budgets.C, blocks = shape.B * shape.H * segments;
      const Heads<T> queries(q), keys(k), values(v);
      const auto run = [&](auto out_type) {
        using Out = decltype(out_type);
        const Heads<Out> result(out);
        CUDA_OPS_LAUNCH((attend_refined<T, Out, SIZE>), blocks, Attention::THREADS, stream, queries, keys, values, tokens, shape, groups, refined, budgets, segments, result,
                        log_mass);
      };
      if (out.type == Type::float32) run(float());
      else run(T());
    });
  });
}

}  // namespace cuda_ops::launch
