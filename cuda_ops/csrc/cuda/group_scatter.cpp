#include "kernels/group_scatter.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

// Moves bytes only.
Tensor group_scatter(const Tensor& values, const Tensor& assignment) {
  STD_TORCH_CHECK(values.dim() == 4 && assignment.dim() == 3, "values must be (B, H, C, D) and assignment (B, H, N)");
  const int64_t B = values.size(0), H = values.size(1), C = values.size(2), D = values.size(3), N = assignment.size(2);
  check_shape("assignment", assignment, {B, H, N});
  check_type("assignment", assignment, ScalarType::Int);
  const Tensor packed = torch::stable::contiguous(values), groups = torch::stable::contiguous(assignment);
  Tensor out = empty(values, {B, H, N, D}, values.scalar_type());
  const int64_t row_bytes = D * (type_of(values) == Type::float32 ? 4 : 2);
  launch::group_scatter(packed.data_ptr(), integers(groups), B, H, N, C, row_bytes, out.data_ptr(), stream_of(values));
  return out;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(group_scatter); }
}  // namespace cuda_ops
