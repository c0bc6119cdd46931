#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> tail(const Tensor& scores, const Tensor& k, const Tensor& v, const Tensor& key_clusters, const Tensor& top_keys,
                                                int64_t key_clusters_count) {
  STD_TORCH_CHECK(scores.dim() == 4 && k.dim() == 4 && top_keys.dim() == 4 && k.size(1) > 0 && scores.size(1) % k.size(1) == 0 && key_clusters_count > 0,
                  "scores must be (B, H, C, N), k (B, H_kv, N, D), top_keys (B, H, C, K), H a multiple of H_kv, and key_clusters_count positive");
  const int64_t B = k.size(0), H = scores.size(1), C = scores.size(2), N = k.size(2), D = k.size(3), K = top_keys.size(3), M = key_clusters_count, group = H / k.size(1);
  check_shape("scores", scores, {B, H, C, N});
  check_shape("v", v, {B, k.size(1), N, D});
  check_shape("key_clusters", key_clusters, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, C, K});
  check_type("key_clusters", key_clusters, ScalarType::Int);
  check_type("top_keys", top_keys, ScalarType::Int);
  const Dtype accumulation = accumulation_of(k);
  check_type("scores", scores, scalar_type(accumulation));
  STD_TORCH_CHECK(v.scalar_type() == k.scalar_type(), "k and v must have one dtype");
  const Sizes sizes{N, D, C, K, 0, M};
  const ScalarType type = scalar_type(accumulation);
  const Tensor packed = torch::stable::contiguous(scores), cells = torch::stable::contiguous(key_clusters), top = torch::stable::contiguous(top_keys);
  Tensor log_mass = empty({B, H, C, M}, type), spread = empty({B, H, C, M}, type), keys = empty({B, H, C, M, D}, type), values = empty({B, H, C, M, D}, type);
  const Heads in(packed), key_rows(k), value_rows(v), masses(log_mass), spreads(spread), out_keys(keys), out_values(values);
  const int32_t *cell_of = static_cast<const int32_t*>(cells.data_ptr()), *listed = static_cast<const int32_t*>(top.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    const int64_t i = b * H + h;
    kernels(accumulation)
        .tail(in(b, h).base, key_rows(b, h / group), value_rows(b, h / group), cell_of + i * N, listed + i * C * K, sizes, masses(b, h).base, spreads(b, h).base,
              out_keys(b, h).base, out_values(b, h).base, scratch);
  });
  return {log_mass, spread, keys, values};
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("tail", TORCH_BOX(&tail)); }
}  // namespace cuda_ops::cpu
