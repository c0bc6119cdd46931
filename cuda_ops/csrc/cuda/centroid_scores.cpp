#include "kernels/centroid_scores.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

Tensor centroid_scores(const Tensor& centroids, const Tensor& k, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(centroids.dim() == 4 && k.dim() == 4 && k.size(1) > 0 && centroids.size(1) % k.size(1) == 0 && centroids.size(3) == k.size(3),
                  "centroids must be (B, H, C, D) and k (B, H_kv, N, D), H a multiple of H_kv");
  const int64_t B = k.size(0), H = centroids.size(1), N = k.size(2), D = k.size(3), C = centroids.size(2);
  check_shape("centroids", centroids, {B, H, C, D});
  check_type("centroids", centroids, ScalarType::Float);
  const Stream stream = stream_of(k);
  const Tensor packed = torch::stable::contiguous(centroids);
  Tensor scores = empty_floats(k, {B, H, C, N});
  const ValidTokens valid(k, mask, B, N, stream);
  const Budgets budgets{C, 0, 0, 1, {{0, int32_t(C), 0, 0, 0}}};
  launch::centroid_scores(data<const float>(packed), vectors(k), valid.all(), {B, H, N, D, H / k.size(1)}, budgets, data<float>(scores), stream);
  return scores;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(centroid_scores); }
}  // namespace cuda_ops
