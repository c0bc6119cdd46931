#include "kernels/cluster_codes.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor> cluster_codes(const Tensor& codes, const std::optional<Tensor>& mask, int64_t bits, int64_t clusters, int64_t iterations) {
  const int64_t words = (bits + 63) / 64;
  STD_TORCH_CHECK(bits > 0 && bits <= 256 && clusters > 0 && iterations >= 0, "bits must be 1 to 256, clusters positive and iterations not negative");
  STD_TORCH_CHECK(codes.dim() == 4 && codes.size(3) == words, "codes must be (B, H, N, ceil(bits / 64))");
  check_type("codes", codes, ScalarType::Long);
  const int64_t B = codes.size(0), H = codes.size(1), N = codes.size(2);
  const Stream stream = stream_of(codes);
  const Tensor packed = torch::stable::contiguous(codes);
  Tensor assignment = empty_integers(codes, {B, H, N}), centroids = empty(codes, {B, H, clusters, words}, ScalarType::Long);
  const ValidTokens valid(codes, mask, B, N, stream);
  Tensor memory = zero_integers(codes, {launch::cluster_codes_memory(B, H, bits, clusters)});
  launch::cluster_codes(data<const uint64_t>(packed), valid.all(), B, H, bits, clusters, iterations, data<int32_t>(memory), data<int32_t>(assignment),
                        data<uint64_t>(centroids), stream);
  return {assignment, centroids};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(cluster_codes); }
}  // namespace cuda_ops
