#include "hash_vectors.h"

#include "split_product.h"

namespace {

constexpr int THREADS = 256, TOKENS = 4 * (THREADS / WARP), PLANES = 64, COLUMNS = 64;
constexpr int PLANE_STRIDE = PLANES + 1;  // one more, so that neither writing by columns nor reading by planes meets in a bank

using cuda_ops::launch::Zeros;

CUDA_OPS_DEVICE void clear(const Zeros& zeros) {
  for (int64_t k = device::block() * device::threads() + device::thread(); k < zeros.count; k += device::blocks() * device::threads()) zeros.memory[k] = 0;
}

// A block hashes TOKENS tokens of one head, each warp 4 of them; a lane has two planes of the word. Products go through D in pieces of COLUMNS; a token's sum
// is one chain of fused additions in the order of d, whatever else is in the batch.
CUDA_OPS_KERNEL hash_tile(Heads<float> x, const float* planes, Tokens tokens, int64_t H, int64_t D, int64_t P, uint64_t* codes, Zeros zeros) {
  CUDA_OPS_SHARED(float, plane_piece, COLUMNS * PLANE_STRIDE);
  CUDA_OPS_SHARED(float, row_piece, TOKENS * COLUMNS);
  const int64_t N = tokens.N, tiles = (N + TOKENS - 1) / TOKENS, words = (P + 63) / 64;
  const int64_t b = device::block() / tiles / H, h = device::block() / tiles % H, first = device::block() % tiles * TOKENS;
  const int t = device::thread(), lane = t % WARP, mine = t / WARP * 4;
  clear(zeros);
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

constexpr int SPLIT_THREADS = 128, SPLIT_TOKENS = SPLIT_THREADS / WARP * 16;

// The same for 16-bit numbers on the tensor cores: a warp has 16 tokens, with half a word of planes at a time.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(SPLIT_THREADS) hash_split(Heads<T> x, const float* planes, Tokens tokens, int64_t H, int64_t D, int64_t P, uint64_t* codes,
                                                          Zeros zeros) {
  using Product = SplitProduct<T, SPLIT_TOKENS, WARP, 32>;
  CUDA_OPS_SHARED(Quad, memory, Product::QUADS);
  const int64_t N = tokens.N, tiles = (N + SPLIT_TOKENS - 1) / SPLIT_TOKENS, words = (P + 63) / 64;
  const int64_t b = device::block() / tiles / H, h = device::block() / tiles % H, first = device::block() % tiles * SPLIT_TOKENS;
  const int rows = int(smaller<int64_t>(SPLIT_TOKENS, N - first)), t = device::thread();
  const T* start = x.base + x.offset(b, h, first, 0);
  clear(zeros);
  const auto row = [=](int r) { return start + r * x.token; };
  for (int64_t word = 0; word < words; ++word) {
    int32_t halves[2][2] = {};  // of a row: of its word
    CUDA_OPS_UNROLL(1)
    for (int half = 0; half < 2 && word * 64 + half * WARP < P; ++half) {
      const int64_t p0 = word * 64 + half * WARP;
      const auto plane = [=](int p) { return p0 + p < P ? planes + (p0 + p) * D : nullptr; };
      float sum[Product::TILES][4];
      Product::multiply(rows, row, x.element, plane, D, memory, sum);
      for (int side = 0; side < 2; ++side) {
        int32_t bits = 0;
        CUDA_OPS_UNROLL(Product::TILES)
        for (int n = 0; n < Product::TILES; ++n)
          for (int i = 0; i < 2; ++i) bits |= int32_t(uint32_t(sum[n][2 * side + i] > 0) << (n * 8 + column_of_d(i)));
        for (int lanes = 1; lanes < 4; lanes *= 2) bits |= device::shuffle_xor(bits, lanes);
        (half ? halves[side][1] : halves[side][0]) = bits;
      }
    }
    for (int side = 0; side < 2; ++side) {
      const int r = t / WARP * 16 + row_of_d(2 * side);
      const int64_t i = first + r;
      if (t % 4 != side || r >= rows) continue;
      const bool valid = index_of(tokens, b, i) >= 0;
      codes[((b * H + h) * N + i) * words + word] = valid ? uint64_t(uint32_t(halves[side][1])) << 32 | uint32_t(halves[side][0]) : 0;
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

void hash_vectors(const Vectors& x, const float* planes, const Tokens& tokens, int64_t B, int64_t H, int64_t D, int64_t P, uint64_t* codes, Stream stream,
                  const Zeros& zeros) {
  if (B * H * tokens.N == 0) return;
  const auto blocks = [&](int64_t rows) { return B * H * ((tokens.N + rows - 1) / rows); };
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      CUDA_OPS_LAUNCH(hash_split<T>, blocks(SPLIT_TOKENS), SPLIT_THREADS, stream, Heads<T>(x), planes, tokens, H, D, P, codes, zeros);
    else
      CUDA_OPS_LAUNCH(hash_tile, blocks(TOKENS), THREADS, stream, Heads<T>(x), planes, tokens, H, D, P, codes, zeros);
  });
}

}  // namespace cuda_ops::launch
