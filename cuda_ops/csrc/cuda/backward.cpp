#include "backward.h"

#include "groups.h"
#include "kernels/centroid_scores.h"
#include "kernels/group_mean.h"
#include "kernels/improved_clustered_backward.h"

namespace cuda_ops {
namespace {

Tensor zeros_like(const Tensor& x) {
  const std::initializer_list<int64_t> shape = {x.size(0), x.size(2), x.size(1), x.size(3)};
  return torch::stable::transpose(torch::stable::new_zeros(x, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size())), 1, 2);
}

Tensor statistics_of(const Tensor& like, const Shape& s) { return empty_floats(like, {s.B, s.H, s.N, 3}); }

// The rows of in.tokens, given the decisions.
void clustered_rows(const Incoming& in, const Tensor& assignment, const std::optional<Tensor>& top_keys, int64_t C, const Gradients& out, Stream stream) {
  const Shape& shape = in.shape;
  const int64_t B = shape.B, H = shape.H, N = shape.N, D = shape.D, K = top_keys ? top_keys->size(3) : 0;
  const Tensor& like = out.q;
  const Tensor given = torch::stable::contiguous(assignment);
  const GroupedTokens grouped(like, in.tokens, integers(given), B, H, C, stream);
  const Groups groups = grouped.groups();
  const Tensor keys = empty_integers(like, {B, H, C, K}), counts = empty_integers(like, {B, H, C});
  if (K) {
    const Tensor top = torch::stable::contiguous(*top_keys);
    launch::list_top_keys(integers(top), in.tokens, B, H, C, K, data<int32_t>(keys), data<int32_t>(counts), stream);
  }
  const Lists lists{groups, K ? integers(keys) : nullptr, K ? integers(counts) : nullptr, C, K};
  const Tensor statistics = statistics_of(like, shape);
  launch::row_statistics(in, lists, data<float>(statistics), stream);

  const Tensor centroids = empty_floats(like, {B, H, C, D}), mean_grad = empty_floats(like, {B, H, C, D}), mass = empty_floats(like, {B, H, C});
  const Tensor scores = empty_floats(like, {B, H, C, N}), products = empty_floats(like, {B, H, C, N});
  const Budgets budgets = one_step(C, K, 1, 0);
  launch::group_mean(in.q, in.tokens, groups, B, H, D, C, in.scale, data<float>(centroids), stream);
  launch::group_mean(in.grad, in.tokens, groups, B, H, D, C, 1, data<float>(mean_grad), stream);
  launch::centroid_scores(data<const float>(centroids), in.k, in.tokens, shape, budgets, data<float>(scores), stream);
  launch::centroid_scores(data<const float>(mean_grad), in.v, in.tokens, shape, budgets, data<float>(products), stream);
  launch::centroid_gradients(in.tokens, lists, B, H, data<const float>(statistics), data<float>(scores), data<float>(products), data<float>(mass), stream);

  const Tensor part_sums = empty_floats(like, {B, H, launch::mean_gradient_parts(N), C, D}), mean_gradients = empty_floats(like, {B, H, C, D});
  launch::mean_gradients(data<const float>(products), in.k, in.tokens, shape, groups, C, data<float>(part_sums), data<float>(mean_gradients), stream);
  launch::query_gradients(in, lists, data<const float>(statistics), data<const float>(mass), data<const float>(mean_gradients), vectors(out.q), stream);

  const Tensor slots_k = empty_floats(like, {B, H, C, K, D}), slots_v = empty_floats(like, {B, H, C, K, D});
  launch::listed_key_gradients(in, lists, data<const float>(statistics), data<const float>(mass), data<float>(slots_k), data<float>(slots_v), stream);
  const launch::ClusterGradients sums{data<const float>(products),  data<const float>(scores),  data<const float>(centroids),
                                      data<const float>(mean_grad), data<const float>(slots_k), data<const float>(slots_v)};
  launch::clustered_key_gradients(sums, in.tokens, shape, lists, vectors(out.k), vectors(out.v), stream);
}

}  // namespace

Gradients::Gradients(const Tensor& like_q, const Tensor& like_k) : q(zeros_like(like_q)), k(zeros_like(like_k)), v(zeros_like(like_k)) {}

Incoming incoming(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tokens& tokens, double scale) {
  check_queries(q, k, v);
  check_shape("grad", grad, {q.size(0), q.size(1), q.size(2), q.size(3)});
  check_type("grad", grad, q.scalar_type());
  return {vectors(grad), vectors(q), vectors(k), vectors(v), tokens, shape_of(q, k), float(scale)};
}

void full_attention_gradients(const Incoming& in, const Gradients& out, Stream stream) {
  const Tensor statistics = statistics_of(out.q, in.shape);
  const Lists lists = all_tokens(in.shape.N);
  launch::row_statistics(in, lists, data<float>(statistics), stream);
  launch::query_gradients(in, lists, data<const float>(statistics), nullptr, nullptr, vectors(out.q), stream);
  launch::key_gradients(in, data<const float>(statistics), vectors(out.k), vectors(out.v), stream);
}

std::tuple<Tensor, Tensor, Tensor> clustered_gradients(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                       const Tensor& assignment, const std::optional<Tensor>& top_keys, int64_t clusters, double scale,
                                                       int64_t exact_below) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(clusters > 0, "clusters must be positive");
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2);
  check_shape("assignment", assignment, {B, H, N});
  check_type("assignment", assignment, ScalarType::Int);
  if (top_keys) {
    check_shape("top_keys", *top_keys, {B, H, clusters, top_keys->size(3)});
    check_type("top_keys", *top_keys, ScalarType::Int);
  }
  const Stream stream = stream_of(q);
  const ValidTokens valid(q, mask, B, N, stream);
  const Gradients out(q, k);
  // no row is longer than N
  if (exact_below <= N) clustered_rows(incoming(grad, q, k, v, valid.rows(exact_below), scale), assignment, top_keys, clusters, out, stream);
  if (exact_below > 0) full_attention_gradients(incoming(grad, q, k, v, valid.rows(0, exact_below), scale), out, stream);
  return out.all();
}

}  // namespace cuda_ops
