#include "kernels/refined_attention.h"

#include "groups.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor> refined_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& centroids,
                                             const Tensor& scores, const Tensor& tail_log_mass, const Tensor& tail_spread, const Tensor& tail_keys,
                                             const Tensor& tail_values, const Tensor& query_clusters, const Tensor& key_clusters, const Tensor& top_keys, int64_t band,
                                             double scale) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(scores.dim() == 4 && tail_log_mass.dim() == 4 && top_keys.dim() == 4 && band >= 0,
                  "scores must be (B, H, C, N), tail_log_mass (B, H, C, M), top_keys (B, H, C, K), band not negative");
  const Shape shape = shape_of(q, k);
  const int64_t B = shape.B, H = shape.H, N = shape.N, D = shape.D, C = scores.size(2), M = tail_log_mass.size(3), K = top_keys.size(3);
  check_shape("centroids", centroids, {B, H, C, D});
  check_shape("scores", scores, {B, H, C, N});
  check_shape("tail_log_mass", tail_log_mass, {B, H, C, M});
  check_shape("tail_spread", tail_spread, {B, H, C, M});
  check_shape("tail_keys", tail_keys, {B, H, C, M, D});
  check_shape("tail_values", tail_values, {B, H, C, M, D});
  check_shape("query_clusters", query_clusters, {B, H, N});
  check_shape("key_clusters", key_clusters, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, C, K});
  for (const Tensor* each : {&centroids, &scores, &tail_log_mass, &tail_spread, &tail_keys, &tail_values}) check_type("a tensor of the tail", *each, ScalarType::Float);
  for (const Tensor* each : {&query_clusters, &key_clusters, &top_keys}) check_type("a decision", *each, ScalarType::Int);
  const Stream stream = stream_of(q);
  const auto packed = [](const Tensor& x) { return torch::stable::contiguous(x); };
  const Tensor means = packed(centroids), products = packed(scores), masses = packed(tail_log_mass), spreads = packed(tail_spread), cell_keys = packed(tail_keys),
               cell_values = packed(tail_values), clusters = packed(query_clusters), cells = packed(key_clusters), top = packed(top_keys);
  const ValidTokens valid(q, mask, B, N, stream);
  const GroupedTokens groups(q, valid.all(), integers(clusters), B, H, C, stream);
  const Refined refined{data<const float>(means),
                        data<const float>(products),
                        {data<float>(masses), data<float>(spreads), data<float>(cell_keys), data<float>(cell_values)},
                        integers(cells),
                        integers(top),
                        band,
                        float(scale)};
  const Tensor out = zero_floats(q, {B, H, N, D}), log_mass = minus_infinity(q, {B, H, N});
  launch::refined_attention(vectors(q), vectors(k), vectors(v), valid.all(), shape, groups.groups(), refined, one_step(C, K, M, 0), vectors(out), data<float>(log_mass),
                            stream);
  return {out, log_mass};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(refined_attention); }
}  // namespace cuda_ops
