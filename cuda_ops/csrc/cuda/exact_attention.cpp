#include "kernels/exact_attention.h"

#include "groups.h"

namespace cuda_ops {
namespace {

Tensor exact_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& assignment, const Tensor& top_keys, const Tensor& top_mass, double scale) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(top_keys.dim() == 4, "top_keys must be (B, H, C, K)");
  const Shape shape = shape_of(q, k);
  const int64_t C = top_keys.size(2), K = top_keys.size(3);
  check_shape("assignment", assignment, {shape.B, shape.H, shape.N});
  check_shape("top_keys", top_keys, {shape.B, shape.H, C, K});
  check_shape("top_mass", top_mass, {shape.B, shape.H, C});
  check_type("assignment", assignment, ScalarType::Int);
  check_type("top_keys", top_keys, ScalarType::Int);
  check_type("top_mass", top_mass, ScalarType::Float);
  const Stream stream = stream_of(q);
  const Tensor given = torch::stable::contiguous(assignment), top = torch::stable::contiguous(top_keys), mass = torch::stable::contiguous(top_mass);
  const Tokens tokens = every_token(shape.N);
  const GroupedTokens groups(q, tokens, integers(given), shape.B, shape.H, C, stream);
  const Tensor out = zero_floats(q, {shape.B, shape.H, shape.N, shape.D});
  launch::exact_attention(vectors(q), vectors(k), vectors(v), tokens, shape, groups.groups(), integers(top), data<const float>(mass), one_step(C, K, 0, 0), float(scale),
                          Rest{}, vectors(out), stream);
  return out;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(exact_attention); }
}  // namespace cuda_ops
