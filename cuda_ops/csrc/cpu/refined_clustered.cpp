#include "forward.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> refined_clustered(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                                     int64_t clusters, int64_t topk, int64_t key_clusters, int64_t band, int64_t rounds,
                                                                     int64_t sample, double scale, int64_t exact_below,
                                                                     const std::vector<int64_t>& longer) {
  const Budgets budgets{Method::refined, rounds, band, steps_of({0, clusters, topk, key_clusters, sample}, longer)};
  Forward result = forward(q, k, v, mask, std::nullopt, budgets, scale, exact_below);
  return {result.out, result.log_mass, result.assignment, result.key_assignment, result.top_keys};
}

std::tuple<Tensor, Tensor, Tensor> refined_clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                              const Tensor&, const Tensor&, const Tensor& query_clusters, const Tensor& key_clusters,
                                                              const Tensor& top_keys, int64_t clusters, int64_t key_clusters_count, int64_t band, double scale,
                                                              int64_t exact_below, const std::vector<int64_t>& longer) {
  const Budgets budgets{Method::refined, 0, band, steps_of({0, clusters, 0, key_clusters_count}, longer)};
  return backward(grad, q, k, v, mask, {query_clusters, key_clusters, top_keys}, budgets, scale, exact_below);
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
  m.impl("refined_clustered", TORCH_BOX(&refined_clustered));
  m.impl("refined_clustered_backward", TORCH_BOX(&refined_clustered_backward));
}
}  // namespace cuda_ops::cpu
