// Attention on the tensor cores: 16-bit numbers, at most SIZE of them in a head, sums in float32. See attend.h.
//
// A warp has 16 queries, whose logits and outputs stay in its registers; numerators are rounded to 16 bits for the product with the values, not for their sum.
#pragma once
#include "attend_keys.h"
#include "matrix.h"

namespace {

template <class T, int SIZE>
class MatrixAttention {
 public:
  static constexpr int THREADS = 128, QUERIES = THREADS / WARP * 16;

 private:
  static constexpr int STRIDE = SIZE + 8, STEPS = SIZE / 16, TILES = SIZE / 8, KEY_TILES = KEYS / 8;
  static constexpr int TILE_BYTES = KEYS * STRIDE * 2;
  static_assert(QUERIES <= KEYS, "the queries pass through the memory of the keys");

 public:
  static constexpr int QUADS = (2 * TILE_BYTES + 3 * QUERIES * 4) / 16;

  CUDA_OPS_DEVICE explicit MatrixAttention(Quad* memory)
      : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + KEYS * STRIDE), running_{memory[2 * TILE_BYTES / 16].at, running_.largest + QUERIES, running_.total + QUERIES} {
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) out_[n][i] = 0;
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      largest_[side] = -infinity();
      total_[side] = 0;
    }
  }

  CUDA_OPS_DEVICE const Running& running() const { return running_; }

  CUDA_OPS_DEVICE void start(const QueryRows<T>& queries) {
    for (int e = device::thread(); e < QUERIES * (SIZE / 8); e += THREADS) {
      const int r = e / (SIZE / 8), d = e % (SIZE / 8) * 8;
      const bool here = r < queries.count;
      copy_eight(queries.q, queries.q.offset(queries.b, queries.h, here ? queries.position[r] : 0, 0), here, d, queries.D, keys_ + r * STRIDE + d);
    }
    device::barrier();
    CUDA_OPS_UNROLL(STEPS)
    for (int k = 0; k < STEPS; ++k) load_a(queries_[k], keys_ + first_row() * STRIDE + k * 16, STRIDE);
    device::barrier();
  }

  template <class Keys>
  CUDA_OPS_DEVICE void add(const QueryRows<T>& queries, const Keys& keys) {
    for (int64_t j0 = 0; j0 < keys.count; j0 += KEYS) {
      keys.prepare(j0);
      float weights[KEY_TILES][4] = {};
      for (int part = 0; part < Keys::PARTS; ++part) {
        for (int e = device::thread(); e < KEYS * (SIZE / 8); e += THREADS) {
          const int j = e / (SIZE / 8), d = e % (SIZE / 8) * 8;
          keys.copy_key(j0 + j, d, part, keys_ + j * STRIDE + d);
          if (part == 0) keys.copy_value(j0 + j, d, values_ + j * STRIDE + d);
        }
        device::barrier();
        add_products(weights);
        if (part + 1 < Keys::PARTS) device::barrier();
      }
      weigh(keys, j0, queries.scale, weights);
      add_values(weights);
      device::barrier();
    }
  }

  // Writes the running softmax to where the other threads see it.
  CUDA_OPS_DEVICE void publish() {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const float total = quad_sum(total_[side]);
      if (device::thread() % 4 == 0) {
        running_.largest[row_of(2 * side)] = largest_[side];
        running_.total[row_of(2 * side)] = total;
      }
    }
    device::barrier();
  }

  // Adds keys that every row has for itself, `width` of them at these token positions, -1 for none, with weights that may be negative. The running softmax was
  // published and has taken them in.
  CUDA_OPS_DEVICE void add_own(const Heads<T>& v, int64_t b, int64_t h, int64_t D, int width, int stride, const int32_t* position, const float* weights) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int r = row_of(2 * side);
      const float shrink = running_.factor[r];
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n)
        CUDA_OPS_UNROLL(2)
        for (int i = 2 * side; i < 2 * side + 2; ++i) out_[n][i] *= shrink;
      CUDA_OPS_UNROLL(1)
      for (int w = 0; w < width; ++w) {
        const int64_t token = position[r * stride + w];
        if (token < 0) continue;
        const float weight = weights[r * stride + w];
        const T* value = v.base + v.offset(b, h, token, column(0, 0));  // from tile to tile, so that no register holds a place of its own for each
        int left = int(D) - column(0, 0);
        CUDA_OPS_UNROLL(TILES)
        for (int n = 0; n < TILES; ++n, value += 8 * v.element, left -= 8) {
          if (left > 0) out_[n][2 * side] = device::fma(weight, widen(value[0]), out_[n][2 * side]);
          if (left > 1) out_[n][2 * side + 1] = device::fma(weight, widen(value[v.element]), out_[n][2 * side + 1]);
        }
      }
    }
    device::barrier();
  }

  // use(row, column, sum) for every sum of this thread.
  template <class Use>
  CUDA_OPS_DEVICE void each(int64_t count, int64_t D, const Use& use) {
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i)
        if (row_of(i) < count && column(n, i) < D) use(row_of(i), column(n, i), out_[n][i]);
  }

 private:
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / WARP * 16; }
  CUDA_OPS_DEVICE static int row_of(int i) { return first_row() + row_of_d(i); }
  CUDA_OPS_DEVICE static int column(int n, int i) { return n * 8 + column_of_d(i); }
  // Over the four lanes that have a row.
  CUDA_OPS_DEVICE static float quad_sum(float value) {
    for (int lanes = 2; lanes; lanes /= 2) value += device::shuffle_xor(value, lanes);
    return value;
  }

  CUDA_OPS_DEVICE void add_products(float (&sum)[KEY_TILES][4]) {
    CUDA_OPS_UNROLL(STEPS)
    for (int k = 0; k < STEPS; ++k)
      CUDA_OPS_UNROLL(KEY_TILES / 2)
      for (int n = 0; n < KEY_TILES; n += 2) {
        uint32_t b[2][2];
        load_b_of_rows(b, keys_ + n * 8 * STRIDE + k * 16, STRIDE);
        device::multiply(sum[n], queries_[k], b[0], T());
        device::multiply(sum[n + 1], queries_[k], b[1], T());
      }
  }

  // From products to numerators relative to the largest logit so far; what was summed before shrinks accordingly.
  template <class Keys>
  CUDA_OPS_DEVICE void weigh(const Keys& keys, int64_t j0, float scale, float (&weights)[KEY_TILES][4]) {
    float most[2] = {largest_[0], largest_[1]};
    CUDA_OPS_UNROLL(KEY_TILES)
    for (int n = 0; n < KEY_TILES; ++n)
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        const int j = column(n, i);
        weights[n][i] = j0 + j < keys.count ? keys.logit(weights[n][i] * scale, row_of(i), j) : -infinity();
        most[i / 2] = larger(weights[n][i], most[i / 2]);
      }
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      for (int lanes = 2; lanes; lanes /= 2) most[side] = larger(most[side], device::shuffle_xor(most[side], lanes));
      const float shrink = largest_[side] == -infinity() ? 0 : device::exponential(largest_[side] - most[side]);
      float sum = 0;
      CUDA_OPS_UNROLL(KEY_TILES)
      for (int n = 0; n < KEY_TILES; ++n)
        CUDA_OPS_UNROLL(2)
        for (int i = 2 * side; i < 2 * side + 2; ++i) {
          weights[n][i] = numerator(weights[n][i], most[side]);
          sum += weights[n][i];
        }
      total_[side] = device::fma(total_[side], shrink, sum);
      largest_[side] = most[side];
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n)
        CUDA_OPS_UNROLL(2)
        for (int i = 2 * side; i < 2 * side + 2; ++i) out_[n][i] *= shrink;
    }
  }

  CUDA_OPS_DEVICE void add_values(const float (&weights)[KEY_TILES][4]) {
    CUDA_OPS_UNROLL(KEY_TILES / 2)
    for (int k = 0; k < KEY_TILES; k += 2) {
      const uint32_t a[4] = {pair(weights[k][0], weights[k][1], T()), pair(weights[k][2], weights[k][3], T()), pair(weights[k + 1][0], weights[k + 1][1], T()),
                             pair(weights[k + 1][2], weights[k + 1][3], T())};
      CUDA_OPS_UNROLL(STEPS)
      for (int n = 0; n < TILES; n += 2) {
        uint32_t b[2][2];
        load_b(b, values_ + k * 8 * STRIDE + n * 8, STRIDE);
        device::multiply(out_[n], a, b[0], T());
        device::multiply(out_[n + 1], a, b[1], T());
      }
    }
  }

  T *keys_, *values_;  // (KEYS, STRIDE)
  Running running_;
  uint32_t queries_[STEPS][4];
  float largest_[2], total_[2];  // of the rows of this thread; the total of its own columns
  float out_[TILES][4];
};

}  // namespace
