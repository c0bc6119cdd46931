#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor cluster_rows(const Tensor& x, const std::optional<Tensor>& mask, int64_t clusters, int64_t rounds, int64_t sample) {
  STD_TORCH_CHECK(x.dim() == 4 && clusters > 0 && rounds >= 0 && sample >= 0, "x must be (B, H, N, D), clusters positive, rounds and sample not negative");
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2);
  const Sizes sizes{N, x.size(3), clusters, 0, 0, 0};
  const Dtype accumulation = accumulation_of(x);
  Tensor assignment = empty({B, H, N}, ScalarType::Int);
  const ValidTokens valid(mask, B, N);
  const Heads rows(x);
  int32_t* out = static_cast<int32_t*>(assignment.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation).cluster_rows(rows(b, h), valid[b], sizes, rounds, sample, out + (b * H + h) * N, scratch);
  });
  return assignment;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("cluster_rows", TORCH_BOX(&cluster_rows)); }
}  // namespace cuda_ops::cpu
