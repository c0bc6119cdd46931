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

// Sends eight numbers of the row of 16-bit numbers that starts at `row`, none for zeros, to shared memory, at once where they can be read so, and zeros behind its end;
// they are there after device::wait_for_copies().
template <class T>
CUDA_OPS_DEVICE void send_eight(const Heads<T>& x, const T* row, int d, int D, T* to) {
  if (!row || d >= D) {
    *reinterpret_cast<Quad*>(to) = Quad{};
  } else if (d + 8 <= D && x.eights) {
    device::copy_sixteen(to, row + d);
  } else {
    CUDA_OPS_UNROLL(1)
    for (int i = 0; i < 8; ++i) to[i] = d + i < D ? row[(d + i) * x.element] : T{};
  }
}

// Keys and values at listed token positions.
template <class T>
struct ListedKeys {
  Heads<T> k, v;
  int64_t b, h, D, count;
  const int32_t* list;  // none: the valid tokens themselves
  Tokens tokens;
  CUDA_OPS_DEVICE int64_t position(int64_t j) const { return list ? list[j] : position_of(tokens, b, j); }
  CUDA_OPS_DEVICE float key(int64_t j, int64_t d) const { return k.at(b, h, position(j), d); }
  CUDA_OPS_DEVICE float value(int64_t j, int64_t d) const { return v.at(b, h, position(j), d); }
  CUDA_OPS_DEVICE void prepare(int64_t) const {}
  CUDA_OPS_DEVICE float logit(float product, int, int) const { return product; }

  // For the tensor cores: a key is one 16-bit number in each place.
  static constexpr int PARTS = 1;
  // Keys and values from j0 on to two tiles of `rows` rows, zeros where there is none.
  template <int SIZE, int STRIDE>
  CUDA_OPS_DEVICE void load(int64_t j0, int rows, T* to_keys, T* to_values) const {
    const int64_t key_head = b * k.batch + h * k.head, value_head = b * v.batch + h * v.head;
    CUDA_OPS_UNROLL(2)
    for (int e = device::thread(); e < rows * (SIZE / 8); e += device::threads()) {
      const int j = e / (SIZE / 8), d = e % (SIZE / 8) * 8;
      const int64_t token = j0 + j < count ? position(j0 + j) : -1;
      send_eight(k, token < 0 ? nullptr : k.base + (key_head + token * k.token), d, int(D), to_keys + j * STRIDE + d);
      send_eight(v, token < 0 ? nullptr : v.base + (value_head + token * v.token), d, int(D), to_values + j * STRIDE + d);
    }
  }
  CUDA_OPS_DEVICE void after(int64_t) const {}
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
