// The scores of a tile of rows with a tile of float32 vectors, on the tensor cores: rows of 16-bit data, and parts of split.h.
#pragma once
#include "attend_keys.h"
#include "matrix.h"
#include "split.h"

namespace {

struct alignas(16) Eight {
  uint32_t pairs[4];  // of 16-bit numbers, the first one in the lower half
};

// Parts here are cut off, not rounded: 8 digits each, so that three are a float32 number exactly, and a part costs two instructions. `low` and `high` lose the
// first part, which the word gets.
CUDA_OPS_DEVICE uint32_t cut(float& low, float& high) {
  const uint32_t first = device::bits_of(low) >> 16, second = device::bits_of(high) & 0xffff0000u;
  low -= device::float_of(first << 16);
  high -= device::float_of(second);
  return second | first;
}

// Eight numbers of a row, 0 behind its end.
template <class T>
CUDA_OPS_DEVICE Eight eight_of(const T* row, int64_t element, int64_t d, int64_t D) {
  if (row && d + 8 <= D && element == 1 && uintptr_t(row + d) % 16 == 0) return *reinterpret_cast<const Eight*>(row + d);
  Eight all{};
  for (int64_t i = 0; i < 8; ++i)
    if (row && d + i < D) all.pairs[i / 2] |= uint32_t(row[(d + i) * element].bits) << 16 * (i % 2);
  return all;
}

CUDA_OPS_DEVICE void store_parts(const Eight& from, Eight* to, int, bfloat16) { *to = from; }
CUDA_OPS_DEVICE void store_parts(const Eight& from, Eight* to, int next, float16) {
  Eight parts[2];
  for (int i = 0; i < 4; ++i) {
    float low = first_of(from.pairs[i], float16()), high = second_of(from.pairs[i], float16());
    for (Eight& part : parts) part.pairs[i] = cut(low, high);
  }
  to[0] = parts[0];
  to[next] = parts[1];
}

// Of eight numbers of a vector.
CUDA_OPS_DEVICE void store_parts(const float* vector, int64_t d, int64_t D, Eight* to, int next) {
  Quad halves[2] = {};
  if (vector && d + 8 <= D && uintptr_t(vector + d) % 16 == 0) {
    for (int half = 0; half < 2; ++half) halves[half] = reinterpret_cast<const Quad*>(vector + d)[half];
  } else {
    for (int i = 0; i < 8; ++i)
      if (vector && d + i < D) halves[i / 4].at[i % 4] = vector[d + i];
  }
  for (int part = 0; part < FLOAT_PARTS; ++part) {
    Eight all;
    for (int i = 0; i < 4; ++i) all.pairs[i] = cut(halves[i / 2].at[i % 2 * 2], halves[i / 2].at[i % 2 * 2 + 1]);
    to[part * next] = all;
  }
}

// A warp has 16 of the ROWS rows, a lane of them rows row_of_d(i) with vectors n * 8 + column_of_d(i). Products go through D in pieces of COLUMNS.
template <class T, int ROWS, int VECTORS, int COLUMNS>
class SplitProduct {
  static constexpr int THREADS = ROWS / 16 * WARP, PARTS = DATA_PARTS<T>, CHUNKS = COLUMNS / 8, STRIDE = CHUNKS + 1;  // in eights
  static_assert(STRIDE % 2 == 1, "or rows of a load meet in a bank");

 public:
  static constexpr int TILES = VECTORS / 8, QUADS = (PARTS * ROWS + FLOAT_PARTS * VECTORS) * STRIDE;

  // sum[n][i] = row . vector. row(r) and vector(v) tell where they are, nullptr for zeros; the first `rows` are wanted. The sum depends on its row and its vector
  // alone: that of the largest parts plus that of the others, each 16 columns after 16. Behind the last use of the memory is a barrier.
  template <class Row, class Vector>
  CUDA_OPS_DEVICE static void multiply(int rows, const Row& row, int64_t element, const Vector& vector, int64_t D, Quad* memory, float (&sum)[TILES][4]) {
    Eight *row_piece = reinterpret_cast<Eight*>(memory), *vector_piece = row_piece + PARTS * ROWS * STRIDE;
    const int t = device::thread(), first = t / WARP * 16;
    float rest[TILES][4];
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      for (int i = 0; i < 4; ++i) sum[n][i] = rest[n][i] = 0;
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
      for (int e = t; e < ROWS * CHUNKS; e += THREADS) {
        const int r = e / CHUNKS, chunk = e % CHUNKS;
        store_parts(eight_of<T>(r < rows ? row(r) : nullptr, element, d0 + chunk * 8, D), row_piece + r * STRIDE + chunk, ROWS * STRIDE, T());
      }
      for (int e = t; e < VECTORS * CHUNKS; e += THREADS) {
        const int v = e / CHUNKS, chunk = e % CHUNKS;
        store_parts(vector(v), d0 + chunk * 8, D, vector_piece + v * STRIDE + chunk, VECTORS * STRIDE);
      }
      device::barrier();
      if (first < rows) add_piece(row_piece + first * STRIDE, vector_piece, sum, rest);
      device::barrier();
    }
    CUDA_OPS_UNROLL(TILES)
    for (int n = 0; n < TILES; ++n)
      for (int i = 0; i < 4; ++i) sum[n][i] += rest[n][i];
  }

 private:
  CUDA_OPS_DEVICE static void add_piece(const Eight* rows, const Eight* vectors, float (&sum)[TILES][4], float (&rest)[TILES][4]) {
    const auto* row_numbers = reinterpret_cast<const bfloat16*>(rows);
    const auto* vector_numbers = reinterpret_cast<const bfloat16*>(vectors);
    CUDA_OPS_UNROLL(COLUMNS / 16)
    for (int k = 0; k < COLUMNS; k += 16) {
      uint32_t a[PARTS][4];
      for (int part = 0; part < PARTS; ++part) load_a(a[part], row_numbers + part * ROWS * STRIDE * 8 + k, STRIDE * 8);
      CUDA_OPS_UNROLL(TILES / 2)
      for (int n = 0; n < TILES; n += 2)
        CUDA_OPS_UNROLL(FLOAT_PARTS)
        for (int part = FLOAT_PARTS - 1; part >= 0; --part) {
          uint32_t b[2][2];
          load_b_of_rows(b, vector_numbers + (part * VECTORS + n * 8) * STRIDE * 8 + k, STRIDE * 8);
          CUDA_OPS_UNROLL(PARTS)
          for (int other = PARTS - 1; other >= 0; --other) {
            if (part + other >= FLOAT_PARTS) continue;  // less than half a unit in the last place of its product
            for (int side = 0; side < 2; ++side) device::multiply(part + other ? rest[n + side] : sum[n + side], a[other], b[side], bfloat16());
          }
        }
    }
  }
};

}  // namespace
