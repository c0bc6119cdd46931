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

namespace {

// A decision as contiguous int32 with its first two axes (B, H); null where the method does not take it.
const int32_t* decision(const char* name, std::optional<Tensor>& x, std::initializer_list<int64_t> shape) {
  if (!x) return nullptr;
  check_shape(name, *x, shape);
  check_type(name, *x, ScalarType::Int);
  x = torch::stable::contiguous(*x);
  return static_cast<const int32_t*>(x->data_ptr());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                            const Decisions& decisions, const Budgets& budgets, double scale, int64_t exact_below) {
  check_queries(q, k, v);
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), H_kv = k.size(1), group = H / H_kv, C = budgets.clusters;
  check_shape("grad", grad, {B, H, N, D});
  STD_TORCH_CHECK(budgets.method != Method::refined || budgets.key_clusters > 0, "key_clusters must be positive");
  const Dtype accumulation = accumulation_of(q);
  Decisions kept = decisions;
  const int64_t K = kept.top_keys ? kept.top_keys->size(3) : 0;
  const int32_t *assignment = decision("assignment", kept.assignment, {B, H, N}), *key_assignment = decision("key_clusters", kept.key_assignment, {B, H, N}),
                *top_keys = decision("top_keys", kept.top_keys, {B, H, C, K});
  Tensor grad_q = empty_heads(B, H, N, D, q.scalar_type()), grad_k = empty_heads(B, H_kv, N, D, q.scalar_type()), grad_v = empty_heads(B, H_kv, N, D, q.scalar_type());
  const ValidTokens valid(mask, B, N);
  const Heads incoming(grad), queries(q), keys(k), values(v), out_q(grad_q), out_k(grad_k), out_v(grad_v);
  const Kernels& table = kernels(accumulation);
  for_each_head(B, H_kv, [&](int64_t b, int64_t shared, Scratch& scratch) {
    std::vector<Slice> grads, heads, outs;
    std::vector<const int32_t*> assignments, key_assignments, tops;
    for (int64_t h = shared * group; h < (shared + 1) * group; ++h) {
      const int64_t i = b * H + h;
      grads.push_back(incoming(b, h));
      heads.push_back(queries(b, h));
      outs.push_back(out_q(b, h));
      assignments.push_back(assignment ? assignment + i * N : nullptr);
      key_assignments.push_back(key_assignment ? key_assignment + i * N : nullptr);
      tops.push_back(top_keys ? top_keys + i * C * K : nullptr);
    }
    HeadBackward head{};
    head.sizes = {N, D, C, K, 0, budgets.key_clusters};
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
    head.exact = budgets.method == Method::full || head.valid.n < exact_below;
    head.band = budgets.band;
    head.assignment = assignments.data();
    head.key_assignment = key_assignments.data();
    head.top_keys = tops.data();
    (budgets.method == Method::refined ? table.refined_clustered_backward : table.improved_clustered_backward)(head, scratch);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace cuda_ops
