#include <string.h>

#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

// Moves bytes only: the same for every instruction set.
Tensor group_scatter(const Tensor& values, const Tensor& assignment) {
  STD_TORCH_CHECK(values.dim() == 4 && assignment.dim() == 3, "values must be (B, H, C, D) and assignment (B, H, N)");
  const int64_t B = values.size(0), H = values.size(1), C = values.size(2), D = values.size(3), N = assignment.size(2);
  check_shape("assignment", assignment, {B, H, N});
  check_type("assignment", assignment, ScalarType::Int);
  const Tensor packed = torch::stable::contiguous(values), groups = torch::stable::contiguous(assignment);
  Tensor out = empty({B, H, N, D}, values.scalar_type());
  const size_t row = size_t(D * bytes_of(dtype_of(values)));
  const char* from = static_cast<const char*>(packed.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  const int32_t* group = static_cast<const int32_t*>(groups.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch&) {
    const int64_t head = b * H + h;
    for (int64_t i = 0; i < N; ++i) {
      const int64_t c = group[head * N + i];
      char* target = to + size_t(head * N + i) * row;
      if (c >= 0 && c < C)
        memcpy(target, from + size_t(head * C + c) * row, row);
      else
        memset(target, 0, row);
    }
  });
  return out;
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("group_scatter", TORCH_BOX(&group_scatter)); }
}  // namespace cuda_ops::cpu
