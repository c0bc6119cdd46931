#include "tensors.h"

namespace cuda_ops::cpu {
namespace {

std::tuple<Tensor, Tensor> refined_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& centroids,
                                             const Tensor& scores, const Tensor& tail_log_mass, const Tensor& tail_spread, const Tensor& tail_keys,
                                             const Tensor& tail_values, const Tensor& query_clusters, const Tensor& key_clusters, const Tensor& top_keys, int64_t band,
                                             double scale) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(scores.dim() == 4 && tail_log_mass.dim() == 4 && top_keys.dim() == 4 && band >= 0,
                  "scores must be (B, H, C, N), tail_log_mass (B, H, C, M), top_keys (B, H, C, K), band not negative");
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), C = scores.size(2), M = tail_log_mass.size(3), K = top_keys.size(3), group = H / k.size(1);
  const Dtype accumulation = accumulation_of(q);
  const ScalarType type = scalar_type(accumulation);
  check_shape("centroids", centroids, {B, H, C, D});
  check_shape("scores", scores, {B, H, C, N});
  check_shape("tail_log_mass", tail_log_mass, {B, H, C, M});
  check_shape("tail_spread", tail_spread, {B, H, C, M});
  check_shape("tail_keys", tail_keys, {B, H, C, M, D});
  check_shape("tail_values", tail_values, {B, H, C, M, D});
  check_shape("query_clusters", query_clusters, {B, H, N});
  check_shape("key_clusters", key_clusters, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, C, K});
  for (const Tensor* each : {&centroids, &scores, &tail_log_mass, &tail_spread, &tail_keys, &tail_values}) check_type("a tensor of the tail", *each, type);
  for (const Tensor* each : {&query_clusters, &key_clusters, &top_keys}) check_type("a decision", *each, ScalarType::Int);
  const auto packed = [](const Tensor& x) { return torch::stable::contiguous(x); };
  const Tensor means = packed(centroids), products = packed(scores), masses = packed(tail_log_mass), spreads = packed(tail_spread), cell_keys = packed(tail_keys),
               cell_values = packed(tail_values), groups = packed(query_clusters), cells = packed(key_clusters), top = packed(top_keys);
  Tensor out = empty({B, H, N, D}, type), log_mass = empty({B, H, N}, type);
  const ValidTokens valid(mask, B, N);
  const Heads queries(q), keys(k), values(v), result(out), mean_of(means), score_of(products), mass_of(masses), spread_of(spreads), key_of(cell_keys), value_of(cell_values);
  int32_t *group_of = static_cast<int32_t*>(groups.data_ptr()), *cell_of = static_cast<int32_t*>(cells.data_ptr()), *listed = static_cast<int32_t*>(top.data_ptr());
  char* log_sums = static_cast<char*>(log_mass.data_ptr());
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    const int64_t i = b * H + h;
    HeadForward head{};
    head.sizes = {N, D, C, K, 0, M};
    head.valid = valid[b];
    head.q = queries(b, h);
    head.k = keys(b, h / group);
    head.v = values(b, h / group);
    head.out = result(b, h);
    head.band = band;
    head.scale = scale;
    head.log_mass = log_sums + i * N * bytes_of(accumulation);
    head.assignment = group_of + i * N;
    head.key_assignment = cell_of + i * N;
    head.top_keys = listed + i * C * K;
    const Cells tail{mass_of(b, h).base, spread_of(b, h).base, key_of(b, h).base, value_of(b, h).base};
    kernels(accumulation).refined_attention(head, mean_of(b, h).base, score_of(b, h).base, tail, scratch);
  });
  return {out, log_mass};
}

}  // namespace
STABLE_TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) { m.impl("refined_attention", TORCH_BOX(&refined_attention)); }
}  // namespace cuda_ops::cpu
