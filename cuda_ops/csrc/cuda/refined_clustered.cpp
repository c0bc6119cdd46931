#include "forward.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> refined_clustered(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                                     int64_t clusters, int64_t topk, int64_t key_clusters, int64_t band, int64_t rounds,
                                                                     int64_t sample, double scale, int64_t exact_below,
                                                                     const std::vector<int64_t>& longer) {
  const Budgets budgets = budgets_of(clusters, topk, key_clusters, sample, longer, q.size(2));
  Forward result = refined_forward(q, k, v, mask, budgets, band, rounds, scale, exact_below);
  return {result.out, result.log_mass, result.assignment, result.key_assignment, result.top_keys};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(refined_clustered); }
}  // namespace cuda_ops
