#include "backward.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                      const Tensor&, const Tensor&, const Tensor& assignment, int64_t clusters, double scale, int64_t exact_below) {
  return clustered_gradients(grad, q, k, v, mask, assignment, std::nullopt, clusters, scale, exact_below);
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(clustered_backward); }
}  // namespace cuda_ops
