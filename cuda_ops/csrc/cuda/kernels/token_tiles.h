// Products of TILE tokens with TILE others, and sums of rows of the others weighted by such numbers: what gradients of attention are made of. float32 by the FMA
// units (VectorTile), 16-bit numbers on the tensor cores (MatrixTile). A thread has ROWS x COLUMNS of the numbers of a tile, and LANES neighbouring threads those of a
// row. All of it goes through QUADS of shared memory, which are free again behind each function.
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
struct VectorTile {
  static constexpr int THREADS = TILE_THREADS, ROWS = OWN, COLUMNS = OWN, LANES = LANES_OF_ROW, QUADS = 2 * TILE * TILE_QUADS;
  // Rows are multiplied in pieces: so many numbers of them, in so many quads.
  static constexpr int PIECE = DEPTH, PIECE_QUADS = DEPTH * TILE_QUADS;
  struct Numbers {
    float at[OWN][OWN] = {};
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[r][c]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return own_row() + r; }
  CUDA_OPS_DEVICE static int column(int c) { return own_column() + c; }

  CUDA_OPS_DEVICE static void load(const TileRows<T>& rows, int64_t d0, TileQuad* to) { load_across(rows.x, rows.b, rows.h, rows.positions, d0, rows.D, to); }
  CUDA_OPS_DEVICE static void add_products(const TileQuad* rows, const TileQuad* columns, int64_t, Numbers& sum) { add_product(rows, columns, DEPTH, sum.at); }

  // sum[r][d] += values[r][c] * number d0 + d of column c, over the columns; the product of this tile first: a sum of many tiles is more accurate that way.
  CUDA_OPS_DEVICE static void add(const Numbers& values, const TileRows<T>& columns, int64_t d0, TileQuad* memory, Numbers& sum) {
    TileQuad* weights = memory + TILE * TILE_QUADS;
    store_columns(values.at, weights);
    load_along(columns.x, columns.b, columns.h, columns.positions, d0, columns.D, memory);
    device::barrier();
    add_tile(weights, memory, TILE, sum.at);
    device::barrier();
  }

  CUDA_OPS_DEVICE static void store(const Numbers& numbers, TileQuad* to) { store_rows(numbers.at, to); }
};

// A warp has 16 rows.
template <class T>
class MatrixTile {
  static constexpr int VALUE_PARTS = 2, EIGHTS = TILE / 8, STRIDE = EIGHTS + 1;  // in eights

 public:
  static constexpr int PIECE = TILE, PIECE_QUADS = TILE * STRIDE;
  static constexpr int THREADS = TILE / 16 * WARP, ROWS = 2, COLUMNS = TILE / 4, LANES = 4, QUADS = 4 * PIECE_QUADS;
  struct Numbers {
    float at[TILE / 8][4] = {};  // as the tensor cores give them
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[c / 2][2 * r + c % 2]; }
  };
  CUDA_OPS_DEVICE static int row(int r) { return first_row() + row_of_d(2 * r); }
  CUDA_OPS_DEVICE static int column(int c) { return c / 2 * 8 + column_of_d(c % 2); }

  // They are there after device::wait_for_copies().
  CUDA_OPS_DEVICE static void load(const TileRows<T>& rows, int64_t d0, TileQuad* to) {
    CUDA_OPS_UNROLL(4)
    for (int e = device::thread(); e < TILE * EIGHTS; e += THREADS) {
      const int i = e / EIGHTS, chunk = e % EIGHTS;
      send_eight(rows.x, start_of(rows, i), int(d0) + chunk * 8, int(rows.D), reinterpret_cast<T*>(to + i * STRIDE + chunk));
    }
  }
  // `left` numbers of the rows are left.
  CUDA_OPS_DEVICE static void add_products(const TileQuad* rows, const TileQuad* columns, int64_t left, Numbers& sum) {
    const auto* row_numbers = reinterpret_cast<const T*>(rows + first_row() * STRIDE);
    const auto* column_numbers = reinterpret_cast<const T*>(columns);
    const int steps = int(smaller(int64_t(TILE), left) + 15) / 16;
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

  // A value and a 16-bit number are two bfloat16 parts each: to about 2^-17 of the value.
  CUDA_OPS_DEVICE static void add(const Numbers& values, const TileRows<T>& columns, int64_t d0, TileQuad* memory, Numbers& sum) {
    Eight* parts = reinterpret_cast<Eight*>(memory);
    for (int e = device::thread(); e < TILE * EIGHTS; e += THREADS) {
      const int c = e / EIGHTS, chunk = e % EIGHTS;
      store_parts(eight_of<T>(start_of(columns, c), columns.x.element, d0 + chunk * 8, columns.D), parts + c * STRIDE + chunk, PIECE_QUADS, T());
    }
    uint32_t a[TILE / 16][VALUE_PARTS][4];
    CUDA_OPS_UNROLL(TILE / 16)
    for (int k = 0; k < TILE / 16; ++k)
      CUDA_OPS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        const float* both = values.at[2 * k + i / 2] + i % 2 * 2;
        const uint32_t first = device::pair_of_bfloat16(both[0], both[1]);
        a[k][0][i] = first;
        a[k][1][i] = device::pair_of_bfloat16(both[0] - first_of(first, bfloat16()), both[1] - second_of(first, bfloat16()));
      }
    device::barrier();
    const auto* numbers = reinterpret_cast<const bfloat16*>(parts);
    CUDA_OPS_UNROLL(TILE / 16)
    for (int n = 0; n < TILE / 8; n += 2) {
      float product[2][4] = {};
      CUDA_OPS_UNROLL(TILE / 16)
      for (int k = 0; k < TILE / 16; ++k)
        CUDA_OPS_UNROLL(DATA_PARTS<T>)
        for (int other = 0; other < DATA_PARTS<T>; ++other) {
          uint32_t b[2][2];
          load_b(b, numbers + (other * PIECE_QUADS + k * 16 * STRIDE + n) * 8, STRIDE * 8);
          CUDA_OPS_UNROLL(VALUE_PARTS)
          for (int part = 0; part < VALUE_PARTS - other; ++part)
            for (int side = 0; side < 2; ++side) device::multiply(product[side], a[k][part], b[side], bfloat16());
        }
      for (int side = 0; side < 2; ++side)
        for (int i = 0; i < 4; ++i) sum.at[n + side][i] += product[side][i];
    }
    device::barrier();
  }

  CUDA_OPS_DEVICE static void store(Numbers& numbers, TileQuad* to) {
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) to->at[row(r) * TILE_STRIDE + column(c)] = numbers(r, c);
  }

 private:
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / WARP * 16; }
  CUDA_OPS_DEVICE static const T* start_of(const TileRows<T>& rows, int i) {
    return rows.positions[i] >= 0 ? rows.x.base + rows.x.offset(rows.b, rows.h, rows.positions[i], 0) : nullptr;
  }
};

// along_x = rows of x . columns of x, and the same of y.
template <class Tile, class T, class Numbers>
CUDA_OPS_DEVICE void multiply_tiles(const TileRows<T>& x, const TileRows<T>& x_columns, const TileRows<T>& y, const TileRows<T>& y_columns, TileQuad* memory,
                                    Numbers& along_x, Numbers& along_y) {
  TileQuad *x_piece = memory, *x_columns_piece = x_piece + Tile::PIECE_QUADS, *y_piece = x_columns_piece + Tile::PIECE_QUADS;
  TileQuad* y_columns_piece = y_piece + Tile::PIECE_QUADS;
  along_x = along_y = Numbers();
  CUDA_OPS_UNROLL(1)
  for (int64_t d0 = 0; d0 < x.D; d0 += Tile::PIECE) {
    Tile::load(x, d0, x_piece);
    Tile::load(x_columns, d0, x_columns_piece);
    Tile::load(y, d0, y_piece);
    Tile::load(y_columns, d0, y_columns_piece);
    device::wait_for_copies();
    device::barrier();
    Tile::add_products(x_piece, x_columns_piece, x.D - d0, along_x);
    Tile::add_products(y_piece, y_columns_piece, x.D - d0, along_y);
    device::barrier();
  }
}

// write(row, d0 + d, number) for every number d of a row that is one of D, neighbours by neighbouring threads.
template <class Tile, class Numbers, class Write>
CUDA_OPS_DEVICE void each_number(Numbers& numbers, int64_t d0, int64_t D, TileQuad* memory, const Write& write) {
  Tile::store(numbers, memory);
  device::barrier();
  for_each_number<Tile::THREADS>(memory, d0, D, write);
  device::barrier();
}

template <class T>
using TileOf = std::conditional_t<sizeof(T) == 2, MatrixTile<T>, VectorTile<T>>;

}  // namespace
