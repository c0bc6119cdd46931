#include "tail.h"

#include "reduce.h"
#include "segments.h"
#include "top_list.h"
#include "weighted_rows.h"

namespace {

constexpr int LENGTH = 64, MOST_COLUMNS = 256;

// One segment of the keys of a key cluster, with what the threads of its block share.
struct KeySegment {
  int64_t b, h, head, count;
  const int32_t* position;       // of each key
  float *center, *away;          // the mean of its keys, and the square of the distance of each from it
  bfloat16* weights;
  float *sums, *squares;         // of the weights, and of the weighted squares, of each query cluster
};

// `partial` has a place for each thread.
template <class T>
CUDA_OPS_DEVICE void find_center(const KeySegment& s, const Heads<T>& k, int64_t key_head, int64_t D, float* partial) {
  constexpr int SLOTS = SUM_THREADS / COLUMNS;
  const int t = device::thread(), lane = t % WARP, slot = t / COLUMNS;
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    const int64_t d = d0 + t % COLUMNS;
    float sum = 0;
    CUDA_OPS_UNROLL(8)
    for (int j = slot; j < LENGTH; j += SLOTS) sum += j < s.count && d < D ? k.at(s.b, key_head, s.position[j], d) : 0;
    partial[t] = sum;
    device::barrier();
    if (slot == 0 && d < D) {
      for (int other = 1; other < SLOTS; ++other) sum += partial[other * COLUMNS + t];
      s.center[d] = sum / float(s.count);
    }
    device::barrier();
  }
  for (int j = t / WARP; j < s.count; j += SUM_THREADS / WARP) {
    float square = 0;
    for (int64_t d = lane; d < D; d += WARP) {
      const float difference = k.at(s.b, key_head, s.position[j], d) - s.center[d];
      square = device::fma(difference, difference, square);
    }
    square = warp_sum(square);
    if (lane == 0) s.away[j] = square;
  }
}

// Weights of the keys for CLUSTERS query clusters from c0 on, relative to the largest score of each, 0 for top keys; writes largest score and sum.
CUDA_OPS_DEVICE void weigh_keys(const KeySegment& s, const float* scores, const int32_t* top_keys, int64_t c0, int64_t C_row, int64_t C, int64_t K, int64_t N,
                                float* masses) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < CLUSTERS; r += SUM_THREADS / WARP) {
    const int64_t c = c0 + r, row = s.head * C + c;
    float score[2], largest = -infinity();
    bool counts[2];
    int keys = 0;
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int j = side * WARP + lane;
      counts[side] = c < C_row && j < s.count && !holds(top_keys + row * K, K, s.position[j]);
      score[side] = counts[side] ? scores[row * N + s.position[j]] : -infinity();
      largest = larger(score[side], largest);
      keys += device::ones(device::ballot(counts[side]));
    }
    largest = warp_largest(largest);
    float sum = 0, square = 0;
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int j = side * WARP + lane;
      const float weight = counts[side] ? device::exponential(score[side] - largest) : 0;
      set_weight<LENGTH>(s.weights, r, j, weight);
      sum += weight;
      if (counts[side]) square = device::fma(weight, s.away[j], square);
    }
    sum = warp_sum(sum);
    square = warp_sum(square);
    if (lane == 0) {
      s.sums[r] = sum;
      s.squares[r] = keys > 1 ? square : 0;  // a single key has no spread at all
    }
    if (lane == 0 && c < C_row) {
      masses[c * 3] = largest;
      masses[c * 3 + 1] = sum;
    }
  }
}

// Adds the squares of two numbers of each of two rows up over the columns of the warp, to (CLUSTERS, SLICES).
CUDA_OPS_DEVICE void add_columns(float (&square)[2], float* partial) {
  CUDA_OPS_UNROLL(2)
  for (int side = 0; side < 2; ++side) {
    for (int lanes = 2; lanes; lanes /= 2) square[side] += device::shuffle_xor(square[side], lanes);
    if (device::thread() % 4 == 0) partial[RowSums::cluster(2 * side) * SLICES + RowSums::slice()] = square[side];
  }
}

// Blocks are (batch row, head, segment): largest score, sum of weights, spread and the means of keys and values, for every query cluster. The spread about the mean
// is that about the center less the square of the distance of both.
template <class T>
CUDA_OPS_KERNEL sum_segment(const float* scores, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups, int64_t copies,
                            const int32_t* top_keys, Budgets budgets, int64_t segments, float* part_sums, float* part_masses) {
  CUDA_OPS_SHARED(int32_t, counters, SUM_THREADS / WARP);
  CUDA_OPS_SHARED(Segment, found, 1);
  CUDA_OPS_SHARED(int32_t, position, LENGTH);
  CUDA_OPS_SHARED(float, center, MOST_COLUMNS);
  CUDA_OPS_SHARED(float, away, LENGTH);
  CUDA_OPS_SHARED(bfloat16, weights, FLOAT_PARTS * CLUSTERS * (LENGTH + 8));
  CUDA_OPS_SHARED(bfloat16, rows, DATA_PARTS<T> * LENGTH * ROW_STRIDE);
  CUDA_OPS_SHARED(float, sums, CLUSTERS);
  CUDA_OPS_SHARED(float, squares, CLUSTERS);
  CUDA_OPS_SHARED(float, partial, SUM_THREADS);
  const int64_t head = device::block() / segments, b = head / shape.H, h = head % shape.H, D = shape.D, N = tokens.N, n = count_of(tokens, b);
  const Step step = step_of(budgets, n);
  const int64_t listed = (b * shape.H + h) / copies, segment = device::block() % segments, key_head = h / shape.group;
  const int32_t* first = groups.first + listed * (budgets.M + 1);
  const Segment own = find_segment(first, step.key_clusters, LENGTH, segment, counters, found);
  if (own.cluster < 0) return;
  const int t = device::thread();
  const int64_t begin = first[own.cluster] + own.rank;
  const KeySegment s{b, h, head, smaller(int64_t(LENGTH), first[own.cluster + 1] - begin), position, center, away, weights, sums, squares};
  for (int j = t; j < s.count; j += SUM_THREADS) position[j] = int32_t(position_of(tokens, b, groups.order[listed * N + begin + j]));
  device::barrier();
  find_center(s, k, key_head, D, partial);
  device::barrier();
  part_sums += device::block() * budgets.C * 2 * D;
  part_masses += device::block() * budgets.C * 3;
  for (int64_t c0 = 0; c0 < step.clusters; c0 += CLUSTERS) {
    weigh_keys(s, scores, top_keys, c0, step.clusters, budgets.C, budgets.K, N, part_masses);
    float distance = 0;  // of cluster c0 + t, for the first CLUSTERS threads
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      for (int values = 0; values < 2; ++values) {
        Heads<T> x = k;
        if (values) x = v;
        load_rows<LENGTH>(x, b, key_head, position, s.count, d0, D, rows);
        device::barrier();
        RowSums sum;
        sum.template add<T, LENGTH, LENGTH>(weights, 0, rows, s.count);
        float square[2] = {};
        CUDA_OPS_UNROLL(2)
        for (int n8 = 0; n8 < 2; ++n8)
          CUDA_OPS_UNROLL(4)
          for (int i = 0; i < 4; ++i) {
            const int r = RowSums::cluster(i);
            const int64_t d = d0 + RowSums::column(n8, i);
            const float mean = sums[r] == 0 ? 0 : sum.at(n8, i) / sums[r];
            if (d < D && c0 + r < step.clusters) part_sums[(c0 + r) * 2 * D + values * D + d] = mean;
            const float difference = !values && d < D ? mean - center[d] : 0;
            square[i / 2] = device::fma(difference, difference, square[i / 2]);
          }
        if (!values) add_columns(square, partial);
        device::barrier();
        for (int other = 0; other < SLICES && !values && t < CLUSTERS; ++other) distance += partial[t * SLICES + other];
      }
    }
    if (t < CLUSTERS && c0 + t < step.clusters) {
      const float spread = sums[t] == 0 ? 0 : (squares[t] / sums[t] - distance) / float(D);
      part_masses[(c0 + t) * 3 + 2] = spread < 0 ? 0 : spread;
    }
    device::barrier();
  }
}

// Blocks are (batch row, head, key cluster, CELL_CLUSTERS query clusters): every warp adds the segments of one cell up after another, in their order.
constexpr int CELL_THREADS = 128, CELL_CLUSTERS = 16;
CUDA_OPS_KERNEL sum_cells(Tokens tokens, Shape shape, cuda_ops::Groups groups, int64_t copies, Budgets budgets, int64_t segments, const float* part_sums,
                          const float* part_masses, cuda_ops::Cells cells) {
  CUDA_OPS_SHARED(int32_t, counters, CELL_THREADS / WARP);
  const int64_t D = shape.D, C = budgets.C, sides = (C + CELL_CLUSTERS - 1) / CELL_CLUSTERS, task = device::block() / sides;
  const int64_t head = task / budgets.M, m = task % budgets.M, b = head / shape.H, c0 = device::block() % sides * CELL_CLUSTERS;
  const Step step = step_of(budgets, count_of(tokens, b));
  if (m >= step.key_clusters || c0 >= step.clusters) return;
  const int t = device::thread(), lane = t % WARP;
  const int32_t* first = groups.first + head / copies * (budgets.M + 1);
  int32_t earlier = 0, begin;
  for (int64_t other = t; other < m; other += CELL_THREADS) earlier += segments_of(first[other + 1] - first[other], LENGTH);
  sum_before(earlier, counters, begin);
  const int64_t count = segments_of(first[m + 1] - first[m], LENGTH), next = smaller(c0 + CELL_CLUSTERS, int64_t(step.clusters));
  for (int64_t c = c0 + t / WARP; c < next; c += CELL_THREADS / WARP) {
    const int64_t cell = (head * C + c) * budgets.M + m, stride = C * 2 * D;
    const float* sums = part_sums + ((head * segments + begin) * C + c) * 2 * D;
    const float* masses = part_masses + ((head * segments + begin) * C + c) * 3;
    float largest = -infinity(), total = 0;
    for (int64_t s = lane; s < count; s += WARP) {
      const float* mass = masses + s * C * 3;
      if (mass[1] > 0 || mass[1] != mass[1]) largest = larger(mass[0], largest);
    }
    largest = warp_largest(largest);
    // A segment without a key for this cluster has no mass, whatever the others' largest score is.
    const auto mass_of = [&](int64_t s) {
      const float* mass = masses + s * C * 3;
      return s >= count || mass[1] == 0 ? 0 : mass[1] * device::exponential(mass[0] - largest);
    };
    for (int64_t s = lane; s < count; s += WARP) total += mass_of(s);
    total = warp_sum(total);
    const bool empty = total == 0;
    const int64_t used = empty ? 0 : count;
    // add(segment, its share of the mass), in order
    const auto each_share = [&](const auto& add) {
      for (int64_t s0 = 0; s0 < used; s0 += WARP) {
        const float share = mass_of(s0 + lane) / total;
        const int last = int(smaller(int64_t(WARP), used - s0));
        CUDA_OPS_UNROLL(4)
        for (int i = 0; i < last; ++i) add(s0 + i, device::shuffle(share, i));
      }
    };
    float spread = 0, squares = 0;
    for (int64_t d0 = 0; d0 < 2 * D; d0 += WARP) {
      const int64_t column = d0 + lane;
      const bool here = column < 2 * D;
      float mean = 0;
      each_share([&](int64_t s, float share) { mean = device::fma(share, here ? sums[s * stride + column] : 0, mean); });
      if (here) (column < D ? cells.keys[cell * D + column] : cells.values[cell * D + column - D]) = mean;
      if (d0 >= D || count == 1) continue;
      each_share([&](int64_t s, float share) {
        const float away = column < D ? sums[s * stride + column] - mean : 0;
        squares = device::fma(share * away, away, squares);
      });
    }
    each_share([&](int64_t s, float share) { spread = device::fma(share, masses[s * C * 3 + 2], spread); });
    spread += warp_sum(squares) / float(D);
    if (lane == 0) {
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
    CUDA_OPS_LAUNCH(sum_segment<T>, heads * segments, SUM_THREADS, stream, scores, keys, values, tokens, shape, groups, copies, top_keys, budgets, segments,
                    part_sums, part_masses);
  });
  const int64_t blocks = heads * budgets.M * ((budgets.C + CELL_CLUSTERS - 1) / CELL_CLUSTERS);
  if (blocks) CUDA_OPS_LAUNCH(sum_cells, blocks, CELL_THREADS, stream, tokens, shape, groups, copies, budgets, segments, part_sums, part_masses, cells);
}

}  // namespace cuda_ops::launch
