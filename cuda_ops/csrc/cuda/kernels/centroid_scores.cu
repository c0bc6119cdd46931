#include "centroid_scores.h"

#include "split_product.h"

namespace {

constexpr int THREADS = 128, TOKENS = 64, CLUSTERS = 32, COLUMNS = 32, LANES = 16;
constexpr int OWN_TOKENS = TOKENS / LANES, OWN_CLUSTERS = CLUSTERS / (THREADS / LANES);
constexpr int STRIDE = COLUMNS / 4 + 1;  // in quads; one more, so that rows at the same place of the piece lie in different banks

// A block has the scores of CLUSTERS centroids for TOKENS tokens of one head. Of float32 keys a thread has those of 4 centroids for 4 tokens, each one chain of
// fused additions in the order of d, which goes through D in pieces of COLUMNS; of 16-bit keys those that its lane gets from the tensor cores.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(THREADS) score_tile(const float* centroids, Heads<T> k, Tokens tokens, Shape shape, cuda_ops::Budgets budgets, float* scores) {
  constexpr bool SPLIT = sizeof(T) == 2;
  using Product = SplitProduct<T, TOKENS, CLUSTERS>;
  CUDA_OPS_SHARED(Quad, memory, SPLIT ? Product::QUADS : (CLUSTERS + TOKENS) * STRIDE);
  CUDA_OPS_SHARED(uint32_t, valid, TOKENS / WARP);
  const int64_t N = shape.N, D = shape.D, C = budgets.C, cluster_tiles = (C + CLUSTERS - 1) / CLUSTERS, token_tiles = (N + TOKENS - 1) / TOKENS;
  const int64_t c0 = device::block() % cluster_tiles * CLUSTERS, i0 = device::block() / cluster_tiles % token_tiles * TOKENS;
  const int64_t head = device::block() / cluster_tiles / token_tiles, b = head / shape.H, key_head = head % shape.H / shape.group;
  const int64_t clusters = smaller<int64_t>(step_of(budgets, count_of(tokens, b)).clusters, C);
  if (c0 >= clusters) return;
  const int t = device::thread();
  const uint32_t votes = device::ballot(t < TOKENS && i0 + t < N && index_of(tokens, b, i0 + t) >= 0);
  if (t < TOKENS && t % WARP == 0) valid[t / WARP] = votes;
  device::barrier();
  uint32_t any = 0;
  for (int w = 0; w < TOKENS / WARP; ++w) any |= valid[w];
  centroids += head * C * D;
  // of a token and a centroid of the tile
  const auto store = [=](int token, int c, float sum) {
    if (c0 + c < clusters && i0 + token < N)
      scores[(head * C + c0 + c) * N + i0 + token] = valid[token / WARP] >> token % WARP & 1 ? sum : -infinity();
  };
  if constexpr (SPLIT) {
    const auto key = [=](int i) { return valid[i / WARP] >> i % WARP & 1 ? k.base + k.offset(b, key_head, i0 + i, 0) : nullptr; };
    const auto centroid = [=](int c) { return c0 + c < clusters ? centroids + (c0 + c) * D : nullptr; };
    typename Product::Sums sums = {};
    if (any) Product::multiply(TOKENS, key, k.element, centroid, D, memory, sums);
    CUDA_OPS_UNROLL(Product::SETS)
    for (int set = 0; set < Product::SETS; ++set)
      for (int tile = 0; tile < 2; ++tile)
        for (int i = 0; i < 4; ++i) store(t / WARP * 16 + tile * 8 + column_of_d(i), set * SET + row_of_d(i), sums[set].of(tile, i));
  } else {
    Quad *centroid_piece = memory, *key_piece = memory + CLUSTERS * STRIDE;
    float sum[OWN_CLUSTERS][OWN_TOKENS] = {};
    const int own_token = t % LANES, own_cluster = t / LANES * OWN_CLUSTERS;
    // a tile of padding has nothing to add
    for (int64_t d0 = 0; d0 < D && any; d0 += COLUMNS) {
      float *to_centroid = centroid_piece->at, *to_key = key_piece->at;
      for (int e = t; e < CLUSTERS * COLUMNS; e += THREADS) {
        const int64_t c = c0 + e / COLUMNS, d = d0 + e % COLUMNS;
        to_centroid[e / COLUMNS * (4 * STRIDE) + e % COLUMNS] = c < clusters && d < D ? centroids[c * D + d] : 0;
      }
      for (int e = t; e < TOKENS * COLUMNS; e += THREADS) {
        const int i = e / COLUMNS;
        const int64_t d = d0 + e % COLUMNS;
        to_key[i * (4 * STRIDE) + e % COLUMNS] = valid[i / WARP] >> i % WARP & 1 && d < D ? k.at(b, key_head, i0 + i, d) : 0;
      }
      device::barrier();
      CUDA_OPS_UNROLL(1)
      for (int quad = 0; quad < COLUMNS / 4; ++quad) {
        Quad keys[OWN_TOKENS];
        for (int i = 0; i < OWN_TOKENS; ++i) keys[i] = key_piece[(own_token + i * LANES) * STRIDE + quad];
        for (int c = 0; c < OWN_CLUSTERS; ++c) {
          const Quad centroid = centroid_piece[(own_cluster + c) * STRIDE + quad];
          for (int i = 0; i < OWN_TOKENS; ++i)
            for (int d = 0; d < 4; ++d) sum[c][i] = device::fma(centroid.at[d], keys[i].at[d], sum[c][i]);
        }
      }
      device::barrier();
    }
    for (int c = 0; c < OWN_CLUSTERS; ++c)
      for (int i = 0; i < OWN_TOKENS; ++i) store(own_token + i * LANES, own_cluster + c, sum[c][i]);
  }
}

struct alignas(8) Two {
  float at[2];
};

// The same for 16-bit keys of no more columns than a piece: a block has `each` tiles of tokens, splits its centroids once, and of each tile a warp keeps its rows,
// so that no warp waits for another one between the tiles.
template <class T>
constexpr int SPLIT_TOKENS = THREADS / WARP * 8 * OWN_TILES<T>;
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(THREADS, 4) score_split(const float* centroids, Heads<T> k, Tokens tokens, Shape shape, cuda_ops::Budgets budgets, int64_t each,
                                                        float* scores) {
  constexpr int SETS = CLUSTERS / SET, ROWS = 8 * OWN_TILES<T>;
  CUDA_OPS_SHARED(Eight, memory, SETS * SET_EIGHTS);
  const int64_t N = shape.N, D = shape.D, C = budgets.C, cluster_tiles = (C + CLUSTERS - 1) / CLUSTERS, tiles = (N + SPLIT_TOKENS<T> - 1) / SPLIT_TOKENS<T>;
  const int64_t head_blocks = (tiles + each - 1) / each, c0 = device::block() % cluster_tiles * CLUSTERS;
  const int64_t first = device::block() / cluster_tiles % head_blocks * each, last = smaller(tiles, first + each);
  const int64_t head = device::block() / cluster_tiles / head_blocks, b = head / shape.H, key_head = head % shape.H / shape.group;
  const int left = int(smaller<int64_t>(smaller<int64_t>(step_of(budgets, count_of(tokens, b)).clusters, C) - c0, CLUSTERS));
  if (left <= 0) return;
  const int lane = device::thread() % WARP;
  const T* start = k.base + k.offset(b, key_head, 0, 0);
  const bool pairs = N % 2 == 0 && uintptr_t(scores) % 8 == 0;
  CUDA_OPS_UNROLL(1)
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t i0 = tile * SPLIT_TOKENS<T> + device::thread() / WARP * ROWS;
    const uint32_t valid = device::ballot(lane < ROWS && i0 + lane < N && index_of(tokens, b, i0 + lane) >= 0);
    SplitRows<T, OWN_TILES<T>> rows;
    if (valid) rows.load([=](int r) { return valid >> r & 1 ? start + (i0 + r) * k.token : nullptr; }, k.element, 0, D);
    if (tile == first) {
      split_vectors<THREADS>(SETS, [=](int c) { return c < left ? centroids + (head * C + c0 + c) * D : nullptr; }, 0, D, memory);
      device::barrier();
    }
    CUDA_OPS_UNROLL(1)
    for (int set = 0; set < SETS && set * SET < left; ++set) {
      SplitSums<OWN_TILES<T>> sums;
      sums.clear();
      if (valid) rows.multiply(memory + set * SET_EIGHTS, D, sums);
      CUDA_OPS_UNROLL(2)
      for (int side = 0; side < 2; ++side) {
        const int c = set * SET + row_of_d(2 * side);
        if (c >= left) continue;
        float* to = scores + (head * C + c0 + c) * N + i0 + column_of_d(0);
        CUDA_OPS_UNROLL(OWN_TILES<T>)
        for (int own = 0; own < OWN_TILES<T>; ++own) {
          Two two;
          for (int i = 0; i < 2; ++i) two.at[i] = valid >> (own * 8 + column_of_d(i)) & 1 ? sums.of(own, 2 * side + i) : -infinity();
          const int64_t inside = N - i0 - own * 8 - column_of_d(0);
          if (pairs) {
            if (inside > 0) *reinterpret_cast<Two*>(to + own * 8) = two;
          } else {
            for (int i = 0; i < 2; ++i)
              if (i < inside) to[own * 8 + i] = two.at[i];
          }
        }
      }
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

void centroid_scores(const float* centroids, const Vectors& k, const Tokens& tokens, const Shape& shape, const Budgets& budgets, float* scores, Stream stream) {
  const int64_t parts = shape.B * shape.H * ((budgets.C + CLUSTERS - 1) / CLUSTERS);
  if (!parts || !shape.N) return;
  const auto tiles = [&](int64_t rows) { return (shape.N + rows - 1) / rows; };
  with_type(k.type, [&](auto type) {
    using T = decltype(type);
    const Heads<T> keys(k);
    if constexpr (sizeof(T) == 2) {
      if (shape.D <= PIECE) {
        const int64_t of_head = tiles(SPLIT_TOKENS<T>), each = tiles_of_block(parts * of_head);
        CUDA_OPS_LAUNCH(score_split<T>, parts * ((of_head + each - 1) / each), THREADS, stream, centroids, keys, tokens, shape, budgets, each, scores);
        return;
      }
    }
    CUDA_OPS_LAUNCH(score_tile<T>, parts * tiles(TOKENS), THREADS, stream, centroids, keys, tokens, shape, budgets, scores);
  });
}

}  // namespace cuda_ops::launch
