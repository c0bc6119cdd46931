#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor top_keys(const Tensor& scores, const std::optional<Tensor>& mask, int64_t topk) {
  STD_TORCH_CHECK(scores.dim() == 4 && topk >= 0, "scores must be (B, H, C, N) and topk not negative");
  STD_TORCH_CHECK(dtype_of(scores) == accumulation_of(scores), "scores must be float32 or float64");
  const int64_t B = scores.size(0), H = scores.size(1), C = scores.size(2), N = scores.size(3), K = topk < N ? topk : N;
  const Sizes sizes{N, 0, C, K, 0, 0};
  const Dtype accumulation = accumulation_of(scores);
  const Tensor packed = torch::stable::contiguous(scores);
  Tensor top = empty({B, H, C, K}, ScalarType::Int);
  const ValidTokens valid(mask, B, N);
  const Heads in(packed);
  int32_t* out = static_cast<int32_t*>(top.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation).top_keys(in(b, h).base, N, valid[b], sizes, out + (b * H + h) * C * K, scratch);
  });
  return top;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("top_keys", TORCH_BOX(&top_keys)); }
}  // namespace cuda_ops::cpu
