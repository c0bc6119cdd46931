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

constexpr int SPLIT_THREADS = 128;
template <class T>
constexpr int SPLIT_TOKENS = SPLIT_THREADS / WARP * 8 * OWN_TILES<T>;

// The same for 16-bit numbers on the tensor cores: a block has `each` tiles of one head, of each tile a warp keeps its rows and multiplies them with a quarter of
// the planes of a word at a time. WHOLE: D is no more than a piece, so that the planes are split once, and no warp waits for another one between the tiles.
template <class T, bool WHOLE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(SPLIT_THREADS, WHOLE ? 4 : 3) hash_split(Heads<T> x, const float* planes, Tokens tokens, int64_t H, int64_t D, int64_t P, int64_t each,
                                                              uint64_t* codes, Zeros zeros) {
  constexpr int SETS = 64 / SET, ROWS = LANE_ROWS<T>;
  CUDA_OPS_SHARED(Eight, memory, (WHOLE ? SETS : 1) * SET_EIGHTS);
  const int64_t N = tokens.N, tiles = (N + SPLIT_TOKENS<T> - 1) / SPLIT_TOKENS<T>, head_blocks = (tiles + each - 1) / each, words = (P + 63) / 64;
  const int64_t head = device::block() / head_blocks, b = head / H, first = device::block() % head_blocks * each, last = smaller(tiles, first + each);
  const int lane = device::thread() % WARP;
  const T* start = x.base + x.offset(b, head % H, 0, 0);
  clear(zeros);
  for (int64_t word = 0; word < words; ++word) {
    CUDA_OPS_UNROLL(1)
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t i0 = tile * SPLIT_TOKENS<T> + device::thread() / WARP * (8 * OWN_TILES<T>), i = i0 + handed_row<T>();
      const bool mine = i < N && hands_row_on<T>(), valid = mine && index_of(tokens, b, i) >= 0;
      const auto row = [=](int r) { return i0 + r < N ? start + (i0 + r) * x.token : nullptr; };
      SplitRows<T, OWN_TILES<T>> rows;
      if constexpr (WHOLE) {
        if (i0 < N) rows.load(row, x.element, 0, D);
        if (tile == first) {
          const auto plane = [=](int p) { return word * 64 + p < P ? planes + (word * 64 + p) * D : nullptr; };
          if (word) device::barrier();
          split_vectors<SPLIT_THREADS>(SETS, plane, 0, D, memory);
          device::barrier();
        }
      }
      uint64_t code[ROWS] = {};
      CUDA_OPS_UNROLL(1)
      for (int set = 0; set < SETS; ++set) {
        const int64_t p0 = word * 64 + set * SET;
        SplitSums<OWN_TILES<T>> sums[1];
        sums[0].clear();
        if (p0 < P) {
          const auto plane = [=](int p) { return p0 + p < P ? planes + (p0 + p) * D : nullptr; };
          if constexpr (!WHOLE) multiply_pieces<T, SPLIT_THREADS>(i0 < N, row, x.element, plane, D, memory, sums);
          else if (i0 < N) rows.multiply(memory + set * SET_EIGHTS, D, sums[0]);
        }
        // planes lane / 4 and lane / 4 + 8, the first set in the lowest bits in the end
        CUDA_OPS_UNROLL(ROWS)
        for (int r = 0; r < ROWS; ++r) {
          const uint32_t bits = uint32_t(sums[0].positive(r / 2, r % 2)) | uint32_t(sums[0].positive(r / 2, r % 2 + 2)) << 8;
          code[r] = code[r] >> SET | uint64_t(bits) << (64 - SET);
        }
      }
      for (int r = 0; r < ROWS; ++r) code[r] <<= lane / 4;
      gather_rows<T>([&](int r, int other, bool upper, int lanes) {
        const uint64_t give = upper ? code[r] : code[other], keep = upper ? code[other] : code[r];
        const uint32_t low = uint32_t(device::shuffle_xor(int32_t(uint32_t(give)), lanes)), high = uint32_t(device::shuffle_xor(int32_t(uint32_t(give >> 32)), lanes));
        code[r] = keep | uint64_t(high) << 32 | low;
      });
      if (mine) codes[(head * N + i) * words + word] = valid ? code[0] : 0;
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

void hash_vectors(const Vectors& x, const float* planes, const Tokens& tokens, int64_t B, int64_t H, int64_t D, int64_t P, uint64_t* codes, Stream stream,
                  const Zeros& zeros) {
  if (B * H * tokens.N == 0) return;
  const auto tiles = [&](int64_t rows) { return (tokens.N + rows - 1) / rows; };
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const int64_t of_head = tiles(SPLIT_TOKENS<T>), each = tiles_of_block(B * H * of_head), blocks = B * H * ((of_head + each - 1) / each);
      const auto kernel = D <= PIECE ? hash_split<T, true> : hash_split<T, false>;
      CUDA_OPS_LAUNCH(kernel, blocks, SPLIT_THREADS, stream, Heads<T>(x), planes, tokens, H, D, P, each, codes, zeros);
    } else {
      CUDA_OPS_LAUNCH(hash_tile, B * H * tiles(TOKENS), THREADS, stream, Heads<T>(x), planes, tokens, H, D, P, codes, zeros);
    }
  });
}

}  // namespace cuda_ops::launch
