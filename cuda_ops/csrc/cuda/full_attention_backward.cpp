#include "backward.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> full_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                           const Tensor&, const Tensor&, double scale) {
  check_queries(q, k, v);
  const Stream stream = stream_of(q);
  const ValidTokens valid(q, mask, q.size(0), q.size(2), stream);
  const Incoming in = incoming(grad, q, k, v, valid.all(), scale);
  const Gradients out(q, k);
  full_attention_gradients(in, out, stream);
  return out.all();
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(full_attention_backward); }
}  // namespace cuda_ops
