#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor exact_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& assignment, const Tensor& top_keys, const Tensor& top_mass, double scale) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(top_keys.dim() == 4, "top_keys must be (B, H, C, K)");
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), C = top_keys.size(2), K = top_keys.size(3), group = H / k.size(1);
  check_shape("assignment", assignment, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, C, K});
  check_shape("top_mass", top_mass, {B, H, C});
  check_type("assignment", assignment, ScalarType::Int);
  check_type("top_keys", top_keys, ScalarType::Int);
  const Dtype accumulation = accumulation_of(q);
  check_type("top_mass", top_mass, scalar_type(accumulation));
  const Sizes sizes{N, D, C, K, 0, 0};
  const Tensor groups = torch::stable::contiguous(assignment), top = torch::stable::contiguous(top_keys), mass = torch::stable::contiguous(top_mass);
  Tensor out = empty({B, H, N, D}, scalar_type(accumulation));
  const Heads queries(q), keys(k), values(v), result(out);
  const int32_t *group_of = static_cast<const int32_t*>(groups.data_ptr()), *listed = static_cast<const int32_t*>(top.data_ptr());
  const char* masses = static_cast<const char*>(mass.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    const int64_t i = b * H + h;
    kernels(accumulation)
        .exact_attention(queries(b, h), keys(b, h / group), values(b, h / group), group_of + i * N, listed + i * C * K, masses + i * C * bytes_of(accumulation), sizes,
                         scale, result(b, h).base, scratch);
  });
  return out;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("exact_attention", TORCH_BOX(&exact_attention)); }
}  // namespace cuda_ops::cpu
