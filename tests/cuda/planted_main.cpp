// Runs every kernel in every order of threads and compares with plain loops. Exit status: 0 where all agree, 3 where they do not; the host's own checks abort.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../cuda_ops/csrc/cuda/kernels/group_mean.h"
#include "../../cuda_ops/csrc/cuda/kernels/hash_vectors.h"
#include "../../cuda_ops/csrc/cuda/kernels/valid_tokens.h"

using namespace cuda_ops;

namespace {

constexpr int64_t N = 301, D = 70, C = 3, P = 63;

struct Inputs {
  std::vector<float> x = std::vector<float>(N * D), planes = std::vector<float>(P * D);
  std::vector<int32_t> groups = std::vector<int32_t>(N);
  std::vector<char> mask = std::vector<char>(2 * 3000);
  Inputs() {
    std::mt19937 random{7};
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(random);
    for (float& value : planes) value = normal(random);
    for (int32_t& group : groups) group = int32_t(random() % C);
    for (char& valid : mask) valid = random() % 5 < 3;
  }
};

bool hashes_agree(const Inputs& in) {
  std::vector<uint64_t> codes(N, ~uint64_t(0));
  hash_vectors({in.x.data(), N * D, N * D, D, 1, Type::float32}, in.planes.data(), {nullptr, 0, 0}, 1, 1, N, D, P, codes.data(), nullptr);
  for (int64_t i = 0; i < N; ++i)
    for (int64_t p = 0; p < 64; ++p) {
      double product = 0;
      for (int64_t d = 0; p < P && d < D; ++d) product += double(in.x[size_t(i * D + d)]) * in.planes[size_t(p * D + d)];
      if ((std::abs(product) > 1e-4 || p >= P) && (codes[size_t(i)] >> p & 1) != uint64_t(product > 0)) return false;
    }
  return true;
}

bool means_agree(const Inputs& in) {
  std::vector<float> means(C * D, NAN);
  group_mean({in.x.data(), N * D, N * D, D, 1, Type::float32}, in.groups.data(), 1, 1, N, D, C, 1, means.data(), nullptr);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t d = 0; d < D; ++d) {
      double sum = 0, members = 0;
      for (int64_t i = 0; i < N; ++i)
        if (in.groups[size_t(i)] == c) sum += in.x[size_t(i * D + d)], members += 1;
      if (!(std::abs(means[size_t(c * D + d)] - sum / members) < 1e-5)) return false;
    }
  return true;
}

bool valid_tokens_agree(const Inputs& in) {
  std::vector<int32_t> positions(2 * 3000, -1), counts(2, -1);
  list_valid_tokens({reinterpret_cast<const bool*>(in.mask.data()), 3000, 1}, 2, 3000, positions.data(), counts.data(), nullptr);
  for (int64_t b = 0; b < 2; ++b) {
    int32_t found = 0;
    for (int32_t i = 0; i < 3000; ++i)
      if (in.mask[size_t(b * 3000 + i)] && positions[size_t(b * 3000 + found++)] != i) return false;
    if (counts[size_t(b)] != found) return false;
  }
  return true;
}

}  // namespace

int main() {
  const Inputs in;
  for (int order = 0; order < 5; ++order) {
    host_cuda::order = host_cuda::Order(order);
    if (!hashes_agree(in) || !means_agree(in) || !valid_tokens_agree(in)) return 3;
  }
}
