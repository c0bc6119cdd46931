#include "kernels/cluster_rows.h"

#include "tensors.h"

namespace cuda_ops {
namespace {

Tensor cluster_rows(const Tensor& x, const std::optional<Tensor>& mask, int64_t clusters, int64_t rounds, int64_t sample) {
  STD_TORCH_CHECK(x.dim() == 4 && clusters > 0 && clusters <= INT32_MAX && rounds >= 0 && sample >= 0,
                  "x must be (B, H, N, D), clusters positive, rounds and sample not negative");
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2), D = x.size(3);
  const Stream stream = stream_of(x);
  const int64_t most = sample < N ? sample : N;
  Tensor assignment = empty_integers(x, {B, H, N});
  Tensor centroids = empty_floats(x, {B, H, clusters, D}), half_norms = empty_floats(x, {B, H, clusters});
  Tensor memory = empty_integers(x, {B, H, launch::cluster_rows_memory(N, clusters, most)});
  const ValidTokens valid(x, mask, B, N, stream);
  const Budgets budgets{clusters, 0, 0, 1, {{0, int32_t(clusters), 0, 0, int32_t(most)}}};
  const launch::RowClusters side{vectors(x), H, clusters, false, data<float>(centroids), data<float>(half_norms), data<int32_t>(memory),
                                 data<int32_t>(assignment), 1};
  launch::cluster_rows(&side, 1, valid.all(), budgets, B, D, rounds, stream);
  return assignment;
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(cluster_rows); }
}  // namespace cuda_ops
