// Attention on the tensor cores: 16-bit numbers, at most SIZE of them in a head, sums in float32. See attend.h.
//
// A warp has 16 queries, whose logits and outputs stay in its registers: the four lanes of a quad have two rows. Numerators are rounded to 16 bits for the product with
// the values, not for their sum. Heads that are too large for that have a team of two warps to 16 queries, each with its OWN numbers of every row: of the queries, the
// keys and the values. The sums of the two products are the logits, and each warp of the team has the whole softmax.
#pragma once
#include "attend_keys.h"
#include "matrix.h"
#include "reduce.h"

namespace {

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
  static constexpr int QUERIES = 64, TEAM = SIZE <= 128 ? 1 : 2, THREADS = QUERIES / 16 * TEAM * WARP;
  static constexpr int KEYS_OF_TILE = KEYS / TEAM;
  static constexpr bool SHARED_ROWS = true;  // the output can go through shared memory

 private:
  static constexpr int STRIDE = SIZE + 8, OWN = SIZE / TEAM, STEPS = OWN / 16, TILES = OWN / 8, KEYS_AT_ONCE = 32, KEY_TILES = KEYS_AT_ONCE / 8;
  static constexpr bool APART = SIZE <= 64;  // there is memory for the queries beside that of the keys
  static_assert(APART || QUERIES <= 2 * KEYS_OF_TILE, "the queries pass through the memory of the keys and values");
  static_assert(TEAM == 1 || KEYS_OF_TILE <= KEYS_AT_ONCE, "a team exchanges products where keys of the tile lay");

 public:
  static constexpr int QUADS = (2 * KEYS_OF_TILE + (APART ? QUERIES : 0)) * STRIDE / 8;

  CUDA_OPS_DEVICE explicit MatrixAttention(Quad* memory)
      : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + KEYS_OF_TILE * STRIDE), rows_(APART ? values_ + KEYS_OF_TILE * STRIDE : keys_), received_(false) {
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

  // Sends the queries, which are there with the first keys, or after receive().
  CUDA_OPS_DEVICE void start(const QueryRows<T>& queries) {
    const auto token = [&](int r) { return r < queries.count ? queries.position[r] : -1; };
    send_rows<SIZE, STRIDE, THREADS, 1>(QUERIES, token, 0, int(queries.D), Sent<T>{queries.q, queries.q.base + queries.q.offset(queries.b, queries.h, 0, 0), rows_});
    if (APART) return;
    receive();
    device::barrier();
  }
  CUDA_OPS_DEVICE void receive() {
    if (received_) return;
    device::wait_for_copies();
    device::barrier();
    take_queries();
    received_ = true;
  }

  // The first warp of a team, which writes what all of them have.
  CUDA_OPS_DEVICE static bool leads() { return device::thread() / WARP % TEAM == 0; }
  CUDA_OPS_DEVICE static void team_barrier() {
    if (TEAM > 1) device::barrier();
    else device::warp_barrier();
  }

  // |x - mean|^2 / 2 and (x - mean) . other of every query x; what a team writes here it reads itself.
  CUDA_OPS_DEVICE void moments(float scale, const float* mean, const float* other, float* half_square, float* product) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      float squares = 0, products = 0;
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n) {
        const int d = own_column() + column(n, 0);
        const float first = first_of(query(n, side), T()) * scale - mean[d], second = second_of(query(n, side), T()) * scale - mean[d + 1];
        squares = device::fma(second, second, device::fma(first, first, squares));
        products = device::fma(second, other[d + 1], device::fma(first, other[d], products));
      }
      squares = quad_sum(squares);
      products = quad_sum(products);
      in_turns([&](bool again) {
        const int r = row_of(2 * side);
        if (device::thread() % 4) return;
        half_square[r] = again ? half_square[r] + squares / 2 : squares / 2;
        product[r] = again ? product[r] + products : products;
      });
    }
    forget_widened();
    team_barrier();
  }

  // The logits of keys that are not weighed are only computed, for what the keys do with them. Of a tile KEYS_AT_ONCE are in the registers.
  template <class Keys>
  CUDA_OPS_DEVICE void add(const QueryRows<T>& queries, const Keys& keys, bool weighed = true) {
    constexpr int PART = KEYS_OF_TILE / Keys::PARTS;
    const int count = int(keys.count);
    const bool receives = !received_;  // known in advance, unlike a flag that changes in the loop
    const bool busy = first_row() < queries.count;  // a warp without queries only sends keys
    for (int j0 = 0; j0 < count; j0 += PART) {
      const int left = smaller(PART, count - j0), rows = (left + 15) / 16 * 16;
      keys.template load<SIZE, STRIDE, THREADS>(j0, rows, keys_, values_);
      device::wait_for_copies();
      device::barrier();
      if (receives && j0 == 0) take_queries();
      CUDA_OPS_UNROLL(1)
      for (int first = 0; first < rows; first += KEYS_AT_ONCE) {
        const int tiles = smaller(KEYS_AT_ONCE, rows - first) / 8;
        float weights[KEY_TILES][4];
        CUDA_OPS_UNROLL(Keys::PARTS)
        for (int part = 0; part < Keys::PARTS && busy; ++part) multiply_keys(part * PART + first, tiles, weights, part > 0);
        if (Keys::PARTS > 1 || TEAM > 1) device::barrier();  // what keys keep of their logits, and a team exchanges, lies where they did
        if constexpr (TEAM > 1) add_up(tiles, busy, weights);
        if (!busy) continue;
        float most[2] = {largest_[0], largest_[1]};
        CUDA_OPS_UNROLL(KEY_TILES)
        for (int n = 0; n < KEY_TILES; ++n) {
          if (n >= tiles) continue;
          CUDA_OPS_UNROLL(4)
          for (int i = 0; i < 4; ++i) {
            const int j = first + column(n, i);
            weights[n][i] = j < left ? keys.logit(weights[n][i] * queries.scale, row_of(i), j) : -infinity();
            most[i / 2] = device::larger_number(weights[n][i], most[i / 2]);
          }
        }
        if (weighed) {
          weigh(most, tiles, weights);
          add_values(first, tiles, weights);
        }
      }
      keys.after(j0);
      device::barrier();
    }
    if (count > 0) received_ = true;
  }

  // Keys of own, whose exact logits are computed here. The keys number w of the 16 queries of a team are a tile, of whose products with the queries the diagonal counts;
  // some such tiles are on their way at once, where the keys, the values and the queries lie otherwise.
  CUDA_OPS_DEVICE void add_own(const QueryRows<T>& queries, const Heads<T>& k, const Heads<T>& v, int64_t key_head, const OwnKeys& own) {
    if (TEAM > 1 || first_row() < queries.count) {  // teams meet in there
      each_own(queries, k, key_head, own, [&](const T* tile, int w) { own_logits(tile, w, queries.scale, own); });
      weigh_own(own);
      team_barrier();
      each_own(queries, v, key_head, own, [&](const T* tile, int w) { add_own_values(tile, w, own); });
    }
    device::barrier();
  }

  // Ends the sums: what follows reads them.
  CUDA_OPS_DEVICE void close() {
    receive();
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) total_[side] = quad_sum(total_[side]);
  }

  // use(row, largest logit, sum of numerators), by one thread for each row.
  template <class Use>
  CUDA_OPS_DEVICE void each_total(int64_t count, const Use& use) const {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side)
      if (device::thread() % 4 == 0 && leads() && row_of(2 * side) < count) use(row_of(2 * side), largest_[side], total_[side]);
  }

  // Of each row its part of this thread: what write(row, sum of numerators) returns is called with columns and sums.
  template <class Write>
  CUDA_OPS_DEVICE void each_row(int64_t count, const Write& write) const {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      if (row_of(2 * side) >= count) continue;
      const auto write_row = write(row_of(2 * side), total_[side]);
      CUDA_OPS_UNROLL(TILES)
      for (int n = 0; n < TILES; ++n) write_row(own_column() + column(n, 0), out_[n][2 * side], out_[n][2 * side + 1]);
    }
  }

  // Where row r of the output can lie. A warp has its own numbers, until keys are added again.
  CUDA_OPS_DEVICE T* shared_row(int r) const { return rows_ + r * STRIDE; }
  // use(row, d, numbers d … d + 7 of its shared row).
  template <class Use>
  CUDA_OPS_DEVICE void each_eight(const Use& use) const {
    device::warp_barrier();
    CUDA_OPS_UNROLL(OWN / 16)
    for (int e = device::thread() % WARP; e < 16 * (OWN / 8); e += WARP) {
      const int r = first_row() + e / (OWN / 8), d = own_column() + e % (OWN / 8) * 8;
      use(r, d, reinterpret_cast<const Quad*>(shared_row(r) + d));
    }
  }

 private:
  CUDA_OPS_DEVICE void take_queries() {
    CUDA_OPS_UNROLL(STEPS)
    for (int k = 0; k < STEPS; ++k) load_a(queries_[k], rows_ + first_row() * STRIDE + own_column() + k * 16, STRIDE);
  }
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / (TEAM * WARP) * 16; }
  CUDA_OPS_DEVICE static int own_column() { return device::thread() / WARP % TEAM * OWN; }
  CUDA_OPS_DEVICE static int row_of(int i) { return first_row() + row_of_d(i); }
  CUDA_OPS_DEVICE static int column(int n, int i) { return n * 8 + column_of_d(i); }
  // Own numbers column(n, 0) and column(n, 1) of a query of this thread.
  CUDA_OPS_DEVICE uint32_t query(int n, int side) const { return queries_[n / 2][n % 2 * 2 + side]; }
  // Twice as many registers as the queries themselves.
  CUDA_OPS_DEVICE void forget_widened() {
    CUDA_OPS_UNROLL(4 * STEPS)
    for (int i = 0; i < 4 * STEPS; ++i) device::forget(queries_[i / 4][i % 4]);
  }
  // Over the four lanes that have a row.
  CUDA_OPS_DEVICE static float quad_sum(float value) { return warp_sum<4>(value); }
  CUDA_OPS_DEVICE static float quad_largest(float value) { return warp_largest_number<4>(value); }

  // use(false) by the first warp of a team, then use(true) by the second one.
  template <class Use>
  CUDA_OPS_DEVICE static void in_turns(const Use& use) {
    if (leads()) use(false);
    if constexpr (TEAM > 1) {
      device::barrier();
      if (!leads()) use(true);
    }
  }

  // Products of the queries with the keys from `row` on, in place of the sums or added to them.
  CUDA_OPS_DEVICE void multiply_keys(int row, int tiles, float (&sum)[KEY_TILES][4], bool added) {
    CUDA_OPS_UNROLL(KEY_TILES / 2)
    for (int n = 0; n < KEY_TILES; n += 2) {
      if (n >= tiles) continue;
      for (int i = 0; i < 8 && !added; ++i) sum[n + i / 4][i % 4] = 0;
      CUDA_OPS_UNROLL(STEPS)
      for (int k = 0; k < STEPS; ++k) {
        uint32_t b[2][2];
        load_b_of_rows(b, keys_ + (row + n * 8) * STRIDE + own_column() + k * 16, STRIDE);
        device::multiply(sum[n], queries_[k], b[0], T());
        device::multiply(sum[n + 1], queries_[k], b[1], T());
      }
    }
  }

  // From the products of each warp of a team to their sums: the same bits for both, whichever comes first. They lie at the end of the memory of the keys,
  // behind what keys keep. A team without queries has none: both of its warps are busy, or neither.
  CUDA_OPS_DEVICE void add_up(int tiles, bool busy, float (&sum)[KEY_TILES][4]) {
    static_assert(TEAM == 2 && KEY_TILES * THREADS <= KEYS_OF_TILE * STRIDE / 8);
    Quad* const products = reinterpret_cast<Quad*>(values_) + device::thread();
    CUDA_OPS_UNROLL(KEY_TILES)
    for (int n = 0; n < KEY_TILES; ++n)
      if (n < tiles && busy) products[-(n + 1) * THREADS] = {sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
    device::barrier();
    const Quad* const others = reinterpret_cast<Quad*>(values_) + (device::thread() ^ WARP);
    CUDA_OPS_UNROLL(KEY_TILES)
    for (int n = 0; n < KEY_TILES; ++n) {
      if (n >= tiles || !busy) continue;
      const Quad other = others[-(n + 1) * THREADS];
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) sum[n][i] += other.at[i];
    }
  }

  // Takes a larger logit of a row: what was summed before shrinks accordingly. Returns what numerators are relative to.
  CUDA_OPS_DEVICE float take(int side, float most) {
    const float base = most == -infinity() ? 0 : most, shrink = quick_exponential(largest_[side] - base);
    largest_[side] = most;
    total_[side] *= shrink;
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      CUDA_OPS_UNROLL(2)
      for (int i = 2 * side; i < 2 * side + 2; ++i) out_[n][i] *= shrink;
    return base;
  }

  // From logits to numerators relative to the largest logit so far.
  CUDA_OPS_DEVICE void weigh(const float (&most)[2], int tiles, float (&weights)[KEY_TILES][4]) {
    const float base[2] = {take(0, quad_largest(most[0])), take(1, quad_largest(most[1]))};
    CUDA_OPS_UNROLL(KEY_TILES)
    for (int n = 0; n < KEY_TILES; ++n) {
      if (n >= tiles) continue;
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        weights[n][i] = quick_exponential(weights[n][i] - base[i / 2]);
        total_[i / 2] += weights[n][i];
      }
    }
  }

  CUDA_OPS_DEVICE void add_values(int row, int tiles, const float (&weights)[KEY_TILES][4]) {
    CUDA_OPS_UNROLL(KEY_TILES / 2)
    for (int k = 0; k < KEY_TILES; k += 2) {
      if (k >= tiles) continue;
      const uint32_t a[4] = {pair(weights[k][0], weights[k][1], T()), pair(weights[k][2], weights[k][3], T()), pair(weights[k + 1][0], weights[k + 1][1], T()),
                             pair(weights[k + 1][2], weights[k + 1][3], T())};
      CUDA_OPS_UNROLL(STEPS)
      for (int n = 0; n < TILES; n += 2) {
        uint32_t b[2][2];
        load_b(b, values_ + (row + k * 8) * STRIDE + own_column() + n * 8, STRIDE);
        device::multiply(out_[n], a, b[0], T());
        device::multiply(out_[n + 1], a, b[1], T());
      }
    }
  }

  // use(tile, w) with the rows number w of own, of keys or of values.
  template <class Use>
  CUDA_OPS_DEVICE void each_own(const QueryRows<T>& queries, const Heads<T>& x, int64_t key_head, const OwnKeys& own, const Use& use) {
    constexpr int AT_ONCE = QUADS * 8 / STRIDE / QUERIES;
    T* const tile = keys_ + first_row() * STRIDE + own_column();
    const T* head = x.base + x.offset(queries.b, key_head, 0, 0);
    const int32_t* first = own.position + first_row() * own.stride;
    CUDA_OPS_UNROLL(1)
    for (int w = 0; w < own.width; w += AT_ONCE) {
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i)
        if (w + i < own.width) {
          const auto token = [&](int r) { return first[r * own.stride + w + i]; };
          send_rows<OWN, STRIDE, WARP, 4>(16, token, own_column(), int(queries.D), Sent<T>{x, head, tile + i * (QUERIES * STRIDE)});
        }
      device::wait_for_copies();
      device::warp_barrier();
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i)
        if (w + i < own.width) use(tile + i * (QUERIES * STRIDE), w + i);
      team_barrier();
    }
  }

  // Whether this lane has a number of the diagonal of a product, and the place in the list of keys number w of its row.
  CUDA_OPS_DEVICE static bool on_diagonal() { return device::thread() % WARP / 8 == device::thread() % 4; }
  CUDA_OPS_DEVICE static int place(const OwnKeys& own, int side, int w) { return row_of(2 * side) * own.stride + w; }

  CUDA_OPS_DEVICE void own_logits(const T* tile, int w, float scale, const OwnKeys& own) {
    float sum[2][4] = {};
    CUDA_OPS_UNROLL(STEPS)
    for (int k = 0; k < STEPS; ++k) {
      uint32_t b[2][2];
      load_b_of_rows(b, tile + k * 16, STRIDE);
      CUDA_OPS_UNROLL(2)
      for (int side = 0; side < 2; ++side) device::multiply(sum[side], queries_[k], b[side], T());
    }
    in_turns([&](bool again) {
      CUDA_OPS_UNROLL(2)
      for (int side = 0; side < 2; ++side) {
        const float product = device::thread() / 4 % 2 ? sum[side][2 * side + 1] : sum[side][2 * side];
        float& exact = own.exact[place(own, side, w)];
        if (on_diagonal()) exact = own.position[place(own, side, w)] < 0 ? -infinity() : again ? exact + product * scale : product * scale;
      }
    });
  }

  // From the two logits of each to one weight, in the place of the exact one.
  CUDA_OPS_DEVICE void weigh_own(const OwnKeys& own) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const int place = row_of(2 * side) * own.stride;
      float most = largest_[side];
      for (int w = device::thread() % 4; w < own.width; w += 4) most = device::larger_number(most, device::larger_number(own.exact[place + w], own.counted[place + w]));
      const float base = take(side, quad_largest(most));
      if (TEAM > 1) device::barrier();  // both warps have read the logits
      in_turns([&](bool again) {
        for (int w = device::thread() % 4; w < own.width; w += 4) {
          const float weight = again ? own.exact[place + w] : device::exponential(own.exact[place + w] - base) - device::exponential(own.counted[place + w] - base);
          if (!again) own.exact[place + w] = weight;
          total_[side] += weight;
        }
      });
    }
  }

  // The weights are a diagonal matrix.
  CUDA_OPS_DEVICE void add_own_values(const T* tile, int w, const OwnKeys& own) {
    uint32_t a[4] = {};
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const float weight = on_diagonal() ? own.exact[place(own, side, w)] : 0;
      a[3 * side] = device::thread() / 4 % 2 ? pair(0, weight, T()) : pair(weight, 0, T());
    }
    CUDA_OPS_UNROLL(STEPS)
    for (int n = 0; n < TILES; n += 2) {
      uint32_t b[2][2];
      load_b(b, tile + n * 8, STRIDE);
      CUDA_OPS_UNROLL(2)
      for (int side = 0; side < 2; ++side) device::multiply(out_[n + side], a, b[side], T());
    }
  }

  T *keys_, *values_, *rows_;  // (KEYS_OF_TILE, STRIDE), and queries, then output: (QUERIES, STRIDE)
  bool received_;
  uint32_t queries_[STEPS][4];
  float largest_[2], total_[2];  // of the rows of this thread; the total of its own columns, until close()
  float out_[TILES][4];
};

}  // namespace
