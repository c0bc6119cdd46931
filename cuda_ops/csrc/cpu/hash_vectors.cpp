#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

Tensor hash_vectors(const Tensor& x, const Tensor& planes, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(x.dim() == 4 && planes.dim() == 2 && planes.size(1) == x.size(3), "x must be (B, H, N, D) and planes (P, D)");
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2);
  const Sizes sizes{N, x.size(3), 0, 0, planes.size(0), 0};
  const int64_t words = (sizes.P + 63) / 64;
  const Dtype accumulation = accumulation_of(x);
  const Tensor wide_planes = torch::stable::contiguous(torch::stable::to(planes, scalar_type(accumulation)));
  Tensor codes = empty({B, H, N, words}, ScalarType::Long);
  const ValidTokens valid(mask, B, N);
  const Heads rows(x);
  const void* plane = wide_planes.data_ptr();
  int64_t* out = static_cast<int64_t*>(codes.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    kernels(accumulation).hash_vectors(rows(b, h), valid[b], sizes, plane, out + (b * H + h) * N * words, scratch);
  });
  return codes;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("hash_vectors", TORCH_BOX(&hash_vectors)); }
}  // namespace cuda_ops::cpu
