#include "kernels/hash_vectors.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

Tensor hash_vectors(const Tensor& x, const Tensor& planes, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(x.dim() == 4 && planes.dim() == 2 && planes.size(1) == x.size(3) && planes.size(0) > 0, "x must be (B, H, N, D) and planes (P, D)");
  check_type("planes", planes, ScalarType::Float);
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2), D = x.size(3), P = planes.size(0), words = (P + 63) / 64;
  const Stream stream = stream_of(x);
  const Tensor packed = torch::stable::contiguous(planes);
  Tensor codes = empty(x, {B, H, N, words}, ScalarType::Long);
  const ValidTokens valid(x, mask, B, N, stream);
  launch::hash_vectors(vectors(x), data<const float>(packed), valid.all(), B, H, D, P, data<uint64_t>(codes), stream);
  return codes;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(hash_vectors); }
}  // namespace cuda_ops
