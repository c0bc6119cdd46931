// How tensors are handed to the kernels' launchers: raw pointers, strides in elements.
#pragma once
#include "device.h"

namespace cuda_ops {

enum class Type { float32, bfloat16, float16 };

// A strided (B, H, N, D) tensor.
struct Vectors {
  void* base;
  int64_t batch, head, token, element;
  Type type;
};

struct Mask {
  const bool* base;  // none: every token is valid
  int64_t batch, token;
};

// H query heads, `group` of them to a key head.
struct Shape {
  int64_t B, H, N, D, group;
};

// The valid tokens of every batch row, ascending: index i in 0 … n - 1 is that of token position(i), index -1 that of a padded one. Without lists all tokens are
// valid. Rows with fewer tokens than `least`, or with `most` or more, count as empty: the methods share a batch by its rows.
struct Tokens {
  const int32_t *positions, *indices, *counts;  // (B, N), (B, N), (B)
  int64_t N, least, most;
};

// Calls run(T()) with T the type of the numbers.
template <class Run>
inline void with_type(Type type, const Run& run) {
  if (type == Type::float32) run(float());
  if (type == Type::bfloat16) run(bfloat16());
  if (type == Type::float16) run(float16());
}

}  // namespace cuda_ops

namespace {

using cuda_ops::Shape;
using cuda_ops::Tokens;

// The same for a kernel, with the type that it was compiled for.
template <class T>
struct Heads {
  T* base;
  int64_t batch, head, token, element;
  bool eights;  // eight 16-bit numbers of a row can be read at once

  explicit Heads(const cuda_ops::Vectors& x) : base(static_cast<T*>(x.base)), batch(x.batch), head(x.head), token(x.token), element(x.element) {
    eights = sizeof(T) == 2 && element == 1 && batch % 8 == 0 && head % 8 == 0 && token % 8 == 0 && uintptr_t(base) % 16 == 0;
  }
  CUDA_OPS_DEVICE int64_t offset(int64_t b, int64_t h, int64_t i, int64_t d) const { return b * batch + h * head + i * token + d * element; }
  CUDA_OPS_DEVICE float at(int64_t b, int64_t h, int64_t i, int64_t d) const { return widen(base[offset(b, h, i, d)]); }
  CUDA_OPS_DEVICE void set(int64_t b, int64_t h, int64_t i, int64_t d, float value) const { narrow(value, base[offset(b, h, i, d)]); }
};

CUDA_OPS_DEVICE int64_t count_of(const Tokens& tokens, int64_t b) {
  const int64_t n = tokens.counts ? tokens.counts[b] : tokens.N;
  return n < tokens.least || n >= tokens.most ? 0 : n;
}
CUDA_OPS_DEVICE int64_t position_of(const Tokens& tokens, int64_t b, int64_t i) { return tokens.positions ? tokens.positions[b * tokens.N + i] : i; }
// -1 for a padded token, and for every token of a row that counts as empty.
CUDA_OPS_DEVICE int64_t index_of(const Tokens& tokens, int64_t b, int64_t position) {
  return count_of(tokens, b) == 0 ? -1 : tokens.indices ? tokens.indices[b * tokens.N + position] : position;
}

}  // namespace
