// What the fused forward operators share: clustered is improved_clustered without top keys, full_attention is their exact path.
#pragma once
#include "tensors.h"

namespace cuda_ops {

struct Forward {
  Tensor out, log_mass, assignment, key_assignment, top_keys;
};

// The first step, and one for each five numbers of `longer`; top keys and samples are at most N.
Budgets budgets_of(int64_t clusters, int64_t topk, int64_t key_clusters, int64_t sample, const std::vector<int64_t>& longer, int64_t N);

Forward improved_forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& planes, int64_t clusters, int64_t topk,
                         int64_t iterations, double scale, int64_t exact_below);
Forward refined_forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Budgets& budgets, int64_t band, int64_t rounds,
                        double scale, int64_t exact_below);

}  // namespace cuda_ops
