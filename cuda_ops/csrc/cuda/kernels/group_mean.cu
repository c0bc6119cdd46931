#include "group_mean.h"

namespace {

constexpr int THREADS = 256, COLUMNS = 64, PARTS = THREADS / COLUMNS;

// A block for each cluster adds the rows of its members, COLUMNS numbers wide. Member r belongs to part r % PARTS; a part adds in the order of the members and the
// parts are added in order: the bits depend on the members alone, not on where they lie.
template <class T>
CUDA_OPS_KERNEL mean_of_cluster(Heads<T> x, Tokens tokens, cuda_ops::Groups groups, int64_t H, int64_t D, int64_t C, float scale, float* means) {
  CUDA_OPS_SHARED(float, sums, THREADS);
  const int64_t cluster = device::block() % C, head = device::block() / C, b = head / H, h = head % H;
  const int t = device::thread(), part = t / COLUMNS;
  const int32_t* first = groups.first + head * (C + 1) + cluster;
  const int32_t* members = groups.order + head * tokens.N + first[0];
  const int64_t size = first[1] - first[0];
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    const int64_t d = d0 + t % COLUMNS;
    float sum = 0;
    if (d < D) {
      CUDA_OPS_UNROLL(4)
      for (int64_t r = part; r < size; r += PARTS) sum = device::fma(x.at(b, h, position_of(tokens, b, members[r]), d), scale, sum);
    }
    sums[t] = sum;
    device::barrier();
    if (part == 0 && d < D) {
      for (int other = 1; other < PARTS; ++other) sum += sums[other * COLUMNS + t];
      means[(head * C + cluster) * D + d] = size ? sum / float(size) : 0;
    }
    device::barrier();
  }
}

}  // namespace

namespace cuda_ops::launch {

void group_mean(const Vectors& x, const Tokens& tokens, const Groups& groups, int64_t B, int64_t H, int64_t D, int64_t C, float scale, float* means, Stream stream) {
  if (B * H * C * D == 0) return;
  with_type(x.type, [&](auto type) {
    const Heads<decltype(type)> heads(x);
    CUDA_OPS_LAUNCH(mean_of_cluster<decltype(type)>, B * H * C, THREADS, stream, heads, tokens, groups, H, D, C, scale, means);
  });
}

}  // namespace cuda_ops::launch
