// What the fused forward operators share: clustered is improved_clustered without top keys, full_attention its exact path for every row.
#pragma once
#include "tensors.h"

namespace cuda_ops::cpu {

struct Forward {
  Tensor out, log_mass, assignment, key_assignment, top_keys;
};

enum class Method { full, clustered, refined };

// The budgets of batch rows with at least so many valid tokens.
struct Step {
  int64_t tokens = 0, clusters = 1, topk = 0, key_clusters = 0, sample = 0;
};

struct Budgets {
  Method method = Method::full;
  int64_t iterations = 0, band = 0;  // iterations: or rounds
  std::vector<Step> steps{Step{}};   // ascending in their tokens, the first from 0 on

  const Step& of(int64_t n) const;
  Step largest() const;  // of each budget, over the steps
};

// `first`, and one step for each five numbers of `longer`.
std::vector<Step> steps_of(const Step& first, const std::vector<int64_t>& longer);

// With Method::full every row takes the exact path and there are no decisions. `planes` for Method::clustered only.
Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const std::optional<Tensor>& planes, const Budgets& budgets,
                double scale, int64_t exact_below);

struct Decisions {
  std::optional<Tensor> assignment, key_assignment, top_keys;
};

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                            const Decisions& decisions, const Budgets& budgets, double scale, int64_t exact_below);

}  // namespace cuda_ops::cpu
