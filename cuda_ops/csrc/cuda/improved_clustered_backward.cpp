#include "backward.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> improved_clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                               const Tensor&, const Tensor&, const Tensor& assignment, const Tensor& top_keys, int64_t clusters,
                                                               double scale, int64_t exact_below) {
  return clustered_gradients(grad, q, k, v, mask, assignment, top_keys, clusters, scale, exact_below);
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(improved_clustered_backward); }
}  // namespace cuda_ops
