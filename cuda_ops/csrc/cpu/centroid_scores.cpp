#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor centroid_scores(const Tensor& centroids, const Tensor& k, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(centroids.dim() == 4 && k.dim() == 4 && k.size(1) > 0 && centroids.size(1) % k.size(1) == 0 && centroids.size(3) == k.size(3),
                  "centroids must be (B, H, C, D) and k (B, H_kv, N, D), H a multiple of H_kv");
  const int64_t B = k.size(0), H = centroids.size(1), N = k.size(2), group = H / k.size(1);
  const Sizes sizes{N, k.size(3), centroids.size(2), 0, 0, 0};
  check_shape("centroids", centroids, {B, H, sizes.C, sizes.D});
  const Dtype accumulation = accumulation_of(k);
  Tensor scores = empty({B, H, sizes.C, N}, scalar_type(accumulation));
  const ValidTokens valid(mask, B, N);
  const Heads centers(centroids), keys(k), out(scores);
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation).centroid_scores(centers(b, h), keys(b, h / group), valid[b], sizes, out(b, h).base, scratch);
  });
  return scores;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("centroid_scores", TORCH_BOX(&centroid_scores)); }
}  // namespace cuda_ops::cpu
