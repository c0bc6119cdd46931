// Attention on the tensor cores: 16-bit numbers, at most SIZE of them in a head, sums in float32. See attend.h.
//
// A warp has 16 queries, whose logits and outputs stay in its registers: the four lanes of a quad have two rows. Numerators are rounded to 16 bits for the product with
// the values, not for their sum.
#pragma once
#include "attend_keys.h"
#include "matrix.h"

namespace {

// Two neighbouring numbers of a row of 16-bit numbers, of which `left` are left, the first in the lower half; 0 behind its end. WHOLE: they lie side by side, and `left` is
// even.
template <bool WHOLE, class T>
CUDA_OPS_DEVICE uint32_t two_of(const T* numbers, int64_t element, int left) {
  if (WHOLE) return left > 0 ? *reinterpret_cast<const uint32_t*>(numbers) : 0;
  const uint32_t first = left > 0 ? numbers->bits : 0, second = left > 1 ? numbers[element].bits : 0;
  return second << 16 | first;
}

// Keys that every query of a block has for itself, `stride` places for each, `width` of them used: the token position, -1 for none, and two logits: the exact one, and what
// other keys have already counted for it. What is left of a pair is the difference of its two numerators.
struct OwnKeys {
  int32_t* position;
  float *exact, *counted;
  int width, stride;
};

template <class T, int SIZE>
class MatrixAttention {
 public:
  static constexpr int THREADS = 128, QUERIES = THREADS / WARP * 16;
  static constexpr bool PAIRS = true;  // of neighbouring columns are what each_row gives

 private:
  static constexpr int STRIDE = SIZE + 8, STEPS = SIZE / 16, TILES = SIZE / 8, KEY_TILES = KEYS / 8;
  static constexpr int TILE_BYTES = KEYS * STRIDE * 2;
  static constexpr int OWN_AT_ONCE = SIZE <= 64 ? 3 : 1;  // keys of a query whose numbers are on their way together
  static constexpr float LOG2_E = 1.44269504088896340736f;
  static_assert(QUERIES <= KEYS, "the queries pass through the memory of the keys");

 public:
  static constexpr int QUADS = 2 * TILE_BYTES / 16;

  CUDA_OPS_DEVICE explicit MatrixAttention(Quad* memory) : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + KEYS * STRIDE) {
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

  // Free while no keys are added.
  CUDA_OPS_DEVICE float* memory() const { return reinterpret_cast<float*>(keys_); }

  CUDA_OPS_DEVICE void start(const QueryRows<T>& queries) {
    const int64_t head = queries.b * queries.q.batch + queries.h * queries.q.head;
    for (int e = device::thread(); e < QUERIES * (SIZE / 8); e += THREADS) {
      const int r = e / (SIZE / 8), d = e % (SIZE / 8) * 8;
      send_eight(queries.q, r < queries.count ? queries.q.base + (head + queries.position[r] * queries.q.token) : nullptr, d, int(queries.D), keys_ + r * STRIDE + d);
    }
    device::wait_for_copies();
    device::barrier();
    CUDA_OPS_UNROLL(STEPS)
    for (int k = 0; k < STEPS; ++k) load_a(queries_[k], keys_ + first_row() * STRIDE + k * 16, STRIDE);
    device::barrier();
  }

  // |x - mean|^2 / 2 and (x - mean) . other of every query x; what a warp writes here it reads itself.
  CUDA_OPS_DEVICE void moments(float scale, const float* mean, const float* other, float* half_square, float* product) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      float squares = 0, products = 0;
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n) {
        const int d = column(n, 0);
        const float first = first_of(query(n, side), T()) * scale - mean[d], second = second_of(query(n, side), T()) * scale - mean[d + 1];
        squares = device::fma(second, second, device::fma(first, first, squares));
        products = device::fma(second, other[d + 1], device::fma(first, other[d], products));
      }
      squares = quad_sum(squares);
      products = quad_sum(products);
      if (device::thread() % 4 == 0) {
        half_square[row_of(2 * side)] = squares / 2;
        product[row_of(2 * side)] = products;
      }
    }
    forget_widened();
    device::warp_barrier();
  }

  // The logits of keys that are not weighed are only computed, for what the keys do with them.
  template <class Keys>
  CUDA_OPS_DEVICE void add(const QueryRows<T>& queries, const Keys& keys, bool weighed = true) {
    constexpr int PART = KEYS / Keys::PARTS;
    for (int64_t j0 = 0; j0 < keys.count; j0 += PART) {
      const int left = int(smaller(int64_t(PART), keys.count - j0)), tiles = (left + 15) / 16 * 2;
      keys.template load<SIZE, STRIDE>(j0, tiles * 8, keys_, values_);
      device::wait_for_copies();
      device::barrier();
      float weights[KEY_TILES][4];
      CUDA_OPS_UNROLL(Keys::PARTS)
      for (int part = 0; part < Keys::PARTS; ++part) multiply_keys<KEY_TILES / Keys::PARTS>(part * PART, tiles, weights, part > 0);
      if (Keys::PARTS > 1) device::barrier();  // what keys keep of their logits lies where they did
      float most[2] = {largest_[0], largest_[1]};
      CUDA_OPS_UNROLL(KEY_TILES / Keys::PARTS)
      for (int n = 0; n < KEY_TILES / Keys::PARTS; ++n)
        CUDA_OPS_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
          const int j = column(n, i);
          weights[n][i] = j < left ? keys.logit(weights[n][i] * queries.scale, row_of(i), j) : -infinity();
          most[i / 2] = device::larger_number(weights[n][i], most[i / 2]);
        }
      if (weighed) {
        weigh<KEY_TILES / Keys::PARTS>(most, weights);
        add_values<KEY_TILES / Keys::PARTS>(tiles, weights);
      }
      keys.after(j0);
      device::barrier();
    }
  }

  // Keys of own, whose exact logits are computed here.
  CUDA_OPS_DEVICE void add_own(const QueryRows<T>& queries, const Heads<T>& k, const Heads<T>& v, int64_t key_head, const OwnKeys& own) {
    if (k.eights && queries.D % 2 == 0) own_logits<true>(queries, k, key_head, own);
    else own_logits<false>(queries, k, key_head, own);
    device::warp_barrier();
    weigh_own(own);
    device::warp_barrier();
    if (v.eights && queries.D % 2 == 0) add_own_values<true>(v, queries.b, key_head, int(queries.D), own);
    else add_own_values<false>(v, queries.b, key_head, int(queries.D), own);
    device::warp_barrier();
  }

  // Ends the sums: what follows reads them.
  CUDA_OPS_DEVICE void close() {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) total_[side] = quad_sum(total_[side]);
  }

  // use(row, largest logit, sum of numerators), by one thread for each row.
  template <class Use>
  CUDA_OPS_DEVICE void each_total(int64_t count, const Use& use) const {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side)
      if (device::thread() % 4 == 0 && row_of(2 * side) < count) use(row_of(2 * side), largest_[side], total_[side]);
  }

  // Of each row its part of this thread: what write(row, sum of numerators) returns is called with columns and sums.
  template <class Write>
  CUDA_OPS_DEVICE void each_row(int64_t count, const Write& write) const {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      if (row_of(2 * side) >= count) continue;
      const auto write_row = write(row_of(2 * side), total_[side]);
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n) write_row(column(n, 0), out_[n][2 * side], out_[n][2 * side + 1]);
    }
  }

 private:
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / WARP * 16; }
  CUDA_OPS_DEVICE static int row_of(int i) { return first_row() + row_of_d(i); }
  CUDA_OPS_DEVICE static int column(int n, int i) { return n * 8 + column_of_d(i); }
  // Numbers column(n, 0) and column(n, 1) of a query of this thread.
  CUDA_OPS_DEVICE uint32_t query(int n, int side) const { return queries_[n / 2][n % 2 * 2 + side]; }
  // Twice as many registers as the queries themselves.
  CUDA_OPS_DEVICE void forget_widened() {
    CUDA_OPS_UNROLL(4 * STEPS)
    for (int i = 0; i < 4 * STEPS; ++i) device::forget(queries_[i / 4][i % 4]);
  }
  // Over the four lanes that have a row.
  CUDA_OPS_DEVICE static float quad_sum(float value) {
    for (int lanes = 2; lanes; lanes /= 2) value += device::shuffle_xor(value, lanes);
    return value;
  }
  CUDA_OPS_DEVICE static float quad_largest(float value) {
    for (int lanes = 2; lanes; lanes /= 2) value = device::larger_number(value, device::shuffle_xor(value, lanes));
    return value;
  }

  // Products of the queries with the keys from `row` on, in place of the sums or added to them.
  template <int MOST>
  CUDA_OPS_DEVICE void multiply_keys(int row, int tiles, float (&sum)[KEY_TILES][4], bool added) {
    CUDA_OPS_UNROLL(MOST / 2)
    for (int n = 0; n < MOST; n += 2) {
      if (n >= tiles) continue;
      for (int i = 0; i < 8 && !added; ++i) sum[n + i / 4][i % 4] = 0;
      CUDA_OPS_UNROLL(STEPS)
      for (int k = 0; k < STEPS; ++k) {
        uint32_t b[2][2];
        load_b_of_rows(b, keys_ + (row + n * 8) * STRIDE + k * 16, STRIDE);
        device::multiply(sum[n], queries_[k], b[0], T());
        device::multiply(sum[n + 1], queries_[k], b[1], T());
      }
    }
  }

  // Takes a larger logit of a row: what was summed before shrinks accordingly. Returns what numerators are relative to.
  CUDA_OPS_DEVICE float take(int side, float most) {
    const float base = most == -infinity() ? 0 : most, shrink = device::power_of_two((largest_[side] - base) * LOG2_E);
    largest_[side] = most;
    total_[side] *= shrink;
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      CUDA_OPS_UNROLL(2)
      for (int i = 2 * side; i < 2 * side + 2; ++i) out_[n][i] *= shrink;
    return base;
  }

  // From logits to numerators relative to the largest logit so far.
  template <int MOST>
  CUDA_OPS_DEVICE void weigh(const float (&most)[2], float (&weights)[KEY_TILES][4]) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const float base = take(side, quad_largest(most[side]));
      CUDA_OPS_UNROLL(MOST)
      for (int n = 0; n < MOST; ++n)
        CUDA_OPS_UNROLL(2)
        for (int i = 2 * side; i < 2 * side + 2; ++i) {
          weights[n][i] = device::power_of_two((weights[n][i] - base) * LOG2_E);
          total_[side] += weights[n][i];
        }
    }
  }

  template <int MOST>
  CUDA_OPS_DEVICE void add_values(int tiles, const float (&weights)[KEY_TILES][4]) {
    CUDA_OPS_UNROLL(MOST / 2)
    for (int k = 0; k < MOST; k += 2) {
      if (k >= tiles) continue;
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

  template <bool WHOLE>
  CUDA_OPS_DEVICE void own_logits(const QueryRows<T>& queries, const Heads<T>& k, int64_t key_head, const OwnKeys& own) {
    const T* head = k.base + (queries.b * k.batch + key_head * k.head);
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      forget_widened();
      const int place = row_of(2 * side) * own.stride;
      CUDA_OPS_UNROLL(OWN_AT_ONCE)
      for (int w = 0; w < own.width; ++w) {
        const int64_t token = own.position[place + w];
        const T* numbers = head + (token < 0 ? 0 : token) * k.token + column(0, 0) * (WHOLE ? 1 : k.element);
        float sum = 0;
        CUDA_OPS_UNROLL(TILES)
        for (int n = 0; n < TILES; ++n, numbers += 8 * (WHOLE ? 1 : k.element)) {
          const uint32_t two = token < 0 ? 0 : two_of<WHOLE>(numbers, k.element, int(queries.D) - column(n, 0));
          sum = device::fma(first_of(query(n, side), T()), first_of(two, T()), sum);
          sum = device::fma(second_of(query(n, side), T()), second_of(two, T()), sum);
        }
        sum = quad_sum(sum);
        if (device::thread() % 4 == 0) own.exact[place + w] = token < 0 ? -infinity() : sum * queries.scale;
      }
    }
  }

  // From the two logits of each to one weight, in the place of the exact one.
  CUDA_OPS_DEVICE void weigh_own(const OwnKeys& own) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int place = row_of(2 * side) * own.stride;
      float most = largest_[side];
      for (int w = device::thread() % 4; w < own.width; w += 4) most = device::larger_number(most, device::larger_number(own.exact[place + w], own.counted[place + w]));
      const float base = take(side, quad_largest(most));
      for (int w = device::thread() % 4; w < own.width; w += 4) {
        const float weight = device::exponential(own.exact[place + w] - base) - device::exponential(own.counted[place + w] - base);
        own.exact[place + w] = weight;
        total_[side] += weight;
      }
    }
  }

  template <bool WHOLE>
  CUDA_OPS_DEVICE void add_own_values(const Heads<T>& v, int64_t b, int64_t h, int D, const OwnKeys& own) {
    const T* head = v.base + (b * v.batch + h * v.head);
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int place = row_of(2 * side) * own.stride;
      CUDA_OPS_UNROLL(OWN_AT_ONCE)
      for (int w = 0; w < own.width; ++w) {
        const int64_t token = own.position[place + w];
        if (token < 0) continue;
        const T* numbers = head + token * v.token + column(0, 0) * (WHOLE ? 1 : v.element);
        const float weight = own.exact[place + w];
        CUDA_OPS_UNROLL(TILES)
        for (int n = 0; n < TILES; ++n, numbers += 8 * (WHOLE ? 1 : v.element)) {
          const uint32_t two = two_of<WHOLE>(numbers, v.element, D - column(n, 0));
          out_[n][2 * side] = device::fma(weight, first_of(two, T()), out_[n][2 * side]);
          out_[n][2 * side + 1] = device::fma(weight, second_of(two, T()), out_[n][2 * side + 1]);
        }
      }
    }
  }

  T *keys_, *values_;  // (KEYS, STRIDE)
  uint32_t queries_[STEPS][4];
  float largest_[2], total_[2];  // of the rows of this thread; the total of its own columns, until close()
  float out_[TILES][4];
};

}  // namespace
