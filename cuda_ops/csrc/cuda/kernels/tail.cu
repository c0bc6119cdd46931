#include "tail.h"

#include "reduce.h"
#include "segments.h"
#include "top_list.h"
#include "weighted_rows.h"

namespace {

constexpr int LENGTH = 64, MOST_COLUMNS = 256;

// One segment of the keys of a key cluster, with what the threads of its block share.
struct KeySegment {
  int64_t b, h, head;
  int count;
  const int32_t* position;       // of each key, ascending, and INT32_MAX up to LENGTH
  float *center, *away;          // the mean of its keys, and the square of the distance of each from it
  bfloat16* weights;
  float *sums, *squares;         // of the weights, and of the weighted squares, of each query cluster
};

// Eight numbers of a row from d on, and zeros behind its end.
template <class T>
CUDA_OPS_DEVICE void read_eight(const Heads<T>& x, int64_t row, int64_t d, int64_t D, float (&to)[8]) {
  T from[8];
  if constexpr (sizeof(T) == 2) {
    read_numbers(x, row, true, d, D, from);
  } else {
    CUDA_OPS_UNROLL(8)
    for (int i = 0; i < 8; ++i) from[i] = d + i < D ? x.base[row + (d + i) * x.element] : T{};
  }
  CUDA_OPS_UNROLL(8)
  for (int i = 0; i < 8; ++i) to[i] = widen(from[i]);
}

// A thread has eight numbers of two keys, eight threads a key. `partial` has a place for each column of each warp.
template <class T>
CUDA_OPS_DEVICE void find_center(const KeySegment& s, const Heads<T>& k, int64_t key_head, int64_t D, float* partial) {
  constexpr int GROUPS = COLUMNS / 8, KEYS = SUM_THREADS / GROUPS, SIDES = LENGTH / KEYS;
  static_assert(COLUMNS <= SUM_THREADS && WARP % GROUPS == 0);
  const int t = device::thread(), warp = t / WARP, group = t % GROUPS;
  const float share = 1 / float(s.count);
  int64_t row[SIDES];
  float numbers[SIDES][8], square[SIDES] = {};
  CUDA_OPS_UNROLL(SIDES)
  for (int side = 0; side < SIDES; ++side) {
    const int j = side * KEYS + t / GROUPS;
    row[side] = k.offset(s.b, key_head, j < s.count ? s.position[j] : s.position[0], 0);
  }
  const auto read = [&](int64_t d0) {
    CUDA_OPS_UNROLL(SIDES)
    for (int side = 0; side < SIDES; ++side) read_eight(k, row[side], d0 + group * 8, D, numbers[side]);
  };
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    read(d0);
    float sum[8] = {};
    CUDA_OPS_UNROLL(SIDES)
    for (int side = 0; side < SIDES; ++side)
      CUDA_OPS_UNROLL(8)
      for (int i = 0; i < 8; ++i) sum[i] += side * KEYS + t / GROUPS < s.count ? numbers[side][i] : 0;
    CUDA_OPS_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      for (int lanes = GROUPS; lanes < WARP; lanes *= 2) sum[i] += device::shuffle_xor(sum[i], lanes);
    }
    if (t % WARP < GROUPS) {
      CUDA_OPS_UNROLL(8)
      for (int i = 0; i < 8; ++i) partial[warp * COLUMNS + group * 8 + i] = sum[i];
    }
    device::barrier();
    if (t < COLUMNS && d0 + t < D) {
      float all = 0;
      CUDA_OPS_UNROLL(SUM_THREADS / WARP)
      for (int other = 0; other < SUM_THREADS / WARP; ++other) all += partial[other * COLUMNS + t];
      s.center[d0 + t] = all * share;
    }
    device::barrier();
  }
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    if (D > COLUMNS) read(d0);
    CUDA_OPS_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      const int64_t d = d0 + group * 8 + i;
      CUDA_OPS_UNROLL(SIDES)
      for (int side = 0; side < SIDES; ++side) {
        const float difference = d < D ? numbers[side][i] - s.center[d] : 0;
        square[side] = device::fma(difference, difference, square[side]);
      }
    }
  }
  CUDA_OPS_UNROLL(SIDES)
  for (int side = 0; side < SIDES; ++side) {
    for (int lanes = 1; lanes < GROUPS; lanes *= 2) square[side] += device::shuffle_xor(square[side], lanes);
    if (group == 0) s.away[side * KEYS + t / GROUPS] = square[side];
  }
}

constexpr int HALF = WARP / 2;
static_assert(LENGTH == 4 * HALF);

// Which keys of the segment are on a list, a bit for each of 64. Half a warp has a list, and gets the same bits in each lane.
CUDA_OPS_DEVICE void find_listed(const KeySegment& s, const int32_t* list, int64_t K, bool here, int32_t (&listed)[2]) {
  const int lane = device::thread() % HALF;
  const int32_t begin = s.position[0], end = s.position[s.count - 1];
  int64_t slot = here && K > 4 * WARP ? slot_from(list, K, int64_t(begin)) : 0;
  listed[0] = listed[1] = 0;
  CUDA_OPS_UNROLL(4)
  for (; here && slot < K; slot += HALF) {
    const int32_t key = slot + lane < K ? list[slot + lane] : -1;
    if (uint32_t(key) > uint32_t(end)) break;  // as all that follow
    if (key < begin) continue;
    int j = 0;
    CUDA_OPS_UNROLL(6)
    for (int step = LENGTH / 2; step; step /= 2) j += s.position[j + step - 1] < key ? step : 0;
    const int32_t bit = s.position[j] == key ? int32_t(1u << j % WARP) : 0;
    listed[0] |= j < WARP ? bit : 0;
    listed[1] |= j < WARP ? 0 : bit;
  }
  if (!device::ballot(listed[0] | listed[1])) return;
  CUDA_OPS_UNROLL(2)
  for (int word = 0; word < 2; ++word)
    for (int lanes = HALF / 2; lanes; lanes /= 2) listed[word] |= device::shuffle_xor(listed[word], lanes);
}

// Weights of the keys for CLUSTERS query clusters from c0 on, relative to the largest score of each, 0 for top keys; writes largest score and sum. Half a warp has a
// cluster, and a lane four neighbouring keys.
CUDA_OPS_DEVICE void weigh_keys(const KeySegment& s, const float* scores, const int32_t* top_keys, int64_t c0, int64_t C_row, int64_t C, int64_t K, int64_t N,
                                float* masses) {
  const int lane = device::thread() % HALF, j = lane * 4;
  CUDA_OPS_UNROLL(1)
  for (int r = device::thread() / HALF; r < CLUSTERS; r += SUM_THREADS / HALF) {
    const int64_t c = c0 + r, row = s.head * C + c;
    const bool here = c < C_row;
    const float* from = scores + row * N;
    float weight[4];
    CUDA_OPS_UNROLL(4)
    for (int i = 0; i < 4; ++i) weight[i] = here && j + i < s.count ? from[s.position[j + i]] : 0;
    int32_t listed[2];
    find_listed(s, top_keys + row * K, K, here, listed);
    const uint32_t own = uint32_t(lane < HALF / 2 ? listed[0] : listed[1]) >> lane % 8 * 4;
    float largest = -infinity();
    bool counts[4];
    CUDA_OPS_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      counts[i] = here && j + i < s.count && !(own >> i & 1);
      largest = device::larger_number(largest, counts[i] ? weight[i] : -infinity());
    }
    largest = warp_largest_number<HALF>(largest);
    const float base = largest == -infinity() ? 0 : largest;
    float sum = 0, square = 0;
    CUDA_OPS_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      weight[i] = counts[i] ? quick_exponential(weight[i] - base) : 0;
      sum += weight[i];
      if (counts[i]) square = device::fma(weight[i], s.away[j + i], square);
    }
    set_weights<LENGTH>(s.weights, r, j, weight);
    sum = warp_sum<HALF>(sum);
    square = warp_sum<HALF>(square);
    if (lane == 0) {
      s.sums[r] = sum;
      // A single key has no spread at all.
      s.squares[r] = s.count - device::ones(uint32_t(listed[0])) - device::ones(uint32_t(listed[1])) > 1 ? square : 0;
    }
    if (lane == 0 && here) {
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
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(SUM_THREADS, 3) sum_segment(const float* scores, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups,
                                                            int64_t copies, const int32_t* top_keys, Budgets budgets, int64_t segments, float* part_sums,
                                                            float* part_masses) {
  CUDA_OPS_SHARED(int32_t, position, LENGTH);
  CUDA_OPS_SHARED(float, center, MOST_COLUMNS);
  CUDA_OPS_SHARED(float, away, LENGTH);
  CUDA_OPS_SHARED(bfloat16, weights, FLOAT_PARTS * CLUSTERS * (LENGTH + 8));
  constexpr int ROWS = DATA_PARTS<T> * LENGTH * ROW_STRIDE;
  constexpr bool BOTH = DATA_PARTS<T> == 1;  // rows of keys and values have a place each, and are sent before the weights are computed
  CUDA_OPS_SHARED(bfloat16, rows, BOTH ? 2 * ROWS : ROWS);
  CUDA_OPS_SHARED(float, sums, CLUSTERS);
  CUDA_OPS_SHARED(float, squares, CLUSTERS);
  CUDA_OPS_SHARED(float, partial, SUM_THREADS / WARP * COLUMNS);
  const int64_t head = device::block() / segments, b = head / shape.H, h = head % shape.H, D = shape.D, N = tokens.N, n = count_of(tokens, b);
  const Step step = step_of(budgets, n);
  const int64_t listed = (b * shape.H + h) / copies, segment = device::block() % segments, key_head = h / shape.group;
  const int32_t* first = groups.first + listed * (budgets.M + 1);
  const Segment own = find_segment(first, step.key_clusters, LENGTH, int(segment));
  if (own.cluster < 0) return;
  const int t = device::thread();
  const int64_t begin = first[own.cluster] + own.rank;
  const KeySegment s{b, h, head, int(smaller(int64_t(LENGTH), first[own.cluster + 1] - begin)), position, center, away, weights, sums, squares};
  for (int j = t; j < LENGTH; j += SUM_THREADS) position[j] = j < s.count ? int32_t(position_of(tokens, b, groups.order[listed * N + begin + j])) : INT32_MAX;
  device::barrier();
  find_center(s, k, key_head, D, partial);
  device::barrier();
  part_sums += device::block() * budgets.C * 2 * D;
  part_masses += device::block() * budgets.C * 3;
  CUDA_OPS_UNROLL(1)
  for (int64_t c0 = 0; c0 < step.clusters; c0 += CLUSTERS) {
    float distance = 0;  // of cluster c0 + t, for the first CLUSTERS threads
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      if constexpr (BOTH) {
        const Sent<T> keys{k, k.base + k.offset(b, key_head, 0, 0), rows}, values{v, v.base + v.offset(b, key_head, 0, 0), rows + ROWS};
        send_columns<LENGTH>(s.count, [&](int j) { return position[j]; }, int(d0), int(D), keys, values);
      }
      if (!d0) weigh_keys(s, scores, top_keys, c0, step.clusters, budgets.C, budgets.K, N, part_masses);
      if constexpr (BOTH) device::wait_for_copies();
      CUDA_OPS_UNROLL(1)
      for (int values = 0; values < 2; ++values) {
        if constexpr (!BOTH) {
          Heads<T> x = k;
          if (values) x = v;
          load_rows<LENGTH>(x, b, key_head, position, s.count, d0, D, rows);
        }
        if (!BOTH || !values) device::barrier();
        RowSums sum;
        sum.template add<T, LENGTH, LENGTH>(weights, 0, BOTH && values ? rows + ROWS : rows, s.count);
        float square[2] = {};
        CUDA_OPS_UNROLL(2)
        for (int side = 0; side < 2; ++side) {
          const int r = RowSums::cluster(2 * side);
          const bool here = c0 + r < step.clusters, some = sums[r] != 0;
          const float share = 1 / sums[r];
          float* to = part_sums + (c0 + r) * 2 * D + values * D;
          CUDA_OPS_UNROLL(2)
          for (int n8 = 0; n8 < 2; ++n8)
            CUDA_OPS_UNROLL(2)
            for (int i = 0; i < 2; ++i) {
              const int64_t d = d0 + RowSums::column(n8, i);
              const float mean = some ? sum.at(n8, 2 * side + i) * share : 0;
              if (d < D && here) to[d] = mean;
              const float difference = !values && d < D ? mean - center[d] : 0;
              square[side] = device::fma(difference, difference, square[side]);
            }
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

constexpr int CELL_THREADS = 256, CELL_CLUSTERS = CELL_THREADS / WARP, AT_ONCE = 8;
constexpr int64_t FIELDS = 3;  // of a part's mass: largest score, sum of weights, spread

template <int WIDTH>
struct alignas(WIDTH * sizeof(float)) Numbers {
  float at[WIDTH] = {};
};

// The parts of a cell, one for each segment of its key cluster.
struct CellParts {
  const float *sums, *masses;
  int count;
  int64_t sums_stride, masses_stride;
  float largest = -infinity(), total = 0;

  CUDA_OPS_DEVICE const float* mass(int s) const { return masses + s * masses_stride; }
  // A segment without a key for this cluster has no mass, whatever the others' largest score is.
  CUDA_OPS_DEVICE float mass_of(int s) const { return s >= count || mass(s)[1] == 0 ? 0 : mass(s)[1] * device::exponential(mass(s)[0] - largest); }
  CUDA_OPS_DEVICE void find_total(int lane) {
    for (int s = lane; s < count; s += WARP)
      if (mass(s)[1] > 0 || mass(s)[1] != mass(s)[1]) largest = larger(mass(s)[0], largest);
    largest = warp_largest(largest);
    for (int s = lane; s < count; s += WARP) total += mass_of(s);
    total = warp_sum(total);
  }
  // add(numbers of a segment from `column` on, its share of the mass), in order; several rows are on their way at once.
  template <int WIDTH, class Add>
  CUDA_OPS_DEVICE void each_share(int lane, int64_t column, bool here, const Add& add) const {
    for (int s0 = 0; s0 < count; s0 += WARP) {
      const float share = mass_of(s0 + lane) / total;
      for (int i = 0; i < WARP && s0 + i < count; i += AT_ONCE) {
        Numbers<WIDTH> row[AT_ONCE];
        CUDA_OPS_UNROLL(AT_ONCE)
        for (int r = 0; r < AT_ONCE; ++r)
          if (here && s0 + i + r < count) row[r] = *reinterpret_cast<const Numbers<WIDTH>*>(sums + (s0 + i + r) * sums_stride + column);
        CUDA_OPS_UNROLL(AT_ONCE)
        for (int r = 0; r < AT_ONCE; ++r) add(row[r], device::shuffle(share, i + r));
      }
    }
  }
};

// Blocks are (batch row, head, key cluster, CELL_CLUSTERS query clusters): a warp adds the segments of its cell up in their order, WIDTH columns a lane.
template <int WIDTH>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(CELL_THREADS) sum_cells(Tokens tokens, Shape shape, cuda_ops::Groups groups, int64_t copies, Budgets budgets, int64_t segments,
                                                       const float* part_sums, const float* part_masses, cuda_ops::Cells cells) {
  CUDA_OPS_SHARED(int32_t, counters, CELL_CLUSTERS);
  const int64_t D = shape.D, C = budgets.C, sides = (C + CELL_CLUSTERS - 1) / CELL_CLUSTERS, task = device::block() / sides;
  const int64_t head = task / budgets.M, m = task % budgets.M, b = head / shape.H, c0 = device::block() % sides * CELL_CLUSTERS;
  const Step step = step_of(budgets, count_of(tokens, b));
  if (m >= step.key_clusters || c0 >= step.clusters) return;
  const int t = device::thread(), lane = t % WARP;
  const int32_t* first = groups.first + head / copies * (budgets.M + 1);
  int32_t earlier = 0, begin;
  for (int64_t other = t; other < m; other += CELL_THREADS) earlier += segments_of(first[other + 1] - first[other], LENGTH);
  sum_before(earlier, counters, begin);
  const int64_t c = c0 + t / WARP, part = (head * segments + begin) * C + c;
  if (c >= step.clusters) return;  // no barrier follows
  CellParts parts{part_sums + part * 2 * D, part_masses + part * FIELDS, segments_of(first[m + 1] - first[m], LENGTH), C * 2 * D, C * FIELDS};
  parts.find_total(lane);
  const bool empty = parts.total == 0;
  if (empty) parts.count = 0;
  const int64_t cell = (head * C + c) * budgets.M + m;
  float spread = 0, squares = 0;
  for (int64_t d0 = 0; d0 < 2 * D; d0 += WARP * WIDTH) {
    const int64_t column = d0 + lane * WIDTH;
    const bool here = column < 2 * D;
    Numbers<WIDTH> mean;
    parts.template each_share<WIDTH>(lane, column, here, [&](const Numbers<WIDTH>& row, float share) {
      CUDA_OPS_UNROLL(WIDTH)
      for (int i = 0; i < WIDTH; ++i) mean.at[i] = device::fma(share, row.at[i], mean.at[i]);
    });
    CUDA_OPS_UNROLL(WIDTH)
    for (int i = 0; i < WIDTH; ++i)
      if (here) (column + i < D ? cells.keys[cell * D + column + i] : cells.values[cell * D + column + i - D]) = mean.at[i];
    if (d0 >= D || parts.count == 1) continue;
    parts.template each_share<WIDTH>(lane, column, column < D, [&](const Numbers<WIDTH>& row, float share) {
      CUDA_OPS_UNROLL(WIDTH)
      for (int i = 0; i < WIDTH; ++i) {
        const float away = column + i < D ? row.at[i] - mean.at[i] : 0;
        squares = device::fma(share * away, away, squares);
      }
    });
  }
  for (int s = lane; s < parts.count; s += WARP) spread = device::fma(parts.mass_of(s) / parts.total, parts.mass(s)[2], spread);
  spread = warp_sum(spread) + warp_sum(squares) / float(D);
  if (lane == 0) {
    cells.log_mass[cell] = empty ? -infinity() : parts.largest + device::logarithm(parts.total);
    cells.spread[cell] = empty ? 0 : spread;
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
  if (!blocks) return;
  const auto kernel = shape.D % 2 == 0 ? sum_cells<4> : sum_cells<1>;  // rows of 2 D numbers at multiples of 16 bytes, or not
  CUDA_OPS_LAUNCH(kernel, blocks, CELL_THREADS, stream, tokens, shape, groups, copies, budgets, segments, part_sums, part_masses, cells);
}

}  // namespace cuda_ops::launch
