// Attention by float32 products and sums, a head's numbers in PIECES pieces of COLUMNS. See attend.h.
#pragma once
#include "attend_keys.h"
#include "reduce.h"

namespace {

// The running softmax of the queries of a block, in shared memory: the largest logit so far, the sum of numerators relative to it, and what sums so far have to be
// multiplied by.
struct Running {
  float *largest, *total, *factor;

  // Takes the logits of a row in, whose largest is `most` and whose numerators relative to the larger of both add up to `sum`.
  CUDA_OPS_DEVICE void take(int r, float most, float sum) const {
    const float before = largest[r], shrink = before == -infinity() ? 0 : device::exponential(before - most);
    factor[r] = shrink;
    total[r] = device::fma(total[r], shrink, sum);
    largest[r] = most;
  }
};

constexpr int COLUMNS = 64, STRIDE = COLUMNS + 4;  // rows start at multiples of 16 bytes and spread over the banks
static_assert(KEYS == COLUMNS, "rows of weights and of vectors have one stride");

template <int PIECES>
class VectorAttention {
 public:
  static constexpr int THREADS = 256, QUERIES = 32;
  static constexpr bool SHARED_ROWS = false;

 private:
  static constexpr int WARPS = THREADS / WARP, OWN = QUERIES / (THREADS / COLUMNS);  // of the output a thread has OWN rows of one column in every piece
  static constexpr int ROWS = 2 * QUERIES + KEYS;

 public:
  static constexpr int QUADS = (ROWS * STRIDE + 3 * QUERIES) / 4;

  CUDA_OPS_DEVICE explicit VectorAttention(Quad* memory)
      : queries_(memory->at), rows_(queries_ + QUERIES * STRIDE), weights_(rows_ + KEYS * STRIDE), running_{weights_ + QUERIES * STRIDE, weights_ + QUERIES * (STRIDE + 1),
                                                                                                           weights_ + QUERIES * (STRIDE + 2)} {
    CUDA_OPS_UNROLL(PIECES)
    for (int piece = 0; piece < PIECES; ++piece)
      CUDA_OPS_UNROLL(OWN)
      for (int r = 0; r < OWN; ++r) out_[piece][r] = 0;
    if (device::thread() < QUERIES) {
      running_.largest[device::thread()] = -infinity();
      running_.total[device::thread()] = 0;
    }
  }

  CUDA_OPS_DEVICE const Running& running() const { return running_; }
  template <class T>
  CUDA_OPS_DEVICE void start(const QueryRows<T>&) {
    device::barrier();
  }
  CUDA_OPS_DEVICE void close() {}

  // Adds all keys of a source to what was attended to before.
  template <class T, class Keys>
  CUDA_OPS_DEVICE void add(const QueryRows<T>& queries, const Keys& keys) {
    for (int64_t j0 = 0; j0 < keys.count; j0 += KEYS) {
      keys.prepare(j0);
      products(queries, keys, j0);
      weigh(int(smaller(int64_t(KEYS), keys.count - j0)));
      rescale();
      CUDA_OPS_UNROLL(PIECES)
      for (int piece = 0; piece < PIECES; ++piece) {
        for (int e = device::thread(); e < KEYS * COLUMNS; e += THREADS) {
          const int64_t j = j0 + e / COLUMNS, d = piece * COLUMNS + e % COLUMNS;
          rows_[e / COLUMNS * STRIDE + e % COLUMNS] = j < keys.count && d < keys.D ? keys.value(j, d) : 0;
        }
        device::barrier();
        add_values(out_[piece]);
        device::barrier();
      }
    }
  }

  // Adds keys that every row has for itself, `width` of them at these token positions, -1 for none, with weights that may be negative. The running softmax was
  // brought up to date before.
  template <class T>
  CUDA_OPS_DEVICE void add_own(const Heads<T>& v, int64_t b, int64_t h, int64_t D, int width, int stride, const int32_t* position, const float* weights) {
    rescale();
    const int64_t column = device::thread() % COLUMNS;
    CUDA_OPS_UNROLL(OWN)
    for (int r = 0; r < OWN; ++r)
      CUDA_OPS_UNROLL(1)
      for (int w = 0; w < width; ++w) {
        const int place = row(r) * stride + w;
        if (position[place] < 0) continue;
        const T* value = v.base + v.offset(b, h, position[place], column);
        CUDA_OPS_UNROLL(PIECES)
        for (int piece = 0; piece < PIECES; ++piece, value += COLUMNS * v.element)
          if (piece * COLUMNS + column < D) out_[piece][r] = device::fma(weights[place], widen(*value), out_[piece][r]);
      }
    device::barrier();
  }

  // The sums of this thread times the factor of their row.
  CUDA_OPS_DEVICE void rescale() {
    CUDA_OPS_UNROLL(PIECES)
    for (int piece = 0; piece < PIECES; ++piece)
      CUDA_OPS_UNROLL(OWN)
      for (int r = 0; r < OWN; ++r) out_[piece][r] *= running_.factor[row(r)];
  }

  // use(row, largest logit, sum of numerators), by one thread for each row.
  template <class Use>
  CUDA_OPS_DEVICE void each_total(int64_t count, const Use& use) const {
    const int r = device::thread();
    if (r < count) use(r, running_.largest[r], running_.total[r]);
  }

  // Of each row its part of this thread: what write(row, sum of numerators) returns is called with columns and sums.
  template <class Write>
  CUDA_OPS_DEVICE void each_row(int64_t count, const Write& write) const {
    CUDA_OPS_UNROLL(OWN)
    for (int r = 0; r < OWN; ++r) {
      if (row(r) >= count) continue;
      const auto write_row = write(row(r), running_.total[row(r)]);
      CUDA_OPS_UNROLL(PIECES)
      for (int piece = 0; piece < PIECES; ++piece) write_row(piece * COLUMNS + device::thread() % COLUMNS, out_[piece][r]);
    }
  }

 private:
  CUDA_OPS_DEVICE static int row(int r) { return device::thread() / COLUMNS * OWN + r; }

  // Logits of QUERIES queries with KEYS keys. A thread has two queries and every 16th key.
  template <class T, class Keys>
  CUDA_OPS_DEVICE void products(const QueryRows<T>& queries, const Keys& keys, int64_t j0) {
    const int t = device::thread(), r0 = t / 16 * 2, k0 = t % 16;
    float sum[2][4] = {};
    CUDA_OPS_UNROLL(PIECES)
    for (int piece = 0; piece < PIECES; ++piece) {
      if (PIECES > 1 || j0 == 0)
        for (int e = t; e < QUERIES * COLUMNS; e += THREADS) queries_[e / COLUMNS * STRIDE + e % COLUMNS] = queries.at(e / COLUMNS, piece * COLUMNS + e % COLUMNS);
      for (int e = t; e < KEYS * COLUMNS; e += THREADS) {
        const int64_t j = j0 + e / COLUMNS, d = piece * COLUMNS + e % COLUMNS;
        rows_[e / COLUMNS * STRIDE + e % COLUMNS] = j < keys.count && d < keys.D ? keys.key(j, d) : 0;
      }
      device::barrier();
      CUDA_OPS_UNROLL(4)
      for (int d = 0; d < COLUMNS; ++d) {
        float x[2], y[4];
        CUDA_OPS_UNROLL(2)
        for (int r = 0; r < 2; ++r) x[r] = queries_[(r0 + r) * STRIDE + d];
        CUDA_OPS_UNROLL(4)
        for (int j = 0; j < 4; ++j) y[j] = rows_[(k0 + 16 * j) * STRIDE + d];
        CUDA_OPS_UNROLL(2)
        for (int r = 0; r < 2; ++r)
          CUDA_OPS_UNROLL(4)
          for (int j = 0; j < 4; ++j) sum[r][j] = device::fma(x[r], y[j], sum[r][j]);
      }
      if (piece + 1 < PIECES) device::barrier();
    }
    CUDA_OPS_UNROLL(2)
    for (int r = 0; r < 2; ++r)
      CUDA_OPS_UNROLL(4)
      for (int j = 0; j < 4; ++j) {
        const int64_t key = k0 + 16 * j;
        weights_[(r0 + r) * STRIDE + key] = j0 + key < keys.count ? keys.logit(sum[r][j], r0 + r, key) : -infinity();
      }
    device::barrier();
  }

  // From logits to numerators. A warp has every WARPS-th row.
  CUDA_OPS_DEVICE void weigh(int count) {
    const int lane = device::thread() % WARP;
    for (int r = device::thread() / WARP; r < QUERIES; r += WARPS) {
      float* row = weights_ + r * STRIDE;
      const float most = warp_largest(larger(larger(row[lane], row[lane + WARP]), running_.largest[r]));
      float sum = 0;
      for (int j = lane; j < KEYS; j += WARP) {
        row[j] = j < count ? numerator(row[j], most) : 0;
        sum += row[j];
      }
      sum = warp_sum(sum);
      device::warp_barrier();  // every lane has read the largest
      if (lane == 0) running_.take(r, most, sum);
    }
    device::barrier();
  }

  CUDA_OPS_DEVICE void add_values(float* out) {
    const int d = device::thread() % COLUMNS;
    CUDA_OPS_UNROLL(4)
    for (int j = 0; j < KEYS; ++j) {
      const float value = rows_[j * STRIDE + d];
      CUDA_OPS_UNROLL(OWN)
      for (int r = 0; r < OWN; ++r) out[r] = device::fma(weights_[row(r) * STRIDE + j], value, out[r]);
    }
  }

  float *queries_;  // (QUERIES, STRIDE): one piece, scaled
  float *rows_;     // (KEYS, STRIDE): one piece of keys or values
  float *weights_;  // (QUERIES, STRIDE): logits, then numerators
  Running running_;
  float out_[PIECES][OWN];
};

}  // namespace
