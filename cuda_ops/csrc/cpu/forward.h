// What the fused forward operators share: clustered is improved_clustered without top keys, full_attention its exact path for every row.
#pragma once
#include "tensors.h"

namespace cuda_ops {

struct Forward {
  Tensor out, log_mass, assignment, top_keys;
};

// `planes` empty: every row takes the exact path and no decisions are returned.
Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const std::optional<Tensor>& planes, int64_t clusters, int64_t topk,
                int64_t iterations, double scale, int64_t exact_below);

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                            const std::optional<Tensor>& assignment, const std::optional<Tensor>& top_keys, int64_t clusters, double scale,
                                            int64_t exact_below);

}  // namespace cuda_ops
