#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> centroid_attention(const Tensor& scores, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& top_keys) {
  STD_TORCH_CHECK(scores.dim() == 4 && v.dim() == 4 && top_keys.dim() == 4 && v.size(1) > 0 && scores.size(1) % v.size(1) == 0,
                  "scores must be (B, H, C, N), v (B, H_kv, N, D) and top_keys (B, H, C, K), H a multiple of H_kv");
  const int64_t B = scores.size(0), H = scores.size(1), C = scores.size(2), N = scores.size(3), D = v.size(3), K = top_keys.size(3), group = H / v.size(1);
  check_shape("v", v, {B, v.size(1), N, D});
  check_shape("top_keys", top_keys, {B, H, C, K});
  check_type("top_keys", top_keys, ScalarType::Int);
  const Dtype accumulation = accumulation_of(v);
  check_type("scores", scores, scalar_type(accumulation));
  const Sizes sizes{N, D, C, K, 0, 0};
  const Tensor packed = torch::stable::contiguous(scores), top = torch::stable::contiguous(top_keys);
  Tensor rest = empty({B, H, C, D}, scalar_type(accumulation)), top_mass = empty({B, H, C, 1}, scalar_type(accumulation)),
         log_mass = empty({B, H, C, 1}, scalar_type(accumulation));
  const ValidTokens valid(mask, B, N);
  const Heads in(packed), values(v), out(rest), mass(top_mass), log_sum(log_mass);
  const int32_t* keys = static_cast<const int32_t*>(top.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation)
        .centroid_attention(in(b, h).base, N, values(b, h / group), valid[b], sizes, keys + (b * H + h) * C * K, out(b, h).base, mass(b, h).base, log_sum(b, h).base,
                            scratch);
  });
  return {rest, torch::stable::select(top_mass, 3, 0), torch::stable::select(log_mass, 3, 0)};
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("centroid_attention", TORCH_BOX(&centroid_attention)); }
}  // namespace cuda_ops::cpu
