// What the tests call of the kernels that were compiled for the host.
#include "../../cuda_ops/csrc/cuda/kernels/group_mean.h"
#include "../../cuda_ops/csrc/cuda/kernels/hash_vectors.h"
#include "../../cuda_ops/csrc/cuda/kernels/valid_tokens.h"

using namespace cuda_ops;

extern "C" {

void set_order(int order, int seed) {
  host_cuda::order = host_cuda::Order(order);
  host_cuda::random_numbers.seed(unsigned(seed));
}

void run_valid_tokens(const Mask* mask, int64_t B, int64_t N, int32_t* positions, int32_t* counts) { list_valid_tokens(*mask, B, N, positions, counts, nullptr); }

void run_hash_vectors(const Vectors* x, const float* planes, const Mask* mask, int64_t B, int64_t H, int64_t N, int64_t D, int64_t P, uint64_t* codes) {
  hash_vectors(*x, planes, *mask, B, H, N, D, P, codes, nullptr);
}

void run_group_mean(const Vectors* x, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t D, int64_t C, float scale, float* means) {
  group_mean(*x, assignment, B, H, N, D, C, scale, means, nullptr);
}

}  // extern "C"
