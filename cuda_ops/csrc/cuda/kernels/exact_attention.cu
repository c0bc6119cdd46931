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
    return rest ? exact + rest[d] : exact;
  }
  CUDA_OPS_DEVICE void operator()(int d, float sum) const { row.set(d, with_rest(d, sum)); }
  CUDA_OPS_DEVICE void operator()(int d, float first, float second) const { row.set(d, with_rest(d, first), with_rest(d + 1, second)); }
};

// For a multiprocessor at least: so many blocks of the smallest heads for which nvcc's registers do.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int SMALL_BLOCKS = 4;
#else
constexpr int SMALL_BLOCKS = 5;
#endif
template <class T, int SIZE>
constexpr int BLOCKS = ON_TENSOR_CORES<T> && SIZE <= 64 ? SMALL_BLOCKS : 1;

// Blocks are (batch row, head, QUERIES members of a cluster).
template <class T, int SIZE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS((AttentionOf<T, SIZE>::THREADS), (BLOCKS<T, SIZE>))
attend_top(Heads<T> q, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups, const int32_t* top_keys, const float* top_mass, Budgets budgets,
           int32_t segments, float scale, cuda_ops::Rest rest, Output<T> out) {
  using Attention = AttentionOf<T, SIZE>;
  constexpr int QUERIES = Attention::QUERIES;
  CUDA_OPS_SHARED(Quad, memory, Attention::QUADS);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(float, others, SIZE);
  const int32_t head = int32_t(device::block()) / segments, b = head / int32_t(shape.H), h = head % int32_t(shape.H), C = int32_t(budgets.C);
  const int64_t N = tokens.N;
  const int32_t* first = groups.first + int64_t(head) * (C + 1);
  const Segment own = find_segment(first, C, QUERIES, int32_t(device::block()) % segments);
  if (own.cluster < 0) return;
  const int t = device::thread();
  const int64_t cluster = int64_t(head) * C + own.cluster;
  const int32_t begin = first[own.cluster] + own.rank, count = smaller(QUERIES, first[own.cluster + 1] - begin);
  if (t < count) {
    position[t] = int32_t(position_of(tokens, b, groups.order[head * N + begin + t]));
    if (rest.log_mass) rest.log_mass[head * N + position[t]] = rest.centroid_log_mass[cluster];
  }
  for (int d = t; d < SIZE && rest.values; d += Attention::THREADS) others[d] = d < shape.D ? rest.values[cluster * shape.D + d] : 0;
  const int32_t* list = top_keys + cluster * budgets.K;
  const int listed = named_keys(list, int(budgets.K), N);
  const float mass = listed ? top_mass[cluster] : 0;
  Attention attention(memory);
  device::barrier();
  const QueryRows<T> queries{q, b, h, shape.D, count, position, scale};
  attention.start(queries);
  attention.add(queries, ListedKeys<T>{k, v, b, h / int32_t(shape.group), shape.D, listed, list});
  attention.close();
  const float* rest_row = rest.values ? others : nullptr;
  write_rows(attention, out, queries, [&](const auto& row, int, float total) { return TopRow<std::decay_t<decltype(row)>>{row, rest_row, listed ? mass / total : 0}; });
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
      CUDA_OPS_LAUNCH((attend_top<T, SIZE>), blocks, Attention::THREADS, stream, queries, keys, values, tokens, shape, groups, top_keys, top_mass, budgets, int32_t(segments),
                      scale, rest, Output<T>(out));
    });
  });
}

}  // namespace cuda_ops::launch
