#include "centroid_attention.h"

#include "reduce.h"
#include "top_list.h"
#include "weighted_rows.h"

namespace {

constexpr int THREADS = SUM_THREADS, LENGTH = 128, SIDES = LENGTH / WARP, SLOTS = THREADS / COLUMNS;

// Blocks are (batch row, head, part of LENGTH valid tokens): for every cluster the largest score, the sum of weights relative to it, that of the top keys, and the
// weighted sum of the values of the others.
template <class T>
CUDA_OPS_KERNEL sum_part(const float* scores, Heads<T> v, Tokens tokens, Shape shape, const int32_t* top_keys, Budgets budgets, int64_t parts, float* part_sums,
                         float* part_masses) {
  constexpr int TILE = DATA_PARTS<T> == FLOAT_PARTS ? LENGTH / 4 : LENGTH / 2;
  CUDA_OPS_SHARED(int32_t, position, LENGTH);
  CUDA_OPS_SHARED(bfloat16, weights, FLOAT_PARTS * CLUSTERS * (LENGTH + 8));
  CUDA_OPS_SHARED(bfloat16, rows, DATA_PARTS<T> * TILE * ROW_STRIDE);
  const int64_t head = device::block() / parts, b = head / shape.H, h = head % shape.H, D = shape.D, N = tokens.N, C = budgets.C, K = budgets.K;
  const int64_t n = count_of(tokens, b), first = device::block() % parts * LENGTH, count = smaller(int64_t(LENGTH), n - first);
  if (count <= 0) return;
  const int64_t C_row = step_of(budgets, n).clusters;
  const int t = device::thread(), lane = t % WARP;
  for (int j = t; j < LENGTH; j += THREADS) position[j] = j < count ? int32_t(position_of(tokens, b, first + j)) : INT32_MAX;
  device::barrier();
  part_sums += device::block() * C * D;
  part_masses += device::block() * C * 3;
  for (int64_t c0 = 0; c0 < C_row; c0 += CLUSTERS) {
    for (int r = t / WARP; r < CLUSTERS; r += THREADS / WARP) {
      const int64_t c = c0 + r, row = head * C + c;
      float score[SIDES], largest = -infinity();
      CUDA_OPS_UNROLL(SIDES)
      for (int side = 0; side < SIDES; ++side) {
        const int j = side * WARP + lane;
        score[side] = c < C_row && j < count ? scores[row * N + position[j]] : -infinity();
        largest = larger(score[side], largest);
      }
      bool listed[SIDES] = {};
      if (c < C_row) find_listed<LENGTH>(top_keys + row * K, K, position, count, listed);
      largest = warp_largest(largest);
      float sum = 0, top = 0;
      CUDA_OPS_UNROLL(SIDES)
      for (int side = 0; side < SIDES; ++side) {
        const int j = side * WARP + lane;
        const bool here = c < C_row && j < count, on_top = here && listed[side];
        const float weight = here ? device::exponential(score[side] - largest) : 0;
        sum += weight;
        top += on_top ? weight : 0;
        set_weight<LENGTH>(weights, r, j, on_top ? 0 : weight);
      }
      sum = warp_sum(sum);
      top = warp_sum(top);
      if (lane == 0 && c < C_row) {
        part_masses[c * 3] = largest;
        part_masses[c * 3 + 1] = sum;
        part_masses[c * 3 + 2] = top;
      }
    }
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      RowSums sum;
      for (int64_t j0 = 0; j0 < count; j0 += TILE) {
        load_rows<TILE>(v, b, h / shape.group, position + j0, count - j0, d0, D, rows);
        device::barrier();
        sum.template add<T, LENGTH, TILE>(weights, int(j0), rows, count - j0);
        device::barrier();
      }
      CUDA_OPS_UNROLL(2)
      for (int n8 = 0; n8 < 2; ++n8)
        CUDA_OPS_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
          const int64_t c = c0 + RowSums::cluster(i), d = d0 + RowSums::column(n8, i);
          if (d < D && c < C_row) part_sums[c * D + d] = sum.at(n8, i);
        }
    }
  }
}

// Blocks are (batch row, head, cluster). Column d is added up by SLOTS threads, each every SLOTS-th part in order; then theirs, in order.
CUDA_OPS_KERNEL sum_parts(Tokens tokens, Shape shape, Budgets budgets, int64_t parts, const float* part_sums, const float* part_masses, float* rest, float* top_mass,
                          float* log_mass) {
  CUDA_OPS_SHARED(float, sums, THREADS);
  CUDA_OPS_SHARED(float, factors, THREADS);
  CUDA_OPS_SHARED(float, maxima, THREADS / WARP);
  const int64_t C = budgets.C, c = device::block() % C, head = device::block() / C, b = head / shape.H, D = shape.D, n = count_of(tokens, b);
  if (c >= step_of(budgets, n).clusters) return;
  const int64_t count = (n + LENGTH - 1) / LENGTH;
  const int t = device::thread(), slot = t / COLUMNS;
  part_sums += (head * parts * C + c) * D;
  part_masses += (head * parts * C + c) * 3;
  float largest = -infinity();
  for (int64_t s = t; s < count; s += THREADS) largest = larger(part_masses[s * C * 3], largest);
  largest = warp_largest(largest);
  if (t % WARP == 0) maxima[t / WARP] = largest;
  device::barrier();
  for (int w = 0; w < THREADS / WARP; ++w) largest = larger(maxima[w], largest);
  float sum = 0, top = 0;
  for (int64_t s = t; s < count; s += THREADS) {
    const float factor = device::exponential(part_masses[s * C * 3] - largest);
    sum = device::fma(part_masses[s * C * 3 + 1], factor, sum);
    top = device::fma(part_masses[s * C * 3 + 2], factor, top);
  }
  sum = block_sum(sum, sums);
  top = block_sum(top, sums);
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    const int64_t d = d0 + t % COLUMNS;
    float column = 0;
    for (int64_t s0 = 0; s0 < count; s0 += THREADS) {
      const int here = int(smaller(int64_t(THREADS), count - s0));
      if (t < here) factors[t] = device::exponential(part_masses[(s0 + t) * C * 3] - largest);
      device::barrier();
      CUDA_OPS_UNROLL(8)
      for (int s = slot; s < here; s += SLOTS) column = device::fma(d < D ? part_sums[(s0 + s) * C * D + d] : 0, factors[s], column);
      device::barrier();
    }
    sums[t] = column;
    device::barrier();
    if (slot == 0 && d < D) {
      for (int other = 1; other < SLOTS; ++other) column += sums[other * COLUMNS + t];
      rest[(head * C + c) * D + d] = count ? column / sum : 0;
    }
    device::barrier();
  }
  if (t == 0) {
    top_mass[head * C + c] = count ? top / sum : 0;
    log_mass[head * C + c] = count ? largest + device::logarithm(sum) : -infinity();
  }
}

}  // namespace

namespace cuda_ops::launch {

int64_t centroid_attention_parts(int64_t N) { return (N + LENGTH - 1) / LENGTH; }

void centroid_attention(const float* scores, const Vectors& v, const Tokens& tokens, const Shape& shape, const int32_t* top_keys, const Budgets& budgets,
                        float* part_sums, float* part_masses, float* rest, float* top_mass, float* log_mass, Stream stream) {
  const int64_t heads = shape.B * shape.H, parts = centroid_attention_parts(tokens.N);
  if (!heads) return;
  with_type(v.type, [&](auto type) {
    const Heads<decltype(type)> values(v);
    if (parts)
      CUDA_OPS_LAUNCH(sum_part<decltype(type)>, heads * parts, THREADS, stream, scores, values, tokens, shape, top_keys, budgets, parts, part_sums, part_masses);
  });
  CUDA_OPS_LAUNCH(sum_parts, heads * budgets.C, THREADS, stream, tokens, shape, budgets, parts, part_sums, part_masses, rest, top_mass, log_mass);
}

}  // namespace cuda_ops::launch
