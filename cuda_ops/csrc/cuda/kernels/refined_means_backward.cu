#include "refined_backward_tiles.h"

namespace {

constexpr int THREADS = 256, PARTS = THREADS / SLOTS;
constexpr int64_t PART = 256;

// Sums of LENGTH numbers of KEYS keys at a time, times scores, for CLUSTERS clusters: score(cluster, key) of them. float32 by the FMA units, one chain of additions.
class VectorSums {
 public:
  static constexpr int CLUSTERS = 32, KEYS = 32, LENGTH = PIECE_LENGTH, QUADS = KEYS * PIECE_STRIDE + CLUSTERS * KEYS / 4;
  template <class Score, class Rows>
  CUDA_OPS_DEVICE void add(const Score& score, const Rows& keys, int64_t d0, TileQuad* memory) {
    float* scores = (memory + KEYS * PIECE_STRIDE)->at;
    load_piece(keys, KEYS, d0, memory);
    for (int e = device::thread(); e < CLUSTERS * KEYS; e += BLOCK_THREADS) scores[e] = score(e / KEYS, e % KEYS);
    device::barrier();
    CUDA_OPS_UNROLL(4)
    for (int j = 0; j < KEYS; ++j)
      for (int r = 0; r < OWN; ++r)
        for (int side = 0; side < 2; ++side)
          sum_[r][side] = device::fma(scores[(own_row() + r) * KEYS + j], memory->at[j * (OWN * PIECE_STRIDE) + own_lane() * 2 + side], sum_[r][side]);
    device::barrier();
  }
  template <class Write>
  CUDA_OPS_DEVICE void each(const Write& write) {
    for (int r = 0; r < OWN; ++r)
      for (int side = 0; side < 2; ++side) write(own_row() + r, own_lane() * 2 + side, sum_[r][side]);
  }

 private:
  float sum_[OWN][2] = {};
};

// On the tensor cores.
template <class T>
class MatrixSums {
  using Tile = MatrixTile<T>;

 public:
  static constexpr int CLUSTERS = TILE, KEYS = TILE, LENGTH = TILE, QUADS = Tile::QUADS;
  template <class Score>
  CUDA_OPS_DEVICE void add(const Score& score, const TileRows<T>& keys, int64_t d0, TileQuad* memory) {
    typename Tile::Numbers scores;
    CUDA_OPS_UNROLL(Tile::ROWS)
    for (int r = 0; r < Tile::ROWS; ++r)
      CUDA_OPS_UNROLL(Tile::COLUMNS)
      for (int c = 0; c < Tile::COLUMNS; ++c) scores(r, c) = score(Tile::row(r), Tile::column(c));
    Tile::add(scores, keys, d0, memory, sum_);
  }
  template <class Write>
  CUDA_OPS_DEVICE void each(const Write& write) {
    CUDA_OPS_UNROLL(Tile::ROWS)
    for (int r = 0; r < Tile::ROWS; ++r)
      CUDA_OPS_UNROLL(Tile::COLUMNS)
      for (int c = 0; c < Tile::COLUMNS; ++c) write(Tile::row(r), Tile::column(c), sum_(r, c));
  }

 private:
  typename Tile::Numbers sum_;
};

template <class T>
using SumsOf = std::conditional_t<sizeof(T) == 2, MatrixSums<T>, VectorSums>;

// A block adds up PART keys, times the gradients of their scores, for CLUSTERS query clusters.
template <class T>
CUDA_OPS_KERNEL sum_scores(RefinedRows<T> rows, RefinedBackward p, int64_t parts, int64_t cluster_tiles) {
  using Sums = SumsOf<T>;
  CUDA_OPS_SHARED(TileQuad, memory, Sums::QUADS);
  CUDA_OPS_SHARED(int32_t, position, Sums::KEYS);
  const int64_t N = p.in.shape.N, D = p.in.shape.D, C = p.budgets.C, part = device::block() / cluster_tiles % parts;
  const int64_t c0 = device::block() % cluster_tiles * Sums::CLUSTERS;
  const Cluster own = cluster_of(p, device::block() / cluster_tiles / parts, 0);
  const int64_t begin = part * PART, end = smaller(begin + PART, own.n);
  if (begin >= own.n || c0 >= own.clusters) return;
  const TileRows<T> keys{rows.k, own.b, own.h / p.in.shape.group, D, position};
  const auto score = [&](int c, int j) { return c0 + c < own.clusters && position[j] >= 0 ? p.scores[(own.head * C + c0 + c) * N + position[j]] : 0; };
  const int t = device::thread();
  for (int64_t d0 = 0; d0 < D; d0 += Sums::LENGTH) {
    Sums sums;
    for (int64_t i0 = begin; i0 < end; i0 += Sums::KEYS) {
      if (t < Sums::KEYS) {
        const int64_t token = i0 + t < end ? position_of(p.in.tokens, own.b, i0 + t) : -1;
        const int32_t m = token >= 0 ? p.key_clusters[own.head * N + token] : -1;
        position[t] = m >= 0 && m < own.cells ? int32_t(token) : -1;  // no other has a gradient
      }
      device::barrier();
      sums.add(score, keys, d0, memory);
    }
    sums.each([&](int c, int column, float sum) {
      const int64_t d = d0 + column;
      if (c0 + c < own.clusters && d < D) p.mean_parts[((own.head * parts + part) * C + c0 + c) * D + d] = sum;
    });
  }
}

// A block has the mean of one cluster, SLOTS columns at a time: through its scores, and through delta, which every query takes from it. Member r belongs to part
// r % PARTS; a part adds in the order of the members and the parts are added in order.
template <class T>
CUDA_OPS_KERNEL sum_means(RefinedRows<T> rows, RefinedBackward p, int64_t parts) {
  CUDA_OPS_SHARED(float, sums, THREADS);
  const int64_t N = p.in.shape.N, D = p.in.shape.D, C = p.budgets.C, M = p.budgets.M;
  const Cluster own = cluster_of(p, device::block() / C, device::block() % C);
  const int32_t* first_of = p.queries.first + own.head * (C + 1) + own.c;
  const int32_t* members = p.queries.order + own.head * N + first_of[0];
  const int64_t size = first_of[1] - first_of[0];
  if (own.c >= own.clusters || size == 0) return;
  const int t = device::thread(), part = t / SLOTS;
  for (int64_t d0 = 0; d0 < D; d0 += SLOTS) {
    const int64_t d = d0 + t % SLOTS;
    float sum = 0;
    for (int64_t r = part; r < size && d < D; r += PARTS) {
      const int64_t i = members[r];
      const float away = rows.q.at(own.b, own.h, position_of(p.in.tokens, own.b, i), d) * p.in.scale - p.means[own.row * D + d];
      sum = device::fma(p.totals[own.head * N + i].second, away, sum);
    }
    for (int64_t m = part; m < own.cells && d < D; m += PARTS)
      sum = device::fma(p.cell_grads.shift[own.row * M + m], p.cells.keys[(own.row * M + m) * D + d], sum);
    sums[t] = sum;
    device::barrier();
    if (part == 0 && d < D) {
      for (int other = 1; other < PARTS; ++other) sum += sums[other * SLOTS + t];
      float through_scores = 0;
      for (int64_t range = 0; range * PART < own.n; ++range) through_scores += p.mean_parts[((own.head * parts + range) * C + own.c) * D + d];
      p.mean_grads[own.row * D + d] = (through_scores - sum) / float(size);
    }
    device::barrier();
  }
}

// A warp has one query.
template <class T>
CUDA_OPS_KERNEL sum_queries(RefinedBackward p, Heads<T> grad_q) {
  const int64_t N = p.in.shape.N, D = p.in.shape.D, C = p.budgets.C;
  const int64_t row = device::block() * (THREADS / WARP) + device::thread() / WARP, head = row / N, token = row % N;
  if (head >= p.in.shape.B * p.in.shape.H) return;
  const Cluster own = cluster_of(p, head, 0);
  const int64_t i = index_of(p.in.tokens, own.b, token);
  const int32_t c = i < 0 ? -1 : p.query_clusters[head * N + token];
  if (c < 0 || c >= own.clusters) return;
  for (int64_t d = device::thread() % WARP; d < D; d += WARP)
    grad_q.set(own.b, own.h, token, d, p.in.scale * (p.query_grads[(head * N + i) * D + d] + p.mean_grads[(head * C + c) * D + d]));
}

}  // namespace

namespace cuda_ops {

int64_t refined_mean_parts(int64_t N) { return (N + PART - 1) / PART; }

namespace launch {

void refined_means_backward(const RefinedBackward& p, Stream stream) {
  const int64_t heads = p.in.shape.B * p.in.shape.H, C = p.budgets.C, parts = refined_mean_parts(p.in.shape.N);
  const int64_t queries = heads * p.in.shape.N;
  if (!queries) return;
  with_type(p.in.q.type, [&](auto type) {
    using T = decltype(type);
    const RefinedRows<T> rows(p);
    const int64_t cluster_tiles = (C + SumsOf<T>::CLUSTERS - 1) / SumsOf<T>::CLUSTERS;
    CUDA_OPS_LAUNCH(sum_scores<T>, heads * parts * cluster_tiles, BLOCK_THREADS, stream, rows, p, parts, cluster_tiles);
    CUDA_OPS_LAUNCH(sum_means<T>, heads * C, THREADS, stream, rows, p, parts);
    CUDA_OPS_LAUNCH(sum_queries<T>, (queries + THREADS / WARP - 1) / (THREADS / WARP), THREADS, stream, p, Heads<T>(p.grad_q));
  });
}

}  // namespace launch
}  // namespace cuda_ops
