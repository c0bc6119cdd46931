// What the gradients of all methods have in common.
#pragma once
#include "kernels/full_attention_backward.h"
#include "tensors.h"

namespace cuda_ops {

struct Gradients {
  Tensor q, k, v;  // like q, k and v; zero on tokens that nobody writes
  Gradients(const Tensor& q, const Tensor& k);
  std::tuple<Tensor, Tensor, Tensor> all() const { return {q, k, v}; }
};

// Checks the tensors and takes them apart; `tokens` are those of all rows.
Incoming incoming(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tokens& tokens, double scale);

// Gradients of exact attention for the rows of in.tokens.
void full_attention_gradients(const Incoming& in, const Gradients& out, Stream stream);

// Gradients of improved clustered attention; of clustered attention without top keys.
std::tuple<Tensor, Tensor, Tensor> clustered_gradients(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                                       const Tensor& assignment, const std::optional<Tensor>& top_keys, int64_t clusters, double scale,
                                                       int64_t exact_below);

}  // namespace cuda_ops
