#include "forward.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> improved_clustered(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& planes,
                                                              int64_t clusters, int64_t topk, int64_t iterations, double scale, int64_t exact_below) {
  Forward result = forward(q, k, v, mask, planes, {Method::clustered, iterations, 0, {{0, clusters, topk}}}, scale, exact_below);
  return {result.out, result.log_mass, result.assignment, result.top_keys};
}

std::tuple<Tensor, Tensor, Tensor> improved_clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                               const Tensor&, const Tensor&, const Tensor& assignment, const Tensor& top_keys, int64_t clusters,
                                                               double scale, int64_t exact_below) {
  return backward(grad, q, k, v, mask, {assignment, std::nullopt, top_keys}, {Method::clustered, 0, 0, {{0, clusters}}}, scale, exact_below);
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
  m.impl("improved_clustered", TORCH_BOX(&improved_clustered));
  m.impl("improved_clustered_backward", TORCH_BOX(&improved_clustered_backward));
}
}  // namespace cuda_ops::cpu
