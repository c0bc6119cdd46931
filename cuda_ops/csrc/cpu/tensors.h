// From tensors to slices of one (batch, head), the list of valid tokens, and the loop over heads. Checks here protect memory; those for users are in Python.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "dispatch.h"
#include "kernels/interface.h"
#include "workers.h"

namespace cuda_ops::cpu {

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, "a tensor must be float32, float64, bfloat16 or float16");
  }
}
inline Dtype accumulation_of(const Tensor& x) { return dtype_of(x) == Dtype::float64 ? Dtype::float64 : Dtype::float32; }
inline ScalarType scalar_type(Dtype dtype) { return dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float; }
inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}
// (B, H, N, D) as a view of a contiguous (B, N, H, D): what transformers wants transposed back.
inline Tensor empty_heads(int64_t B, int64_t H, int64_t N, int64_t D, ScalarType type) {
  const Tensor x = empty({B, N, H, D}, type);
  ask_for_large_pages(x.data_ptr(), size_t(B * N * H * D * bytes_of(dtype_of(x))));
  return torch::stable::transpose(x, 1, 2);
}

// Data pointers are asked for once, outside of the parallel region.
class Heads {
 public:
  explicit Heads(const Tensor& x) : base_(static_cast<char*>(x.data_ptr())), dtype_(dtype_of(x)), bytes_(x.numel() * bytes_of(dtype_)), batch_(x.stride(0)), head_(x.stride(1)), token_(x.stride(2)), element_(x.stride(3)) {}
  Slice operator()(int64_t b, int64_t h) const { return {base_ + (b * batch_ + h * head_) * bytes_of(dtype_), token_, element_, dtype_, bytes_}; }

 private:
  char* base_;
  Dtype dtype_;
  int64_t bytes_, batch_, head_, token_, element_;
};

// Ascending valid positions of every batch row, shared by its heads.
class ValidTokens {
 public:
  ValidTokens(const std::optional<Tensor>& mask, int64_t B, int64_t N) : N_(N), positions_(size_t(B * N)), counts_(size_t(B)) {
    if (mask) {
      check_shape("mask", *mask, {B, N});
      check_type("mask", *mask, ScalarType::Bool);
    }
    const bool* base = mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < N; ++i)
        if (!mask || base[b * mask->stride(0) + i * mask->stride(1)]) positions_[size_t(b * N + counts_[size_t(b)]++)] = int32_t(i);
  }
  Valid operator[](int64_t b) const { return {positions_.data() + b * N_, counts_[size_t(b)]}; }

 private:
  int64_t N_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> counts_;
};

}  // namespace cuda_ops::cpu
