#include "hash_vectors.h"

namespace {

constexpr int THREADS = 256, TOKENS = 4 * (THREADS / WARP), PLANES = 64, COLUMNS = 64;
constexpr int PLANE_STRIDE = PLANES + 1;  // one more, so that neither writing by columns nor reading by planes meets in a bank

// A block hashes TOKENS tokens of one head, each warp 4 of them; a lane has two planes of the word. Products go through D in pieces of COLUMNS; a token's sum
// is one chain of fused additions in the order of d, whatever else is in the batch.
template <class T>
CUDA_OPS_KERNEL hash_tile(Heads<T> x, const float* planes, Tokens tokens, int64_t H, int64_t D, int64_t P, uint64_t* codes) {
  CUDA_OPS_SHARED(float, plane_piece, COLUMNS * PLANE_STRIDE);
  CUDA_OPS_SHARED(float, row_piece, TOKENS * COLUMNS);
  const int64_t N = tokens.N, tiles = (N + TOKENS - 1) / TOKENS, words = (P + 63) / 64;
  const int64_t b = device::block() / tiles / H, h = device::block() / tiles % H, first = device::block() % tiles * TOKENS;
  const int t = device::thread(), lane = t % WARP, mine = t / WARP * 4;
  for (int64_t word = 0; word < words; ++word) {
    float sum[4][2] = {};
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      for (int k = t; k < PLANES * COLUMNS; k += THREADS) {
        const int64_t p = word * 64 + k / COLUMNS, d = d0 + k % COLUMNS;
        plane_piece[k % COLUMNS * PLANE_STRIDE + k / COLUMNS] = p < P && d < D ? planes[p * D + d] : 0;
      }
      for (int k = t; k < TOKENS * COLUMNS; k += THREADS) {
        const int64_t i = first + k / COLUMNS, d = d0 + k % COLUMNS;
        row_piece[k] = i < N && d < D ? x.at(b, h, i, d) : 0;
      }
      device::barrier();
      for (int d = 0; d < COLUMNS; ++d)
        for (int r = 0; r < 4; ++r)
          for (int side = 0; side < 2; ++side)
            sum[r][side] = device::fma(row_piece[(mine + r) * COLUMNS + d], plane_piece[d * PLANE_STRIDE + side * WARP + lane], sum[r][side]);
      device::barrier();
    }
    for (int r = 0; r < 4; ++r) {
      const int64_t i = first + mine + r;
      const uint32_t low = device::ballot(sum[r][0] > 0), high = device::ballot(sum[r][1] > 0);
      const bool valid = i < N && index_of(tokens, b, i) >= 0;
      if (lane == 0 && i < N) codes[((b * H + h) * N + i) * words + word] = valid ? uint64_t(high) << 32 | low : 0;
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

void hash_vectors(const Vectors& x, const float* planes, const Tokens& tokens, int64_t B, int64_t H, int64_t D, int64_t P, uint64_t* codes, Stream stream) {
  const int64_t blocks = B * H * ((tokens.N + TOKENS - 1) / TOKENS);
  if (!blocks) return;
  with_type(x.type, [&](auto type) {
    const Heads<decltype(type)> heads(x);
    CUDA_OPS_LAUNCH(hash_tile<decltype(type)>, blocks, THREADS, stream, heads, planes, tokens, H, D, P, codes);
  });
}

}  // namespace cuda_ops::launch
