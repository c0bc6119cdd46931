#include "forward.h"

#include <algorithm>

namespace cuda_ops::cpu {

const Step& Budgets::of(int64_t n) const {
  size_t last = 0;
  while (last + 1 < steps.size() && steps[last + 1].tokens <= n) ++last;
  return steps[last];
}

Step Budgets::largest() const {
  Step most = steps[0];
  for (const Step& step : steps) {
    most.clusters = std::max(most.clusters, step.clusters);
    most.topk = std::max(most.topk, step.topk);
    most.key_clusters = std::max(most.key_clusters, step.key_clusters);
  }
  return most;
}

std::vector<Step> steps_of(const Step& first, const std::vector<int64_t>& longer) {
  STD_TORCH_CHECK(longer.size() % 5 == 0, "longer must have five numbers a step");
  std::vector<Step> steps{first};
  for (size_t i = 0; i < longer.size(); i += 5) {
    STD_TORCH_CHECK(longer[i] > steps.back().tokens, "the steps of longer must ascend");
    steps.push_back({longer[i], longer[i + 1], longer[i + 2], longer[i + 3], longer[i + 4]});
  }
  return steps;
}

Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const std::optional<Tensor>& planes, const Budgets& budgets,
                double scale, int64_t exact_below) {
  check_queries(q, k, v);
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), group = H / k.size(1);
  const bool decides = budgets.method != Method::full, refined = budgets.method == Method::refined;
  for (const Step& step : budgets.steps)
    STD_TORCH_CHECK(step.clusters > 0 && step.topk >= 0 && step.key_clusters >= (refined ? 1 : 0) && step.sample >= 0,
                    "clusters and key_clusters must be positive, topk and sample not negative");
  STD_TORCH_CHECK(budgets.iterations >= 0 && budgets.band >= 0, "iterations and band must not be negative");
  const Step largest = budgets.largest();
  const int64_t C = largest.clusters, K = std::min(largest.topk, N);
  const Dtype accumulation = accumulation_of(q);
  std::optional<Tensor> wide_planes;
  if (budgets.method == Method::clustered) {
    STD_TORCH_CHECK(planes && planes->dim() == 2 && planes->size(1) == D, "planes must be (P, D)");
    wide_planes = torch::stable::contiguous(torch::stable::to(*planes, scalar_type(accumulation)));
  }
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
    head.valid = valid[b];
    const Step& step = budgets.of(head.valid.n);
    head.sizes = {N, D, step.clusters, std::min(step.topk, N), planes ? planes->size(0) : 0, step.key_clusters};
    head.listed_clusters = C;
    head.listed_keys = K;
    head.q = queries(b, h);
    head.k = keys(b, h / group);
    head.v = values(b, h / group);
    head.out = out(b, h);
    head.planes = plane;
    head.iterations = budgets.iterations;
    head.sample = step.sample;
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
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3), H_kv = k.size(1), group = H / H_kv, C = budgets.largest().clusters;
  check_shape("grad", grad, {B, H, N, D});
  for (const Step& step : budgets.steps)
    STD_TORCH_CHECK(step.clusters > 0 && (budgets.method != Method::refined || step.key_clusters > 0), "clusters and key_clusters must be positive");
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
    head.valid = valid[b];
    head.sizes = {N, D, C, K, 0, budgets.of(head.valid.n).key_clusters};
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

}  // namespace cuda_ops::cpu
