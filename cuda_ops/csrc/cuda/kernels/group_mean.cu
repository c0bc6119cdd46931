#include "group_mean.h"

namespace {

constexpr int THREADS = 256, COLUMNS = 64, PARTS = THREADS / COLUMNS;

// A block for each cluster lists the members in tiles and adds their rows, COLUMNS numbers wide. Member r belongs to part r % PARTS; a part adds in the order of
// the members and the parts are added in order: the bits depend on the members alone, not on where they lie.
template <class T>
CUDA_OPS_KERNEL mean_of_cluster(Heads<T> x, const int32_t* assignment, int64_t H, int64_t N, int64_t D, int64_t C, float scale, float* means) {
  CUDA_OPS_SHARED(int32_t, members, THREADS);
  CUDA_OPS_SHARED(int32_t, totals, THREADS / WARP);
  CUDA_OPS_SHARED(float, sums, THREADS);
  const int64_t head = device::block_x() / C, cluster = device::block_x() % C;
  const int t = device::thread(), warp = t / WARP, part = t / COLUMNS;
  const uint32_t lower_lanes = (1u << t % WARP) - 1;
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    const int64_t d = d0 + t % COLUMNS;
    float sum = 0;
    int64_t seen = 0;
    for (int64_t first = 0; first < N; first += THREADS) {
      const int64_t i = first + t;
      const bool here = i < N && assignment[head * N + i] == cluster;
      const uint32_t votes = device::ballot(here);
      if (t % WARP == 0) totals[warp] = device::ones(votes);
      device::barrier();
      int before = 0, all = 0;
      for (int w = 0; w < THREADS / WARP; ++w) {
        if (w < warp) before += totals[w];
        all += totals[w];
      }
      if (here) members[before + device::ones(votes & lower_lanes)] = int32_t(i);
      device::barrier();
      if (d < D)
        for (int j = int((part + PARTS - seen % PARTS) % PARTS); j < all; j += PARTS) sum = device::fma(x.at(head / H, head % H, members[j], d), scale, sum);
      seen += all;  // no barrier: the next tile's members are written behind one, and its totals behind this tile's
    }
    sums[t] = sum;
    device::barrier();
    if (part == 0 && d < D) {
      float total = sums[t];
      for (int other = 1; other < PARTS; ++other) total += sums[other * COLUMNS + t];
      means[(head * C + cluster) * D + d] = seen ? total / float(seen) : 0;
    }
    device::barrier();
  }
}

template <class T>
void launch(const cuda_ops::Vectors& x, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t D, int64_t C, float scale, float* means, Stream stream) {
  const Heads<T> heads(x);
  CUDA_OPS_LAUNCH(mean_of_cluster<T>, dim3(uint32_t(B * H * C)), THREADS, stream, heads, assignment, H, N, D, C, scale, means);
}

}  // namespace

namespace cuda_ops {

void group_mean(const Vectors& x, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t D, int64_t C, float scale, float* means, Stream stream) {
  if (B * H * C * D == 0) return;
  const auto run = x.type == Type::float32 ? launch<float> : x.type == Type::bfloat16 ? launch<bfloat16> : launch<float16>;
  run(x, assignment, B, H, N, D, C, scale, means, stream);
}

}  // namespace cuda_ops
