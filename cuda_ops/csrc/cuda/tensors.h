// From tensors to what the kernels take, and how operators are registered.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "device.h"
#include "kernels/budgets.h"

namespace cuda_ops {

// Registers the function `name` as the operator of this name, on its tensors' device, with float64 left to the reference.
#define CUDA_OPS_IMPL(name)                                                                      \
  m.impl(#name, +[](StableIValue* stack, uint64_t inputs, uint64_t outputs) {                   \
    run_on_device("cuda_ops_reference::" #name, TORCH_BOX(&name), stack, inputs, outputs);      \
  })
#define CUDA_OPS_REGISTER STABLE_TORCH_LIBRARY_IMPL(CUDA_OPS_NAMESPACE, CUDA_OPS_KEY, m)

// The tests build the operators for the host, under another name.
#ifndef CUDA_OPS_NAMESPACE
#define CUDA_OPS_NAMESPACE cuda_ops
#define CUDA_OPS_KEY CUDA
#endif

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      STD_TORCH_CHECK(false, "a tensor must be float32, bfloat16 or float16");
  }
}

inline Vectors vectors(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3), type_of(x)}; }
template <class T>
inline T* data(const Tensor& x) { return static_cast<T*>(x.data_ptr()); }
inline const int32_t* integers(const Tensor& x) { return data<const int32_t>(x); }

// Uninitialised, on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}
inline Tensor empty_floats(const Tensor& like, std::initializer_list<int64_t> shape) { return empty(like, shape, ScalarType::Float); }
inline Tensor empty_integers(const Tensor& like, std::initializer_list<int64_t> shape) { return empty(like, shape, ScalarType::Int); }
inline Tensor zero_floats(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), ScalarType::Float);
}
inline Tensor minus_infinity(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor x = empty_floats(like, shape);
  return torch::stable::fill_(x, -HUGE_VAL);
}
inline Tensor zero_integers(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), ScalarType::Int);
}
// (B, H, N, D) as a view of a contiguous (B, N, H, D): what transformers wants transposed back.
inline Tensor empty_heads(const Tensor& like, const Shape& s, ScalarType type) { return torch::stable::transpose(empty(like, {s.B, s.N, s.H, s.D}, type), 1, 2); }

// `queries` is whatever has the batch and the query heads first: (B, H, ...).
inline Shape shape_of(const Tensor& queries, const Tensor& k, int64_t D) {
  STD_TORCH_CHECK(D <= 256, "a head has at most 256 numbers on a GPU");
  return {queries.size(0), queries.size(1), k.size(2), D, queries.size(1) / k.size(1)};
}
inline Shape shape_of(const Tensor& q, const Tensor& k) { return shape_of(q, k, q.size(3)); }

inline Budgets one_step(int64_t C, int64_t K, int64_t M, int64_t sample) {
  return {C, K, M, 1, {{0, int32_t(C), int32_t(K), int32_t(M), int32_t(sample)}}};
}

// The valid tokens of each batch row, and the memory that lists them.
class ValidTokens {
 public:
  ValidTokens(const Tensor& like, const std::optional<Tensor>& mask, int64_t B, int64_t N, Stream stream);
  const Tokens& all() const { return tokens_; }
  // Those of the rows with at least `least` and fewer than `most`.
  Tokens rows(int64_t least, int64_t most = INT64_MAX) const;

 private:
  std::optional<Tensor> positions_, indices_, counts_;
  Tokens tokens_;
};

}  // namespace cuda_ops
