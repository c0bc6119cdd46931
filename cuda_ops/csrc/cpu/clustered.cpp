#include "forward.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> clustered(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& planes, int64_t clusters,
                                             int64_t iterations, double scale, int64_t exact_below) {
  Forward result = forward(q, k, v, mask, planes, {Method::clustered, iterations, 0, {{0, clusters}}}, scale, exact_below);
  return {result.out, result.log_mass, result.assignment};
}

std::tuple<Tensor, Tensor, Tensor> clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                      const Tensor&, const Tensor&, const Tensor& assignment, int64_t clusters, double scale, int64_t exact_below) {
  return backward(grad, q, k, v, mask, {assignment, std::nullopt, std::nullopt}, {Method::clustered, 0, 0, {{0, clusters}}}, scale, exact_below);
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
  m.impl("clustered", TORCH_BOX(&clustered));
  m.impl("clustered_backward", TORCH_BOX(&clustered_backward));
}
}  // namespace cuda_ops::cpu
