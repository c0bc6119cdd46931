#include <algorithm>

#include "backward.h"
#include "cells.h"
#include "forward.h"
#include "groups.h"
#include "kernels/centroid_scores.h"
#include "kernels/group_mean.h"
#include "kernels/refined_backward.h"

namespace cuda_ops {
namespace {

// The memory of RefinedBackward.
class GradientMemory {
 public:
  GradientMemory(const Tensor& like, const Shape& s, const Budgets& budgets, int64_t width)
      : band_(empty_floats(like, {3, s.B, s.H, s.N, width})),
        totals_(empty_floats(like, {s.B, s.H, s.N, int64_t(sizeof(QueryTotals) / sizeof(float))})),
        tokens_(empty_floats(like, {3, s.B, s.H, s.N, s.D})),
        top_(empty_floats(like, {2, s.B, s.H, budgets.C, budgets.K, s.D})),
        cell_numbers_(empty_floats(like, {3, s.B, s.H, budgets.C, budgets.M})),
        cell_vectors_(empty_floats(like, {2, s.B, s.H, budgets.C, budgets.M, s.D})),
        mean_parts_(empty_floats(like, {s.B, s.H, refined_mean_parts(s.N), budgets.C, s.D})),
        mean_(empty_floats(like, {s.B, s.H, budgets.C, s.D})) {}
  void hand_to(RefinedBackward& p) const {
    p.band_keys = part(band_, 0);
    p.band_values = part(band_, 1);
    p.band_scores = part(band_, 2);
    p.totals = data<QueryTotals>(totals_);
    p.query_grads = part(tokens_, 0);
    p.key_grads = part(tokens_, 1);
    p.value_grads = part(tokens_, 2);
    p.top_key_grads = part(top_, 0);
    p.top_value_grads = part(top_, 1);
    p.cell_grads = {part(cell_numbers_, 0), part(cell_numbers_, 1), part(cell_numbers_, 2), part(cell_vectors_, 0), part(cell_vectors_, 1)};
    p.mean_parts = data<float>(mean_parts_);
    p.mean_grads = data<float>(mean_);
  }

 private:
  static float* part(const Tensor& x, int64_t i) { return data<float>(x) + i * x.stride(0); }
  Tensor band_, totals_, tokens_, top_, cell_numbers_, cell_vectors_, mean_parts_, mean_;
};

struct Decisions {
  Tensor query_clusters, key_clusters, top_keys;
};

// The rows of in.tokens.
void refined_rows(const Incoming& in, const Decisions& decisions, const Budgets& budgets, int64_t band, const Gradients& out, Stream stream) {
  const Shape& s = in.shape;
  const int64_t C = budgets.C, M = budgets.M, W = std::min(band, s.N);
  const Tensor& like = out.q;
  const Tensor query_clusters = torch::stable::contiguous(decisions.query_clusters), key_clusters = torch::stable::contiguous(decisions.key_clusters);
  const Tensor top_keys = torch::stable::contiguous(decisions.top_keys);
  const auto grouped = GroupedTokens::both(like, in.tokens, integers(query_clusters), C, integers(key_clusters), M, s.B, s.H, stream);
  const Tensor means = empty_floats(like, {s.B, s.H, C, s.D}), scores = empty_floats(like, {s.B, s.H, C, s.N});
  const Tail tail(like, s, C, M);
  RefinedBackward p{};
  p.in = in;
  p.budgets = budgets;
  p.W = W;
  p.width = W ? 2 * W + 1 : 0;
  p.query_clusters = integers(query_clusters);
  p.key_clusters = integers(key_clusters);
  p.top_keys = integers(top_keys);
  p.queries = grouped.first.groups();
  p.keys = grouped.second.groups();
  p.means = data<float>(means);
  p.scores = data<float>(scores);
  p.cells = tail.cells();
  p.grad_q = vectors(out.q);
  p.grad_k = vectors(out.k);
  p.grad_v = vectors(out.v);
  const GradientMemory memory(like, s, budgets, p.width);
  memory.hand_to(p);
  launch::group_mean(in.q, in.tokens, p.queries, s.B, s.H, s.D, C, in.scale, data<float>(means), stream);
  launch::centroid_scores(p.means, in.k, in.tokens, s, budgets, p.scores, stream);
  launch::tail(p.scores, in.k, in.v, in.tokens, s, p.keys, 1, p.top_keys, budgets, tail.part_sums(), tail.part_masses(), p.cells, stream);
  launch::refined_band_backward(p, stream);
  launch::refined_queries_backward(p, stream);
  launch::refined_clusters_backward(p, stream);
  launch::refined_tail_backward(p, stream);
  launch::refined_keys_backward(p, stream);
  launch::refined_means_backward(p, stream);
}

std::tuple<Tensor, Tensor, Tensor> refined_clustered_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                              const std::optional<Tensor>& mask, const Tensor&, const Tensor&, const Tensor& query_clusters,
                                                              const Tensor& key_clusters, const Tensor& top_keys, int64_t clusters, int64_t key_clusters_count,
                                                              int64_t band, double scale, int64_t exact_below, const std::vector<int64_t>& longer) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(top_keys.dim() == 4 && band >= 0, "top_keys must be (B, H, C, K) and band not negative");
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), K = top_keys.size(3);
  Budgets budgets = budgets_of(clusters, K, key_clusters_count, 0, longer, N);
  budgets.K = K;
  check_shape("query_clusters", query_clusters, {B, H, N});
  check_shape("key_clusters", key_clusters, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, budgets.C, K});
  for (const Tensor& decision : {query_clusters, key_clusters, top_keys}) check_type("a decision", decision, ScalarType::Int);
  const Stream stream = stream_of(q);
  const ValidTokens valid(q, mask, B, N, stream);
  const Gradients out(q, k);
  // no row is longer than N
  if (exact_below <= N) refined_rows(incoming(grad, q, k, v, valid.rows(exact_below), scale), {query_clusters, key_clusters, top_keys}, budgets, band, out, stream);
  if (exact_below > 0) full_attention_gradients(incoming(grad, q, k, v, valid.rows(0, exact_below), scale), out, stream);
  return out.all();
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(refined_clustered_backward); }
}  // namespace cuda_ops
