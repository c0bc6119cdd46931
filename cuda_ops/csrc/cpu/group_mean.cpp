#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor group_mean(const Tensor& x, const Tensor& assignment, int64_t clusters, double scale) {
  STD_TORCH_CHECK(x.dim() == 4 && clusters > 0, "x must be (B, H, N, D) and clusters positive");
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2), D = x.size(3);
  check_shape("assignment", assignment, {B, H, N});
  check_type("assignment", assignment, ScalarType::Int);
  const Sizes sizes{N, D, clusters, 0, 0, 0};
  const Dtype accumulation = accumulation_of(x);
  const Tensor groups = torch::stable::contiguous(assignment);
  Tensor means = empty({B, H, clusters, D}, scalar_type(accumulation));
  const Heads rows(x);
  const int32_t* group = static_cast<const int32_t*>(groups.data_ptr());
  const Heads out(means);
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation).group_mean(rows(b, h), group + (b * H + h) * N, sizes, scale, out(b, h).base, scratch);
  });
  return means;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("group_mean", TORCH_BOX(&group_mean)); }
}  // namespace cuda_ops::cpu
