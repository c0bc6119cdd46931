#include "groups.h"
#include "kernels/group_mean.h"

namespace cuda_ops {
namespace {

Tensor group_mean(const Tensor& x, const Tensor& assignment, int64_t clusters, double scale) {
  STD_TORCH_CHECK(x.dim() == 4 && clusters > 0, "x must be (B, H, N, D) and clusters positive");
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2), D = x.size(3);
  check_shape("assignment", assignment, {B, H, N});
  check_type("assignment", assignment, ScalarType::Int);
  const Stream stream = stream_of(x);
  const Tensor given = torch::stable::contiguous(assignment);
  const Tokens tokens = every_token(N);
  const GroupedTokens groups(x, tokens, integers(given), B, H, clusters, stream);
  Tensor means = empty_floats(x, {B, H, clusters, D});
  launch::group_mean(vectors(x), tokens, groups.groups(), B, H, D, clusters, float(scale), data<float>(means), stream);
  return means;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(group_mean); }
}  // namespace cuda_ops
