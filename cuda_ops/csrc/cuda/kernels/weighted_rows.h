// Sums of rows with float32 weights, by the tensor cores: CLUSTERS sums at once of COLUMNS numbers, by blocks of SUM_THREADS. See split.h.
#pragma once
#include "attend_keys.h"
#include "matrix.h"
#include "split.h"

namespace {

constexpr int SUM_THREADS = 256, CLUSTERS = 32, COLUMNS = 64, ROW_STRIDE = COLUMNS + 8, SLICES = COLUMNS / 16;

struct alignas(8) FourBfloat16 {
  uint32_t pairs[2];  // the first one in the lower half
};

// The weights of j to j + 3 of LENGTH for a sum, j a multiple of four, to (FLOAT_PARTS, CLUSTERS, LENGTH + 8).
template <int LENGTH>
CUDA_OPS_DEVICE void set_weights(bfloat16* weights, int r, int j, float (&weight)[4]) {
  CUDA_OPS_UNROLL(FLOAT_PARTS)
  for (int i = 0; i < FLOAT_PARTS; ++i) {
    FourBfloat16 part;
    CUDA_OPS_UNROLL(2)
    for (int two = 0; two < 2; ++two) {
      part.pairs[two] = device::pair_of_bfloat16(weight[2 * two], weight[2 * two + 1]);
      weight[2 * two] -= first_of(part.pairs[two], bfloat16());
      weight[2 * two + 1] -= second_of(part.pairs[two], bfloat16());
    }
    *reinterpret_cast<FourBfloat16*>(weights + (i * CLUSTERS + r) * (LENGTH + 8) + j) = part;
  }
}

// The numbers from d on of a row, and zeros behind it: one, or eight 16-bit ones at once where they can be read so.
template <class T>
CUDA_OPS_DEVICE void read_numbers(const Heads<T>& x, int64_t row, bool here, int64_t d, int64_t D, T (&to)[1]) {
  to[0] = here && d < D ? x.base[row + d * x.element] : T{};
}
template <class T>
CUDA_OPS_DEVICE void read_numbers(const Heads<T>& x, int64_t row, bool here, int64_t d, int64_t D, T (&to)[8]) {
  if (here && d + 8 <= D && x.eights) {
    const Quad eight = *reinterpret_cast<const Quad*>(x.base + row + d);
    CUDA_OPS_UNROLL(8)
    for (int i = 0; i < 8; ++i) to[i].bits = uint16_t(device::bits_of(eight.at[i / 2]) >> i % 2 * 16);
  } else {
    CUDA_OPS_UNROLL(8)
    for (int i = 0; i < 8; ++i) to[i] = here && d + i < D ? x.base[row + (d + i) * x.element] : T{};
  }
}

// COLUMNS numbers from d0 on of `count` rows at these positions, and of zeros up to a multiple of 16, to (DATA_PARTS, TILE, ROW_STRIDE).
template <int TILE, class T>
CUDA_OPS_DEVICE void load_rows(const Heads<T>& x, int64_t b, int64_t h, const int32_t* position, int64_t count, int64_t d0, int64_t D, bfloat16* rows) {
  constexpr int WIDTH = sizeof(T) == 2 ? 8 : 1;  // neighbours read at once, or by neighbouring threads
  const int padded = int(smaller(int64_t(TILE), (count + 15) / 16 * 16));
  for (int e = device::thread(); e < padded * (COLUMNS / WIDTH); e += SUM_THREADS) {
    const int j = e / (COLUMNS / WIDTH), d = e % (COLUMNS / WIDTH) * WIDTH;
    const bool here = j < count;
    const int64_t row = x.offset(b, h, here ? position[j] : 0, 0);
    bfloat16* to = rows + j * ROW_STRIDE + d;
    T from[WIDTH];
    read_numbers(x, row, here, d0 + d, D, from);
    CUDA_OPS_UNROLL(WIDTH)
    for (int i = 0; i < WIDTH; ++i) {
      bfloat16 parts[DATA_PARTS<T>];
      split(widen(from[i]), parts);
      CUDA_OPS_UNROLL(DATA_PARTS<T>)
      for (int p = 0; p < DATA_PARTS<T>; ++p) to[p * TILE * ROW_STRIDE + i] = parts[p];
    }
  }
}

// The same `count` rows, at most TILE, that of rank j at position(j), of some heads; they are there after device::wait_for_copies(). Zeros up to a multiple of the rows
// sent at once.
template <int TILE, class Position, class... T>
CUDA_OPS_DEVICE void send_columns(int count, const Position& position, int d0, int D, const Sent<T>&... sent) {
  constexpr int AT_ONCE = SUM_THREADS / (COLUMNS / 8);
  static_assert(TILE % AT_ONCE == 0);
  const auto token = [&](int j) { return j < count ? position(j) : -1; };
  send_rows<COLUMNS, ROW_STRIDE, SUM_THREADS, 1>((count + AT_ONCE - 1) / AT_ONCE * AT_ONCE, token, d0, D, sent...);
}
// TILE rows one behind the other, of which eight numbers can be read at once.
template <int TILE>
CUDA_OPS_DEVICE void send_neighbours(const Heads<bfloat16>& x, const bfloat16* first_row, int d0, bfloat16* rows) {
  constexpr int CHUNKS = COLUMNS / 8, AT_ONCE = SUM_THREADS / CHUNKS;
  const int first = device::thread() / CHUNKS, d = device::thread() % CHUNKS * 8;
  const bfloat16* from = first_row + first * x.token + d0 + d;
  CUDA_OPS_UNROLL(TILE / AT_ONCE)
  for (int j = 0; j < TILE; j += AT_ONCE) device::copy_sixteen(rows + (first + j) * ROW_STRIDE + d, from + j * x.token);
}

// The part of a warp: 16 of the clusters, 16 of the columns. Products of the largest parts and those of the others are added up apart, so that small ones are not cut off.
class RowSums {
 public:
  CUDA_OPS_DEVICE RowSums() {
    CUDA_OPS_UNROLL(4)
    for (int i = 0; i < 4; ++i)
      for (int n = 0; n < 2; ++n) sum_[n][i] = rest_[n][i] = 0;
  }

  // `count` rows, at most TILE, with the weights from j0 on.
  template <class T, int LENGTH, int TILE>
  CUDA_OPS_DEVICE void add(const bfloat16* weights, int j0, const bfloat16* rows, int64_t count) {
    CUDA_OPS_UNROLL(TILE / 16)
    for (int k = 0; k < TILE; k += 16) {
      if (k >= count) continue;
      uint32_t x[DATA_PARTS<T>][2][2];
      CUDA_OPS_UNROLL(DATA_PARTS<T>)
      for (int p = 0; p < DATA_PARTS<T>; ++p) load_b(x[p], rows + (p * TILE + k) * ROW_STRIDE + slice() * 16, ROW_STRIDE);
      CUDA_OPS_UNROLL(FLOAT_PARTS)
      for (int i = 0; i < FLOAT_PARTS; ++i) {
        uint32_t weight[4];
        load_a(weight, weights + (i * CLUSTERS + first_cluster()) * (LENGTH + 8) + j0 + k, LENGTH + 8);
        CUDA_OPS_UNROLL(DATA_PARTS<T>)
        for (int p = 0; p < DATA_PARTS<T>; ++p)
          CUDA_OPS_UNROLL(2)
          for (int n = 0; n < 2; ++n)
            if (i + p < FLOAT_PARTS) device::multiply(i + p ? rest_[n] : sum_[n], weight, x[p][n], bfloat16());
      }
    }
  }

  // Multiplies the sums of every cluster by its factor.
  CUDA_OPS_DEVICE void scale(const float* factors) {
    CUDA_OPS_UNROLL(2)
    for (int side = 0; side < 2; ++side) {
      const float factor = factors[cluster(2 * side)];
      CUDA_OPS_UNROLL(2)
      for (int n = 0; n < 2; ++n)
        CUDA_OPS_UNROLL(2)
        for (int i = 2 * side; i < 2 * side + 2; ++i) {
          sum_[n][i] *= factor;
          rest_[n][i] *= factor;
        }
    }
  }

  CUDA_OPS_DEVICE float at(int n, int i) const { return sum_[n][i] + rest_[n][i]; }
  CUDA_OPS_DEVICE static int slice() { return device::thread() / WARP / 2; }
  CUDA_OPS_DEVICE static int cluster(int i) { return first_cluster() + row_of_d(i); }
  CUDA_OPS_DEVICE static int column(int n, int i) { return slice() * 16 + n * 8 + column_of_d(i); }

 private:
  CUDA_OPS_DEVICE static int first_cluster() { return device::thread() / WARP % 2 * 16; }
  float sum_[2][4], rest_[2][4];
};
static_assert(SUM_THREADS / WARP == 2 * SLICES && CLUSTERS == 2 * 16);

}  // namespace
