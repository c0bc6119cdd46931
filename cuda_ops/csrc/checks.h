// What operators check of their tensors on every device. These protect memory; checks for users are in Python.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

namespace cuda_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
  bool same = x.dim() == int64_t(shape.size());
  int64_t d = 0;
  for (int64_t size : shape) same = same && x.size(d++) == size;
  STD_TORCH_CHECK(same, name, " has a shape that does not fit the other tensors");
}
inline void check_type(const char* name, const Tensor& x, ScalarType type) { STD_TORCH_CHECK(x.scalar_type() == type, name, " has another dtype than the operator takes"); }

inline void check_queries(const Tensor& q, const Tensor& k, const Tensor& v) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.size(1) > 0 && q.size(1) % k.size(1) == 0, "q and k must be (B, H, N, D), the heads of q a multiple of those of k");
  check_shape("k", k, {q.size(0), k.size(1), q.size(2), q.size(3)});
  check_shape("v", v, {q.size(0), k.size(1), q.size(2), q.size(3)});
  STD_TORCH_CHECK(q.size(2) <= INT32_MAX, "at most 2^31 - 1 tokens");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "q, k and v must have one dtype");
}

}  // namespace cuda_ops
