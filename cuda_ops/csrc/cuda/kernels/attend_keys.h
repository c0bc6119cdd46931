// What attention takes and gives: the queries of a block, keys and values of a head, rows of the output.
#pragma once
#include <type_traits>

#include "vectors.h"

namespace {

constexpr int KEYS = 64;  // of a tile

struct alignas(16) Quad {
  float at[4];
};

// A numerator; 0 for no key. Without a single logit above -inf there is nothing to be relative to.
CUDA_OPS_DEVICE float numerator(float logit, float most) { return most != -infinity() ? device::exponential(logit - most) : logit == logit ? 0 : logit; }

// The rows of the queries of a block: `count` of them at these token positions.
template <class T>
struct QueryRows {
  Heads<T> q;
  int64_t b, h, D, count;
  const int32_t* position;
  float scale;
  CUDA_OPS_DEVICE float at(int64_t r, int64_t d) const { return r < count && d < D ? q.at(b, h, position[r], d) * scale : 0; }
};

// A head, that of x whose first number is `head`, and where its rows go to in shared memory.
template <class T>
struct Sent {
  const Heads<T>& x;
  const T* head;
  T* to;
};

// Sends WIDTH numbers from d0 on of `rows` rows, 16-bit numbers of the tokens token(0), token(1) …, zeros where that is negative and behind D, to rows of STRIDE numbers.
// Each of THREADS threads has the same eight numbers of every AT_ONCE-th row, of which `rows` is a multiple; the loop is unrolled so many times. They are there after
// device::wait_for_copies(). Rows that can be read by sixteen bytes have a loop of their own: with the other kind in it, it would be three times as many instructions.
template <int WIDTH, int STRIDE, int THREADS, int UNROLLED, class Token, class... T>
CUDA_OPS_DEVICE void send_rows(int rows, const Token& token, int d0, int D, const Sent<T>&... sent) {
  constexpr int CHUNKS = WIDTH / 8, AT_ONCE = THREADS / CHUNKS;
  const int thread = device::thread() % THREADS;
  const int first = thread / CHUNKS, column = thread % CHUNKS * 8, d = d0 + column;
  if ((sent.x.eights && ...) && D % 8 == 0) {
    CUDA_OPS_UNROLL(UNROLLED)
    for (int r0 = 0; r0 < rows; r0 += AT_ONCE) {
      const int r = r0 + first;
      const int32_t row = token(r);
      const bool here = row >= 0 && d < D;
      const uint32_t read = here ? uint32_t(row) : 0;  // no row before the first one is pointed to
      (device::copy_sixteen(sent.to + r * STRIDE + column, sent.head + d + int64_t(read) * sent.x.token, here), ...);
    }
  } else {
    CUDA_OPS_UNROLL(1)
    for (int r = first; r < rows; r += AT_ONCE) {
      const int32_t row = token(r);
      CUDA_OPS_UNROLL(1)
      for (int i = 0; i < 8; ++i) {
        const bool here = row >= 0 && d + i < D;
        ((sent.to[r * STRIDE + column + i] = here ? sent.head[row * sent.x.token + (d + i) * sent.x.element] : T{}), ...);
      }
    }
  }
}

// Keys and values at listed token positions.
template <class T>
struct ListedKeys {
  Heads<T> k, v;
  int64_t b, h, D, count;
  const int32_t* list;  // none: all tokens
  CUDA_OPS_DEVICE int32_t position(int64_t j) const { return list ? list[j] : int32_t(j); }
  CUDA_OPS_DEVICE float key(int64_t j, int64_t d) const { return k.at(b, h, position(j), d); }
  CUDA_OPS_DEVICE float value(int64_t j, int64_t d) const { return v.at(b, h, position(j), d); }
  CUDA_OPS_DEVICE void prepare(int64_t) const {}
  CUDA_OPS_DEVICE float logit(float product, int, int) const { return product; }

  // For the tensor cores: a key is one 16-bit number in each place.
  static constexpr int PARTS = 1;
  // Keys and values from j0 on to two tiles of `rows` rows, zeros where there is none.
  template <int SIZE, int STRIDE, int THREADS>
  CUDA_OPS_DEVICE void load(int j0, int rows, T* to_keys, T* to_values) const {
    const auto token = [&](int j) { return j0 + j < int(count) ? position(j0 + j) : -1; };
    send_rows<SIZE, STRIDE, THREADS, 1>(rows, token, 0, int(D), Sent<T>{k, k.base + k.offset(b, h, 0, 0), to_keys}, Sent<T>{v, v.base + v.offset(b, h, 0, 0), to_values});
  }
  CUDA_OPS_DEVICE void after(int) const {}
};

// The entries of a list of top keys that name a token: -1 stands behind all of them. Each warp looks at 32 places at once.
CUDA_OPS_DEVICE int named_keys(const int32_t* list, int K, int64_t N) {
  int named = 0;
  for (int left = K; left > 0;) {
    const int step = (left + WARP - 1) / WARP, place = step * (device::thread() % WARP + 1) - 1;
    const int found = device::ones(device::ballot(place < left && uint32_t(list[named + place]) < uint32_t(N))) * step;
    named += found;
    left = smaller(step - 1, left - found);
  }
  return named;
}

// The output, of the type of the inputs or float32.
template <class T>
struct Output {
  void* base;
  int64_t batch, head, token, element;
  bool floats, eights;  // eight 16-bit neighbours can be written at once

  explicit Output(const cuda_ops::Vectors& x) : base(x.base), batch(x.batch), head(x.head), token(x.token), element(x.element), floats(x.type == cuda_ops::Type::float32) {
    eights = !floats && element == 1 && batch % 8 == 0 && head % 8 == 0 && token % 8 == 0 && uintptr_t(base) % 16 == 0;
  }
  CUDA_OPS_DEVICE int64_t row(int64_t b, int64_t h, int64_t position) const { return b * batch + h * head + position * token; }
};

// The row of a token.
template <class T>
struct OutputRow {
  void* base;
  int64_t element;
  int D;
  bool floats;

  CUDA_OPS_DEVICE OutputRow(const Output<T>& x, int64_t b, int64_t h, int64_t token, int64_t D)
      : base(static_cast<char*>(x.base) + (x.floats ? 4 : sizeof(T)) * x.row(b, h, token)), element(x.element), D(int(D)), floats(x.floats) {}
  CUDA_OPS_DEVICE void set(int d, float x) const {
    if (d >= D) return;
    if (floats) static_cast<float*>(base)[d * element] = x;
    else narrow(x, static_cast<T*>(base)[d * element]);
  }
  CUDA_OPS_DEVICE void set(int d, float x, float y) const {
    set(d, x);
    set(d + 1, y);
  }
};
// The same of 16-bit numbers in shared memory.
template <class T>
struct SharedRow {
  T* base;
  int D;
  CUDA_OPS_DEVICE void set(int d, float x, float y) const { *reinterpret_cast<uint32_t*>(base + d) = pair(x, y, T()); }
};

// Writes the rows of queries at these positions: what from_sums(row, r, sum of numerators) returns gets their columns and sums.
template <class T, class Attention, class FromSums>
CUDA_OPS_DEVICE void write_rows(const Attention& attention, const Output<T>& out, const QueryRows<T>& queries, const FromSums& from_sums) {
  const int64_t b = queries.b, h = queries.h, D = queries.D;
  if constexpr (Attention::SHARED_ROWS) {
    if (out.eights && D % 8 == 0) {
      attention.each_row(queries.count, [&](int r, float total) { return from_sums(SharedRow<T>{attention.shared_row(r), int(D)}, r, total); });
      attention.each_eight([&](int r, int d, const Quad* eight) {
        if (r < queries.count && d < D) *reinterpret_cast<Quad*>(static_cast<T*>(out.base) + (out.row(b, h, queries.position[r]) + d)) = *eight;
      });
      return;
    }
  }
  attention.each_row(queries.count, [&](int r, float total) { return from_sums(OutputRow<T>(out, b, h, queries.position[r], D), r, total); });
}

// A row of sums of weighted values, over the sum of the weights.
struct Averages {
  template <class Row>
  CUDA_OPS_DEVICE auto operator()(const Row& row, int, float total) const {
    return [row, share = 1 / total](int d, auto... sums) { row.set(d, sums * share...); };
  }
};

}  // namespace
