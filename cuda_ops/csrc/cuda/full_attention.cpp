#include "kernels/full_attention.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor> full_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale) {
  check_queries(q, k, v);
  const Stream stream = stream_of(q);
  const Shape shape = shape_of(q, k);
  const ValidTokens valid(q, mask, shape.B, shape.N, stream);
  Tensor out = empty_heads(q, shape, q.scalar_type()), log_mass = empty_floats(q, {shape.B, shape.H, shape.N});
  launch::full_attention(vectors(q), vectors(k), vectors(v), valid.all(), shape, float(scale), vectors(out), data<float>(log_mass), stream);
  launch::clear_padding(valid.all(), shape, vectors(out), data<float>(log_mass), stream);
  return {out, log_mass};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(full_attention); }
}  // namespace cuda_ops
