#include "tensors.h"

#include <climits>

#include "kernels/valid_tokens.h"

namespace cuda_ops {

ValidTokens::ValidTokens(const Tensor& like, const std::optional<Tensor>& mask, int64_t B, int64_t N, Stream stream) : tokens_{nullptr, nullptr, nullptr, N, 0, INT64_MAX} {
  if (!mask) return;
  check_shape("mask", *mask, {B, N});
  check_type("mask", *mask, ScalarType::Bool);
  positions_ = empty_integers(like, {B, N});
  indices_ = empty_integers(like, {B, N});
  counts_ = empty_integers(like, {B});
  int32_t *positions = data<int32_t>(*positions_), *indices = data<int32_t>(*indices_), *counts = data<int32_t>(*counts_);
  launch::list_valid_tokens({data<const bool>(*mask), mask->stride(0), mask->stride(1)}, B, N, positions, indices, counts, stream);
  tokens_.positions = positions;
  tokens_.indices = indices;
  tokens_.counts = counts;
}

Tokens ValidTokens::rows(int64_t least, int64_t most) const {
  Tokens some = tokens_;
  some.least = least;
  some.most = most;
  return some;
}

}  // namespace cuda_ops
