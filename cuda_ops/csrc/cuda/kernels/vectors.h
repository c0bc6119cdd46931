// How tensors are handed to the kernels' launchers: raw pointers, strides in elements.
#pragma once
#include "device.h"

namespace cuda_ops {

enum class Type { float32, bfloat16, float16 };

// A strided (B, H, N, D) tensor.
struct Vectors {
  const void* base;
  int64_t batch, head, token, element;
  Type type;
};

struct Mask {
  const bool* base;  // none: every token is valid
  int64_t batch, token;
};

}  // namespace cuda_ops

namespace {

// The same for a kernel, with the type that it was compiled for.
template <class T>
struct Heads {
  const T* base;
  int64_t batch, head, token, element;

  explicit Heads(const cuda_ops::Vectors& x) : base(static_cast<const T*>(x.base)), batch(x.batch), head(x.head), token(x.token), element(x.element) {}
  CUDA_OPS_DEVICE float at(int64_t b, int64_t h, int64_t i, int64_t d) const { return widen(base[b * batch + h * head + i * token + d * element]); }
};

}  // namespace
