#include "forward.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor> full_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale) {
  Forward result = forward(q, k, v, mask, std::nullopt, Budgets{}, scale, 0);
  return {result.out, result.log_mass};
}

std::tuple<Tensor, Tensor, Tensor> full_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                           const Tensor&, const Tensor&, double scale) {
  return backward(grad, q, k, v, mask, {}, Budgets{}, scale, 0);
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
  m.impl("full_attention", TORCH_BOX(&full_attention));
  m.impl("full_attention_backward", TORCH_BOX(&full_attention_backward));
}
}  // namespace cuda_ops::cpu
