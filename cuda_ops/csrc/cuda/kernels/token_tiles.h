// Products of TILE tokens with TILE others, and sums of rows of the others weighted by such numbers: what gradients of attention are made of. float32 by the FMA
// units (VectorTile), 16-bit numbers on the tensor cores (MatrixTile); both have the same functions. A thread has ROWS x COLUMNS of the numbers of a tile, and
// LANES neighbouring threads those of a row. Behind each function that uses the memory it is free again.
#pragma once
#include "split_product.h"
#include "tile_product.h"

namespace {

// The rows of a head at TILE token positions; -1 is no token, and its row 0.
template <class T>
struct TileRows {
  Heads<T> x;
  int64_t b, h, D;
  const int32_t* positions;
};

template <class T>
class VectorTile {
 public:
  static constexpr int THREADS = TILE_THREADS, ROWS = OWN, COLUMNS = OWN, LANES = LANES_OF_ROW, QUADS = 2 * TILE * TILE_QUADS;
  struct Numbers {
    float at[OWN][OWN] = {};
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[r][c]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return own_row() + r; }
  CUDA_OPS_DEVICE static int column(int c) { return own_column() + c; }

  CUDA_OPS_DEVICE explicit VectorTile(TileQuad* memory) : memory_(memory) {}

  // along_x = rows of x . columns of x, and the same of y.
  CUDA_OPS_DEVICE void multiply(const TileRows<T>& x, const TileRows<T>& x_columns, const TileRows<T>& y, const TileRows<T>& y_columns, Numbers& along_x,
                                Numbers& along_y) const {
    constexpr int PIECE = DEPTH * TILE_QUADS;
    along_x = along_y = Numbers();
    for (int64_t d0 = 0; d0 < x.D; d0 += DEPTH) {
      load(x, d0, memory_);
      load(x_columns, d0, memory_ + PIECE);
      load(y, d0, memory_ + 2 * PIECE);
      load(y_columns, d0, memory_ + 3 * PIECE);
      device::barrier();
      add_product(memory_, memory_ + PIECE, DEPTH, along_x.at);
      add_product(memory_ + 2 * PIECE, memory_ + 3 * PIECE, DEPTH, along_y.at);
      device::barrier();
    }
  }

  // sum[r][d] += values[r][c] * number d0 + d of column c, over the columns; the product of this tile first: a sum of many tiles is more accurate that way.
  CUDA_OPS_DEVICE void add(const Numbers& values, const TileRows<T>& columns, int64_t d0, Numbers& sum) const {
    TileQuad* weights = memory_ + TILE * TILE_QUADS;
    store_columns(values.at, weights);
    load_along(columns.x, columns.b, columns.h, columns.positions, d0, columns.D, memory_);
    device::barrier();
    add_tile(weights, memory_, TILE, sum.at);
    device::barrier();
  }

  // write(row, d0 + d, number) for every number d of a row that is one of D.
  template <class Write>
  CUDA_OPS_DEVICE void each(const Numbers& numbers, int64_t d0, int64_t D, const Write& write) const {
    store_rows(numbers.at, memory_);
    device::barrier();
    for_each_number<THREADS>(memory_, d0, D, write);
    device::barrier();
  }

 private:
  CUDA_OPS_DEVICE static void load(const TileRows<T>& rows, int64_t d0, TileQuad* to) { load_across(rows.x, rows.b, rows.h, rows.positions, d0, rows.D, to); }

  TileQuad* memory_;
};

// A warp has 16 rows. float32 values times 16-bit rows are products of two bfloat16 parts each: to about 2^-17 of a value.
template <class T>
class MatrixTile {
  static constexpr int VALUE_PARTS = 2, EIGHTS = TILE / 8, STRIDE = EIGHTS + 1, MATRIX = TILE * STRIDE;  // in eights

 public:
  static constexpr int THREADS = TILE / 16 * WARP, ROWS = 2, COLUMNS = TILE / 4, LANES = 4, QUADS = 4 * MATRIX;
  struct Numbers {
    float at[TILE / 8][4] = {};  // as the tensor cores give them
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[c / 2][2 * r + c % 2]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return first_row() + row_of_d(2 * r); }
  CUDA_OPS_DEVICE static int column(int c) { return c / 2 * 8 + column_of_d(c % 2); }

  CUDA_OPS_DEVICE explicit MatrixTile(TileQuad* memory) : memory_(reinterpret_cast<Eight*>(memory)) {}

  CUDA_OPS_DEVICE void multiply(const TileRows<T>& x, const TileRows<T>& x_columns, const TileRows<T>& y, const TileRows<T>& y_columns, Numbers& along_x,
                                Numbers& along_y) const {
    along_x = along_y = Numbers();
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < x.D; d0 += TILE) {
      send(x, d0, memory_);
      send(x_columns, d0, memory_ + MATRIX);
      send(y, d0, memory_ + 2 * MATRIX);
      send(y_columns, d0, memory_ + 3 * MATRIX);
      device::wait_for_copies();
      device::barrier();
      const int steps = int(smaller(int64_t(TILE), x.D - d0) + 15) / 16;
      add_products(memory_, memory_ + MATRIX, steps, along_x);
      add_products(memory_ + 2 * MATRIX, memory_ + 3 * MATRIX, steps, along_y);
      device::barrier();
    }
  }

  CUDA_OPS_DEVICE void add(const Numbers& values, const TileRows<T>& columns, int64_t d0, Numbers& sum) const {
    for (int e = device::thread(); e < TILE * EIGHTS; e += THREADS) {
      const int c = e / EIGHTS, chunk = e % EIGHTS;
      store_parts(eight_of<T>(start_of(columns, c), columns.x.element, d0 + chunk * 8, columns.D), memory_ + c * STRIDE + chunk, MATRIX, T());
    }
    uint32_t a[TILE / 16][VALUE_PARTS][4];
    CUDA_OPS_UNROLL(TILE / 16)
    for (int k = 0; k < TILE / 16; ++k)
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        const float(&pairs)[4] = values.at[2 * k + i / 2];
        const float low = pairs[i % 2 * 2], high = pairs[i % 2 * 2 + 1];
        const uint32_t both = device::pair_of_bfloat16(low, high);
        a[k][0][i] = both;
        a[k][1][i] = device::pair_of_bfloat16(low - device::float_of(both << 16), high - device::float_of(both & 0xffff0000u));
      }
    device::barrier();
    const auto* numbers = reinterpret_cast<const bfloat16*>(memory_);
    CUDA_OPS_UNROLL(TILE / 16)
    for (int n = 0; n < TILE / 8; n += 2) {
      float product[2][4] = {};
      CUDA_OPS_UNROLL(TILE / 16)
      for (int k = 0; k < TILE / 16; ++k)
        CUDA_OPS_UNROLL(DATA_PARTS<T>)
        for (int other = 0; other < DATA_PARTS<T>; ++other) {
          uint32_t b[2][2];
          load_b(b, numbers + (other * MATRIX + k * 16 * STRIDE + n) * 8, STRIDE * 8);
          CUDA_OPS_UNROLL(VALUE_PARTS)
          for (int part = 0; part < VALUE_PARTS - other; ++part)
            for (int side = 0; side < 2; ++side) device::multiply(product[side], a[k][part], b[side], bfloat16());
        }
      for (int side = 0; side < 2; ++side)
        for (int i = 0; i < 4; ++i) sum.at[n + side][i] += product[side][i];
    }
    device::barrier();
  }

  template <class Write>
  CUDA_OPS_DEVICE void each(Numbers& numbers, int64_t d0, int64_t D, const Write& write) const {
    TileQuad* rows = reinterpret_cast<TileQuad*>(memory_);
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) rows->at[row(r) * TILE_STRIDE + column(c)] = numbers(r, c);
    device::barrier();
    for_each_number<THREADS>(rows, d0, D, write);
    device::barrier();
  }

 private:
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / WARP * 16; }
  CUDA_OPS_DEVICE static const T* start_of(const TileRows<T>& rows, int i) {
    return rows.positions[i] >= 0 ? rows.x.base + rows.x.offset(rows.b, rows.h, rows.positions[i], 0) : nullptr;
  }
  CUDA_OPS_DEVICE static void send(const TileRows<T>& rows, int64_t d0, Eight* to) {
    CUDA_OPS_UNROLL(4)
    for (int e = device::thread(); e < TILE * EIGHTS; e += THREADS) {
      const int i = e / EIGHTS, chunk = e % EIGHTS;
      send_eight(rows.x, start_of(rows, i), int(d0) + chunk * 8, int(rows.D), reinterpret_cast<T*>(to + i * STRIDE + chunk));
    }
  }
  CUDA_OPS_DEVICE static void add_products(const Eight* rows, const Eight* columns, int steps, Numbers& sum) {
    const auto* row_numbers = reinterpret_cast<const T*>(rows + first_row() * STRIDE);
    const auto* column_numbers = reinterpret_cast<const T*>(columns);
    CUDA_OPS_UNROLL(1)
    for (int k = 0; k < steps; ++k) {
      uint32_t a[4];
      load_a(a, row_numbers + k * 16, STRIDE * 8);
      CUDA_OPS_UNROLL(TILE / 16)
      for (int n = 0; n < TILE / 8; n += 2) {
        uint32_t b[2][2];
        load_b_of_rows(b, column_numbers + n * STRIDE * 64 + k * 16, STRIDE * 8);
        for (int side = 0; side < 2; ++side) device::multiply(sum.at[n + side], a, b[side], T());
      }
    }
  }

  Eight* memory_;
};

template <class T>
using TileOf = std::conditional_t<sizeof(T) == 2, MatrixTile<T>, VectorTile<T>>;

}  // namespace
