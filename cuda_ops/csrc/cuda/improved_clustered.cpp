#include "forward.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> improved_clustered(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& planes,
                                                              int64_t clusters, int64_t topk, int64_t iterations, double scale, int64_t exact_below) {
  Forward result = improved_forward(q, k, v, mask, planes, clusters, topk, iterations, scale, exact_below);
  return {result.out, result.log_mass, result.assignment, result.top_keys};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(improved_clustered); }
}  // namespace cuda_ops
