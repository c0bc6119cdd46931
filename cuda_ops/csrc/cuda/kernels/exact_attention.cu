#include "exact_attention.h"

#include "attend.h"
#include "segments.h"

namespace {

// A query's row of the output: its sums times `share`, and what its cluster's other keys give it, if anything.
template <class Row>
struct TopRow {
  Row row;
  const float* rest;
  float share;
  CUDA_OPS_DEVICE float with_rest(int d, float sum) const {
    const float exact = share == 0 ? 0 : sum * share;  // without keys the sum is of no numbers
    return rest && d < row.D ? exact + rest[d] : exact;
  }
  CUDA_OPS_DEVICE void operator()(int d, float sum) const { row.set(d, with_rest(d, sum)); }
  CUDA_OPS_DEVICE void operator()(int d, float first, float second) const { row.set(d, with_rest(d, first), with_rest(d + 1, second)); }
};

// Blocks are (batch row, head, QUERIES members of a cluster).
template <class T, int SIZE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK((AttentionOf<T, SIZE>::THREADS)) attend_top(Heads<T> q, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups,
                                                                           const int32_t* top_keys, const float* top_mass, Budgets budgets, int64_t segments, float scale,
                                                                           cuda_ops::Rest rest, Output<T> out) {
  using Attention = AttentionOf<T, SIZE>;
  constexpr int QUERIES = Attention::QUERIES;
  CUDA_OPS_SHARED(Quad, memory, Attention::QUADS);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(int32_t, counters, Attention::THREADS / WARP);
  CUDA_OPS_SHARED(Segment, found, 1);
  const int64_t head = device::block() / segments, b = head / shape.H, h = head % shape.H, N = tokens.N, C = budgets.C;
  const int32_t* first = groups.first + head * (C + 1);
  const Segment own = find_segment(first, C, QUERIES, device::block() % segments, counters, found);
  if (own.cluster < 0) return;
  const int t = device::thread();
  const int64_t begin = first[own.cluster] + own.rank, count = smaller(int64_t(QUERIES), first[own.cluster + 1] - begin), cluster = head * C + own.cluster;
  if (t < count) position[t] = int32_t(position_of(tokens, b, groups.order[head * N + begin + t]));
  const int32_t* list = top_keys + cluster * budgets.K;
  const int64_t listed = named_keys(list, budgets.K, N);
  Attention attention(memory);
  device::barrier();
  const QueryRows<T> queries{q, b, h, shape.D, count, position, scale};
  attention.start(queries);
  attention.add(queries, ListedKeys<T>{k, v, b, h / shape.group, shape.D, listed, list, tokens});
  attention.close();
  const float mass = listed ? top_mass[cluster] : 0;
  const float* others = rest.values ? rest.values + cluster * shape.D : nullptr;
  write_rows(attention, out, queries, [&](const auto& row, int, float total) { return TopRow<std::decay_t<decltype(row)>>{row, others, listed ? mass / total : 0}; });
  if (rest.log_mass && t < count) rest.log_mass[head * N + position[t]] = rest.centroid_log_mass[cluster];
}

}  // namespace

namespace cuda_ops::launch {

void exact_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, const int32_t* top_keys,
                     const float* top_mass, const Budgets& budgets, float scale, const Rest& rest, const Vectors& out, Stream stream) {
  if (!shape.B || !shape.H || !tokens.N) return;
  with_type(q.type, [&](auto type) {
    with_size(shape.D, [&](auto size) {
      using T = decltype(type);
      constexpr int SIZE = decltype(size)::value;
      using Attention = AttentionOf<T, SIZE>;
      const int64_t segments = (tokens.N + Attention::QUERIES - 1) / Attention::QUERIES + budgets.C, blocks = shape.B * shape.H * segments;
      const Heads<T> queries(q), keys(k), values(v);
      CUDA_OPS_LAUNCH((attend_top<T, SIZE>), blocks, Attention::THREADS, stream, queries, keys, values, tokens, shape, groups, top_keys, top_mass, budgets, segments, scale,
                      rest, Output<T>(out));
    });
  });
}

}  // namespace cuda_ops::launch
