#include "valid_tokens.h"

namespace {

// One block for each batch row goes through the row in tiles of as many tokens as it has threads; `before` is the number of valid ones in earlier tiles.
CUDA_OPS_KERNEL list_valid(cuda_ops::Mask mask, int64_t N, int32_t* positions, int32_t* counts) {
  CUDA_OPS_SHARED(int32_t, totals, 32);
  const int64_t b = device::block_x();
  const int t = device::thread(), warp = t / WARP, warps = device::threads() / WARP;
  const uint32_t lower_lanes = (1u << t % WARP) - 1;
  int32_t before = 0;
  for (int64_t first = 0; first < N; first += device::threads()) {
    const int64_t i = first + t;
    const bool here = i < N && (!mask.base || mask.base[b * mask.batch + i * mask.token]);
    const uint32_t votes = device::ballot(here);
    if (t % WARP == 0) totals[warp] = device::ones(votes);
    device::barrier();
    int32_t mine = before;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) mine += totals[w];
      before += totals[w];
    }
    if (here) positions[b * N + mine + device::ones(votes & lower_lanes)] = int32_t(i);
    device::barrier();
  }
  if (t == 0) counts[b] = before;
}

}  // namespace

namespace cuda_ops {

void list_valid_tokens(const Mask& mask, int64_t B, int64_t N, int32_t* positions, int32_t* counts, Stream stream) {
  if (B) CUDA_OPS_LAUNCH(list_valid, dim3(uint32_t(B)), 1024, stream, mask, N, positions, counts);
}

}  // namespace cuda_ops
