#include "centroids.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> centroid_attention(const Tensor& scores, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& top_keys) {
  STD_TORCH_CHECK(scores.dim() == 4 && v.dim() == 4 && top_keys.dim() == 4 && v.size(1) > 0 && scores.size(1) % v.size(1) == 0,
                  "scores must be (B, H, C, N), v (B, H_kv, N, D) and top_keys (B, H, C, K), H a multiple of H_kv");
  const int64_t B = scores.size(0), H = scores.size(1), C = scores.size(2), N = scores.size(3), D = v.size(3), K = top_keys.size(3);
  check_shape("v", v, {B, v.size(1), N, D});
  check_shape("top_keys", top_keys, {B, H, C, K});
  check_type("top_keys", top_keys, ScalarType::Int);
  check_type("scores", scores, ScalarType::Float);
  const Stream stream = stream_of(scores);
  const Shape shape = shape_of(scores, v, D);
  const Tensor packed = torch::stable::contiguous(scores), top = torch::stable::contiguous(top_keys);
  const ValidTokens valid(scores, mask, B, N, stream);
  const CentroidAttention result(scores, shape, C);
  launch::centroid_attention(data<const float>(packed), vectors(v), valid.all(), shape, integers(top), one_step(C, K, 0, 0), data<float>(result.part_sums),
                             data<float>(result.part_masses), data<float>(result.rest), data<float>(result.top_mass), data<float>(result.log_mass), stream);
  return {result.rest, result.top_mass, result.log_mass};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(centroid_attention); }
}  // namespace cuda_ops
