#include "cells.h"
#include "groups.h"

namespace cuda_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> tail(const Tensor& scores, const Tensor& k, const Tensor& v, const Tensor& key_clusters, const Tensor& top_keys,
                                                int64_t key_clusters_count) {
  STD_TORCH_CHECK(scores.dim() == 4 && k.dim() == 4 && top_keys.dim() == 4 && k.size(1) > 0 && scores.size(1) % k.size(1) == 0 && key_clusters_count > 0,
                  "scores must be (B, H, C, N), k (B, H_kv, N, D), top_keys (B, H, C, K), H a multiple of H_kv, and key_clusters_count positive");
  const int64_t B = k.size(0), H = scores.size(1), C = scores.size(2), N = k.size(2), D = k.size(3), K = top_keys.size(3), M = key_clusters_count;
  check_shape("scores", scores, {B, H, C, N});
  check_shape("v", v, {B, k.size(1), N, D});
  check_shape("key_clusters", key_clusters, {B, H, N});
  check_shape("top_keys", top_keys, {B, H, C, K});
  check_type("key_clusters", key_clusters, ScalarType::Int);
  check_type("top_keys", top_keys, ScalarType::Int);
  check_type("scores", scores, ScalarType::Float);
  STD_TORCH_CHECK(v.scalar_type() == k.scalar_type(), "k and v must have one dtype");
  const Stream stream = stream_of(scores);
  const Shape shape = shape_of(scores, k, D);
  const Tensor packed = torch::stable::contiguous(scores), cells = torch::stable::contiguous(key_clusters), top = torch::stable::contiguous(top_keys);
  const Tokens tokens = every_token(N);
  const GroupedTokens groups(scores, tokens, integers(cells), B, H, M, stream);
  const Tail memory(scores, shape, C, M);
  launch::tail(data<const float>(packed), vectors(k), vectors(v), tokens, shape, groups.groups(), 1, integers(top), one_step(C, K, M, 0), memory.part_sums(),
               memory.part_masses(), memory.cells(), stream);
  return {memory.log_mass, memory.spread, memory.keys, memory.values};
}

}  // namespace
CUDA_OPS_REGISTER { CUDA_OPS_IMPL(tail); }
}  // namespace cuda_ops
