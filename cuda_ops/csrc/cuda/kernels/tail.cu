#include "tail.h"

#include "reduce.h"
#include "segments.h"
#include "top_list.h"

namespace {

constexpr int THREADS = 256, LENGTH = 64, CLUSTERS = 32, COLUMNS = 64;
constexpr int SLOTS = THREADS / COLUMNS, OWN = CLUSTERS / SLOTS;  // a thread has one column and OWN of the clusters
constexpr int WEIGHT_STRIDE = LENGTH + 4, ROW_STRIDE = COLUMNS + 1;

// One segment of the keys of a key cluster, with what the threads of its block share.
struct KeySegment {
  int64_t b, h, head, m, count;
  const int32_t* position;  // of each key
  float *weights, *rows;    // (CLUSTERS, WEIGHT_STRIDE), (LENGTH, ROW_STRIDE)
};

// Weights of the keys for CLUSTERS query clusters from c0 on, relative to the largest score of each, 0 for top keys; writes largest score and sum.
CUDA_OPS_DEVICE void weigh_keys(const KeySegment& s, const float* scores, const int32_t* top_keys, int64_t c0, int64_t C_row, int64_t C, int64_t K, int64_t N,
                                float* masses, float* sums) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < CLUSTERS; r += THREADS / WARP) {
    const int64_t c = c0 + r, row = s.head * C + c;
    float score[2], largest = -infinity();
    bool counts[2];
    for (int side = 0; side < 2; ++side) {
      const int j = side * WARP + lane;
      counts[side] = c < C_row && j < s.count && !holds(top_keys + row * K, K, s.position[j]);
      score[side] = counts[side] ? scores[row * N + s.position[j]] : -infinity();
      largest = larger(score[side], largest);
    }
    largest = warp_largest(largest);
    float sum = 0;
    for (int side = 0; side < 2; ++side) {
      const float weight = counts[side] ? device::exponential(score[side] - largest) : 0;
      s.weights[r * WEIGHT_STRIDE + side * WARP + lane] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[r] = sum;
    if (lane == 0 && c < C_row) {
      masses[c * 3] = largest;
      masses[c * 3 + 1] = sum;
    }
  }
}

template <class T>
CUDA_OPS_DEVICE void load_rows(const KeySegment& s, const Heads<T>& x, int64_t key_head, int64_t d0, int64_t D) {
  for (int e = device::thread(); e < LENGTH * COLUMNS; e += THREADS) {
    const int j = e / COLUMNS, d = e % COLUMNS;
    s.rows[j * ROW_STRIDE + d] = j < s.count && d0 + d < D ? x.at(s.b, key_head, s.position[j], d0 + d) : 0;
  }
}

// Weighted means of one column for the OWN clusters of this thread.
CUDA_OPS_DEVICE void column_means(const KeySegment& s, const float* sums, float* mean) {
  const int d = device::thread() % COLUMNS, r0 = device::thread() / COLUMNS * OWN;
  for (int r = 0; r < OWN; ++r) mean[r] = 0;
  for (int j = 0; j < LENGTH; ++j) {
    const float x = s.rows[j * ROW_STRIDE + d];
    CUDA_OPS_UNROLL(OWN)
    for (int r = 0; r < OWN; ++r) mean[r] = device::fma(s.weights[(r0 + r) * WEIGHT_STRIDE + j], x, mean[r]);
  }
  for (int r = 0; r < OWN; ++r) mean[r] = sums[r0 + r] > 0 ? mean[r] / sums[r0 + r] : 0;
}

// The weighted squares of one column about its means.
CUDA_OPS_DEVICE void column_squares(const KeySegment& s, const float* mean, float* squares) {
  const int d = device::thread() % COLUMNS, r0 = device::thread() / COLUMNS * OWN;
  for (int r = 0; r < OWN; ++r) squares[r] = 0;
  for (int j = 0; j < LENGTH; ++j) {
    const float x = s.rows[j * ROW_STRIDE + d];
    CUDA_OPS_UNROLL(OWN)
    for (int r = 0; r < OWN; ++r) {
      const float away = x - mean[r];
      squares[r] = device::fma(s.weights[(r0 + r) * WEIGHT_STRIDE + j] * away, away, squares[r]);
    }
  }
}

// Blocks are (batch row, head, segment): largest score, sum of weights, spread and the means of keys and values, for every query cluster.
template <class T>
CUDA_OPS_KERNEL sum_segment(const float* scores, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups, int64_t copies, const int32_t* top_keys,
                            Budgets budgets, int64_t segments, float* part_sums, float* part_masses) {
  CUDA_OPS_SHARED(int32_t, counters, THREADS / WARP);
  CUDA_OPS_SHARED(Segment, found, 1);
  CUDA_OPS_SHARED(int32_t, position, LENGTH);
  CUDA_OPS_SHARED(float, weights, CLUSTERS * WEIGHT_STRIDE);
  CUDA_OPS_SHARED(float, rows, LENGTH * ROW_STRIDE);
  CUDA_OPS_SHARED(float, sums, CLUSTERS);
  CUDA_OPS_SHARED(float, halves, CLUSTERS * 2);
  const int64_t head = device::block() / segments, b = head / shape.H, h = head % shape.H, D = shape.D, N = tokens.N, n = count_of(tokens, b);
  const Step step = step_of(budgets, n);
  const int64_t listed = (b * shape.H + h) / copies, segment = device::block() % segments;
  const int32_t* first = groups.first + listed * (budgets.M + 1);
  const Segment own = find_segment(first, step.key_clusters, LENGTH, segment, counters, found);
  if (own.cluster < 0) return;
  const int t = device::thread(), lane = t % WARP, r0 = t / COLUMNS * OWN;
  const int64_t begin = first[own.cluster] + own.rank;
  const KeySegment s{b, h, head, own.cluster, smaller(int64_t(LENGTH), first[own.cluster + 1] - begin), position, weights, rows};
  for (int j = t; j < s.count; j += THREADS) position[j] = int32_t(position_of(tokens, b, groups.order[listed * N + begin + j]));
  device::barrier();
  part_sums += device::block() * budgets.C * 2 * D;
  part_masses += device::block() * budgets.C * 3;
  for (int64_t c0 = 0; c0 < step.clusters; c0 += CLUSTERS) {
    weigh_keys(s, scores, top_keys, c0, step.clusters, budgets.C, budgets.K, N, part_masses, sums);
    float spread = 0;  // of cluster c0 + t, for the first CLUSTERS threads
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      const int64_t d = d0 + t % COLUMNS;
      float mean[OWN], squares[OWN];
      for (int values = 0; values < 2; ++values) {
        load_rows(s, values ? v : k, h / shape.group, d0, D);
        device::barrier();
        column_means(s, sums, mean);
        for (int r = 0; r < OWN; ++r)
          if (d < D && c0 + r0 + r < step.clusters) part_sums[(c0 + r0 + r) * 2 * D + values * D + d] = mean[r];
        if (!values) {
          column_squares(s, mean, squares);
          for (int r = 0; r < OWN; ++r) {
            const float half = warp_sum(squares[r]);
            if (lane == 0) halves[(r0 + r) * 2 + t / WARP % 2] = half;
          }
        }
        device::barrier();
        if (!values && t < CLUSTERS) spread += halves[t * 2] + halves[t * 2 + 1];
      }
    }
    if (t < CLUSTERS && c0 + t < step.clusters) part_masses[(c0 + t) * 3 + 2] = sums[t] > 0 ? spread / (sums[t] * float(D)) : 0;
    device::barrier();
  }
}

// Blocks are (batch row, head, key cluster): adds its segments up, in their order, for every query cluster.
constexpr int CELL_THREADS = 128;
CUDA_OPS_KERNEL sum_cells(Tokens tokens, Shape shape, cuda_ops::Groups groups, int64_t copies, Budgets budgets, int64_t segments, const float* part_sums,
                          const float* part_masses, cuda_ops::Cells cells) {
  CUDA_OPS_SHARED(int32_t, counters, CELL_THREADS / WARP);
  CUDA_OPS_SHARED(float, warps, CELL_THREADS / WARP);
  const int64_t head = device::block() / budgets.M, m = device::block() % budgets.M, b = head / shape.H, D = shape.D, C = budgets.C;
  const Step step = step_of(budgets, count_of(tokens, b));
  if (m >= step.key_clusters) return;
  const int t = device::thread();
  const int32_t* first = groups.first + head / copies * (budgets.M + 1);
  int32_t earlier = 0, begin;
  for (int64_t other = t; other < m; other += CELL_THREADS) earlier += segments_of(first[other + 1] - first[other], LENGTH);
  sum_before(earlier, counters, begin);
  const int64_t count = segments_of(first[m + 1] - first[m], LENGTH);
  part_sums += (head * segments + begin) * C * 2 * D;
  part_masses += (head * segments + begin) * C * 3;
  for (int64_t c = 0; c < step.clusters; ++c) {
    const int64_t cell = (head * C + c) * budgets.M + m;
    float largest = -infinity(), total = 0;
    for (int64_t s = 0; s < count; ++s) {
      const float* mass = part_masses + (s * C + c) * 3;
      if (mass[1] > 0 || mass[1] != mass[1]) largest = larger(mass[0], largest);
    }
    // A segment without a key for this cluster has no mass, whatever the others' largest score is.
    const auto mass_of = [&](int64_t s) {
      const float* mass = part_masses + (s * C + c) * 3;
      return mass[1] == 0 ? 0 : mass[1] * device::exponential(mass[0] - largest);
    };
    for (int64_t s = 0; s < count; ++s) total += mass_of(s);
    const bool empty = total == 0;
    float squares = 0;
    for (int64_t column = t; column < 2 * D; column += CELL_THREADS) {
      float mean = 0;
      for (int64_t s = 0; s < count && !empty; ++s) mean = device::fma(mass_of(s) / total, part_sums[(s * C + c) * 2 * D + column], mean);
      (column < D ? cells.keys[cell * D + column] : cells.values[cell * D + column - D]) = mean;
      if (column >= D) continue;
      for (int64_t s = 0; s < count && !empty; ++s) {
        const float away = part_sums[(s * C + c) * 2 * D + column] - mean;
        squares = device::fma(mass_of(s) / total * away, away, squares);
      }
    }
    float spread = block_sum(squares, warps) / float(D);
    for (int64_t s = 0; s < count && !empty; ++s) spread = device::fma(mass_of(s) / total, part_masses[(s * C + c) * 3 + 2], spread);
    if (t == 0) {
      cells.log_mass[cell] = empty ? -infinity() : largest + device::logarithm(total);
      cells.spread[cell] = empty ? 0 : spread;
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

int64_t tail_segments(int64_t N, int64_t M) { return (N + LENGTH - 1) / LENGTH + M; }

void tail(const float* scores, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, int64_t copies,
          const int32_t* top_keys, const Budgets& budgets, float* part_sums, float* part_masses, const Cells& cells, Stream stream) {
  const int64_t heads = shape.B * shape.H, segments = tail_segments(tokens.N, budgets.M);
  if (!heads) return;
  with_type(k.type, [&](auto type) {
    using T = decltype(type);
    const Heads<T> keys(k), values(v);
    CUDA_OPS_LAUNCH(sum_segment<T>, heads * segments, THREADS, stream, scores, keys, values, tokens, shape, groups, copies, top_keys, budgets, segments, part_sums,
                    part_masses);
  });
  CUDA_OPS_LAUNCH(sum_cells, heads * budgets.M, CELL_THREADS, stream, tokens, shape, groups, copies, budgets, segments, part_sums, part_masses, cells);
}

}  // namespace cuda_ops::launch
