#include "full_attention.h"

#include "attend.h"

namespace {

// Blocks are (batch row, head, QUERIES valid queries).
template <class T, int SIZE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK((AttentionOf<T, SIZE>::THREADS)) attend_all(Heads<T> q, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, float scale, Output<T> out,
                                                                           float* log_mass) {
  using Attention = AttentionOf<T, SIZE>;
  constexpr int QUERIES = Attention::QUERIES;
  CUDA_OPS_SHARED(Quad, memory, Attention::QUADS);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  const int64_t tiles = (tokens.N + QUERIES - 1) / QUERIES, head = device::block() / tiles, b = head / shape.H, h = head % shape.H;
  const int64_t n = count_of(tokens, b), first = device::block() % tiles * QUERIES, count = smaller(int64_t(QUERIES), n - first);
  if (count <= 0) return;
  const int t = device::thread();
  if (t < count) position[t] = int32_t(position_of(tokens, b, first + t));
  Attention attention(memory);
  device::barrier();
  const QueryRows<T> queries{q, b, h, shape.D, count, position, scale};
  attention.start(queries);
  attention.add(queries, ListedKeys<T>{k, v, b, h / shape.group, shape.D, n, tokens.positions ? tokens.positions + b * tokens.N : nullptr});
  attention.close();
  write_rows(attention, out, queries, Averages());
  attention.each_total(count, [&](int r, float largest, float total) { log_mass[head * tokens.N + position[r]] = largest + device::logarithm(total); });
}

constexpr int CLEARING = 256;
template <class T>
CUDA_OPS_KERNEL clear_tokens(Tokens tokens, Shape shape, Heads<T> out, float* log_mass) {
  const int64_t tiles = (tokens.N + CLEARING - 1) / CLEARING, head = device::block() / tiles, b = head / shape.H, h = head % shape.H;
  const int64_t first = device::block() % tiles * CLEARING, last = smaller(first + CLEARING, tokens.N);
  for (int64_t token = first + device::thread() / WARP; token < last; token += CLEARING / WARP) {
    if (tokens.indices[b * tokens.N + token] >= 0) continue;
    for (int64_t d = device::thread() % WARP; d < shape.D; d += WARP) out.set(b, h, token, d, 0);
    if (log_mass && device::thread() % WARP == 0) log_mass[head * tokens.N + token] = -infinity();
  }
}

}  // namespace

namespace cuda_ops::launch {

void full_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, float scale, const Vectors& out, float* log_mass,
                    Stream stream) {
  if (!shape.B || !shape.H || !tokens.N) return;
  with_type(q.type, [&](auto type) {
    with_size(shape.D, [&](auto size) {
      using T = decltype(type);
      using Attention = AttentionOf<T, decltype(size)::value>;
      const int64_t blocks = shape.B * shape.H * ((tokens.N + Attention::QUERIES - 1) / Attention::QUERIES);
      const Heads<T> queries(q), keys(k), values(v);
      CUDA_OPS_LAUNCH((attend_all<T, decltype(size)::value>), blocks, Attention::THREADS, stream, queries, keys, values, tokens, shape, scale, Output<T>(out), log_mass);
    });
  });
}

void clear_padding(const Tokens& tokens, const Shape& shape, const Vectors& out, float* log_mass, Stream stream) {
  const int64_t blocks = shape.B * shape.H * ((tokens.N + CLEARING - 1) / CLEARING);
  if (!blocks || !tokens.indices) return;
  with_type(out.type, [&](auto type) {
    const Heads<decltype(type)> result(out);
    CUDA_OPS_LAUNCH(clear_tokens<decltype(type)>, blocks, CLEARING, stream, tokens, shape, result, log_mass);
  });
}

}  // namespace cuda_ops::launch
