#include "forward.h"

namespace cuda_ops {

Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const std::optional<Tensor>& planes, const Budgets& budgets,
                double scale, int64_t exact_below) {
  check_queries(q, k, v);
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), group = H / k.size(1), C = budgets.clusters;
  STD_TORCH_CHECK(C > 0 && budgets.topk >= 0 && budgets.iterations >= 0 && budgets.key_clusters >= 0 && budgets.band >= 0 && budgets.sample >= 0,
                  "clusters must be positive, the other budgets not negative");
  const int64_t K = budgets.topk < N ? budgets.topk : N;
  const Dtype accumulation = accumulation_of(q);
  std::optional<Tensor> wide_planes;
  if (budgets.method == Method::clustered) {
    STD_TORCH_CHECK(planes && planes->dim() == 2 && planes->size(1) == D, "planes must be (P, D)");
    wide_planes = torch::stable::contiguous(torch::stable::to(*planes, scalar_type(accumulation)));
  }
  STD_TORCH_CHECK(budgets.method != Method::refined || budgets.key_clusters > 0, "key_clusters must be positive");
  const bool decides = budgets.method != Method::full, refined = budgets.method == Method::refined;
  const Sizes sizes{N, D, C, K, planes ? planes->size(0) : 0, budgets.key_clusters};
  Forward result{empty_heads(B, H, N, D, q.scalar_type()), empty({B, H, N}, scalar_type(accumulation)), empty({B, H, N}, ScalarType::Int),
                 empty({B, H, refined ? N : 0}, ScalarType::Int), empty({B, H, C, K}, ScalarType::Int)};
  const ValidTokens valid(mask, B, N);
  const Heads queries(q), keys(k), values(v), out(result.out);
  const void* plane = wide_planes ? wide_planes->data_ptr() : nullptr;
  char* log_mass = static_cast<char*>(result.log_mass.data_ptr());
  int32_t *assignment = static_cast<int32_t*>(result.assignment.data_ptr()), *top_keys = static_cast<int32_t*>(result.top_keys.data_ptr()),
          *key_assignment = static_cast<int32_t*>(result.key_assignment.data_ptr());
  const Kernels& table = kernels(accumulation);
  for_each_head(B, H, [&](int64_t b, int64_t h, Scratch& scratch) {
    const int64_t i = b * H + h;
    HeadForward head{};
    head.sizes = sizes;
    head.valid = valid[b];
    head.q = queries(b, h);
    head.k = keys(b, h / group);
    head.v = values(b, h / group);
    head.out = out(b, h);
    head.planes = plane;
    head.iterations = budgets.iterations;
    head.sample = budgets.sample;
    head.band = budgets.band;
    head.scale = scale;
    head.exact = !decides || head.valid.n < exact_below;
    head.log_mass = log_mass + i * N * bytes_of(accumulation);
    head.assignment = decides ? assignment + i * N : nullptr;
    head.key_assignment = refined ? key_assignment + i * N : nullptr;
    head.top_keys = decides && K ? top_keys + i * C * K : nullptr;
    (refined ? table.refined_clustered : table.improved_clustered)(head, scratch);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                            const std::optional<Tensor>& assignment, const std::optional<Tensor>& top_keys, int64_t clusters, double scale,
                                            int64_t exact_below) {
  check_queries(q, k, v);
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), H_kv = k.size(1), group = H / H_kv, K = top_keys ? top_keys->size(3) : 0;
  check_shape("grad", grad, {B, H, N, D});
  const Dtype accumulation = accumulation_of(q);
  std::optional<Tensor> groups, top;
  if (assignment) {
    check_shape("assignment", *assignment, {B, H, N});
    check_type("assignment", *assignment, ScalarType::Int);
    groups = torch::stable::contiguous(*assignment);
  }
  if (top_keys) {
    check_shape("top_keys", *top_keys, {B, H, clusters, K});
    check_type("top_keys", *top_keys, ScalarType::Int);
    top = torch::stable::contiguous(*top_keys);
  }
  Tensor grad_q = empty_heads(B, H, N, D, q.scalar_type()), grad_k = empty_heads(B, H_kv, N, D, q.scalar_type()), grad_v = empty_heads(B, H_kv, N, D, q.scalar_type());
  const ValidTokens valid(mask, B, N);
  const Heads incoming(grad), queries(q), keys(k), values(v), out_q(grad_q), out_k(grad_k), out_v(grad_v);
  const int32_t* group_of = groups ? static_cast<const int32_t*>(groups->data_ptr()) : nullptr;
  const int32_t* listed = top ? static_cast<const int32_t*>(top->data_ptr()) : nullptr;
  for_each_head(B, H_kv, [&](int64_t b, int64_t shared, Scratch& scratch) {
    std::vector<Slice> grads, heads, outs;
    std::vector<const int32_t*> assignments, tops;
    for (int64_t h = shared * group; h < (shared + 1) * group; ++h) {
      grads.push_back(incoming(b, h));
      heads.push_back(queries(b, h));
      outs.push_back(out_q(b, h));
      assignments.push_back(group_of ? group_of + (b * H + h) * N : nullptr);
      tops.push_back(listed ? listed + (b * H + h) * clusters * K : nullptr);
    }
    HeadBackward head{};
    head.sizes = {N, D, clusters, K, 0, 0};
    head.valid = valid[b];
    head.group = group;
    head.grad = grads.data();
    head.q = heads.data();
    head.grad_q = outs.data();
    head.k = keys(b, shared);
    head.v = values(b, shared);
    head.grad_k = out_k(b, shared);
    head.grad_v = out_v(b, shared);
    head.scale = scale;
    head.exact = !assignment || head.valid.n < exact_below;
    head.assignment = assignments.data();
    head.top_keys = tops.data();
    kernels(accumulation).improved_clustered_backward(head, scratch);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace cuda_ops
