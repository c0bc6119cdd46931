#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor> cluster_codes(const Tensor& codes, const std::optional<Tensor>& mask, int64_t bits, int64_t clusters, int64_t iterations) {
  const int64_t words = (bits + 63) / 64;
  STD_TORCH_CHECK(bits > 0 && clusters > 0 && iterations >= 0, "bits and clusters must be positive, iterations not negative");
  STD_TORCH_CHECK(codes.dim() == 4 && codes.size(3) == words, "codes must be (B, H, N, ceil(bits / 64))");
  check_type("codes", codes, ScalarType::Long);
  const int64_t B = codes.size(0), H = codes.size(1), N = codes.size(2);
  const Sizes sizes{N, 0, clusters, 0, bits, 0};
  const Tensor packed = torch::stable::contiguous(codes);
  Tensor assignment = empty({B, H, N}, ScalarType::Int), centroids = empty({B, H, clusters, words}, ScalarType::Long);
  const ValidTokens valid(mask, B, N);
  const int64_t* in = static_cast<const int64_t*>(packed.data_ptr());
  int32_t* out = static_cast<int32_t*>(assignment.data_ptr());
  int64_t* centers = static_cast<int64_t*>(centroids.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    const int64_t i = b * H + h;
    kernels(Dtype::float32).cluster_codes(in + i * N * words, valid[b], sizes, iterations, out + i * N, centers + i * clusters * words, scratch);
  });
  return {assignment, centroids};
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("cluster_codes", TORCH_BOX(&cluster_codes)); }
}  // namespace cuda_ops::cpu
