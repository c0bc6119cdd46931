#include "kernels/top_keys.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

Tensor top_keys(const Tensor& scores, const std::optional<Tensor>& mask, int64_t topk) {
  STD_TORCH_CHECK(scores.dim() == 4 && topk >= 0, "scores must be (B, H, C, N) and topk not negative");
  check_type("scores", scores, ScalarType::Float);
  const int64_t B = scores.size(0), H = scores.size(1), C = scores.size(2), N = scores.size(3), K = topk < N ? topk : N;
  const Stream stream = stream_of(scores);
  const Tensor packed = torch::stable::contiguous(scores);
  Tensor top = empty_integers(scores, {B, H, C, K});
  const ValidTokens valid(scores, mask, B, N, stream);
  launch::top_keys(data<const float>(packed), valid.all(), B, H, one_step(C, K, 1, 0), data<int32_t>(top), stream);
  return top;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(top_keys); }
}  // namespace cuda_ops
