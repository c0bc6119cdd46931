#include "valid_tokens.h"

namespace {

constexpr int THREADS = 1024;

// One block for each batch row goes through the row in tiles; `before` is the number of valid tokens in earlier ones.
CUDA_OPS_KERNEL list_valid(cuda_ops::Mask mask, int64_t N, int32_t* positions, int32_t* indices, int32_t* counts) {
  CUDA_OPS_SHARED(int32_t, totals, THREADS / WARP);
  const int64_t b = device::block();
  const int t = device::thread(), warp = t / WARP;
  const uint32_t lower_lanes = (1u << t % WARP) - 1;
  int32_t before = 0;
  for (int64_t first = 0; first < N; first += THREADS) {
    const int64_t token = first + t;
    const bool here = token < N && mask.base[b * mask.batch + token * mask.token];
    const uint32_t votes = device::ballot(here);
    if (t % WARP == 0) totals[warp] = device::ones(votes);
    device::barrier();
    int32_t mine = before;
    for (int w = 0; w < THREADS / WARP; ++w) {
      if (w < warp) mine += totals[w];
      before += totals[w];
    }
    mine += device::ones(votes & lower_lanes);
    if (here) positions[b * N + mine] = int32_t(token);
    if (token < N) indices[b * N + token] = here ? mine : -1;
    device::barrier();
  }
  if (t == 0) counts[b] = before;
}

}  // namespace

namespace cuda_ops::launch {

void list_valid_tokens(const Mask& mask, int64_t B, int64_t N, int32_t* positions, int32_t* indices, int32_t* counts, Stream stream) {
  if (B) CUDA_OPS_LAUNCH(list_valid, B, THREADS, stream, mask, N, positions, indices, counts);
}

}  // namespace cuda_ops::launch
