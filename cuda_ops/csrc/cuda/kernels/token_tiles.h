// Products of TILE tokens with TILE others, and sums of rows of the others weighted by such numbers: what gradients of attention are made of. float32 by the FMA
// units (VectorTile), 16-bit numbers on the tensor cores (MatrixTile), which also takes rows of float32 numbers, as parts of split.h. A thread has ROWS x COLUMNS of
// the numbers of a tile, and LANES neighbouring threads those of a row. All of it goes through QUADS of shared memory, which are free again behind each function.
#pragma once
#include "split_product.h"
#include "tile_product.h"

namespace {

// The rows of a head at TILE token positions; -1 is no token, and its row 0.
template <class T>
struct TileRows {
  static constexpr int MOST_PARTS = DATA_PARTS<T>;  // so many bfloat16 parts are exactly a number
  Heads<T> x;
  int64_t b, h, D;
  const int32_t* positions;
  CUDA_OPS_DEVICE float at(int i, int64_t d) const { return positions[i] >= 0 && d < D ? x.at(b, h, positions[i], d) : 0; }
  CUDA_OPS_DEVICE const T* start(int i) const { return positions[i] >= 0 ? x.base + x.offset(b, h, positions[i], 0) : nullptr; }
};

// The same as float32 numbers: times a scale, less an origin if there is one.
template <class T>
struct ScaledRows {
  static constexpr int MOST_PARTS = FLOAT_PARTS;
  TileRows<T> rows;
  float scale;
  const float* origin;
  CUDA_OPS_DEVICE float at(int i, int64_t d) const {
    const float from = origin && d < rows.D ? origin[d] : 0;
    return rows.positions[i] >= 0 && d < rows.D ? rows.at(i, d) * scale - from : 0;
  }
  // Numbers d … d + 7.
  CUDA_OPS_DEVICE void read_eight(int i, int64_t d, float (&to)[8]) const {
    const T* row = rows.start(i);
    const Eight all = eight_of(row, rows.x.element, d, rows.D);
    ::read_eight(origin, d, rows.D, to);
    CUDA_OPS_UNROLL(8)
    for (int k = 0; k < 8; ++k) to[k] = row ? widen(T{uint16_t(all.pairs[k / 2] >> k % 2 * 16)}) * scale - to[k] : 0;
  }
};

// `count` rows of float32 numbers, `stride` from row to row; behind them rows of 0.
struct FloatRows {
  static constexpr int MOST_PARTS = FLOAT_PARTS;
  const float* base;
  int64_t stride, count, D;
  CUDA_OPS_DEVICE float at(int i, int64_t d) const { return i < count && d < D ? base[i * stride + d] : 0; }
  CUDA_OPS_DEVICE void read_eight(int i, int64_t d, float (&to)[8]) const { ::read_eight(i < count ? base + i * stride : nullptr, d, D, to); }
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

// How many parts of a number a product takes that wants at most PARTS.
template <class Rows, int PARTS>
constexpr int PARTS_OF = Rows::MOST_PARTS < PARTS ? Rows::MOST_PARTS : PARTS;

// A warp has 16 rows. The products are with WIDTH others.
template <class T, int WIDTH = TILE>
class MatrixTile {
  static constexpr int VALUE_PARTS = 2, EIGHTS = TILE / 8, STRIDE = EIGHTS + 1;  // in eights

 public:
  static constexpr int PIECE = TILE, PIECE_QUADS = TILE * STRIDE;
  static constexpr int THREADS = TILE / 16 * WARP, ROWS = 2, COLUMNS = WIDTH / 4, LANES = 4, QUADS = 4 * PIECE_QUADS;
  struct Numbers {
    float at[WIDTH / 8][4] = {};  // as the tensor cores give them
    CUDA_OPS_DEVICE float& operator()(int r, int c) { return at[c / 2][2 * r + c % 2]; }
  };
  // Numbers as two bfloat16 parts each, the A of products: to about 2^-17.
  struct Weights {
    uint32_t at[WIDTH / 16][VALUE_PARTS][4];
    CUDA_OPS_DEVICE explicit Weights(const Numbers& values) {
      CUDA_OPS_UNROLL(WIDTH / 16)
      for (int k = 0; k < WIDTH / 16; ++k)
        CUDA_OPS_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
          float low = values.at[2 * k + i / 2][i % 2 * 2], high = values.at[2 * k + i / 2][i % 2 * 2 + 1];
          CUDA_OPS_UNROLL(VALUE_PARTS)
          for (int part = 0; part < VALUE_PARTS; ++part) at[k][part][i] = round_off(low, high);
        }
    }
  };
  CUDA_OPS_DEVICE static int row(int r) { return first_row() + row_of_d(2 * r); }
  CUDA_OPS_DEVICE static int column(int c) { return c / 2 * 8 + column_of_d(c % 2); }

  // They are there after device::wait_for_copies().
  CUDA_OPS_DEVICE static void load(const TileRows<T>& rows, int64_t d0, TileQuad* to) {
    const Sent<T> sent{rows.x, rows.x.base + rows.x.offset(rows.b, rows.h, 0, 0), reinterpret_cast<T*>(to)};
    send_rows<TILE, STRIDE * 8, THREADS, 4>(TILE, [&](int i) { return rows.positions[i]; }, int(d0), int(rows.D), sent);
  }
  // `left` numbers of the rows are left; of the columns the first `count` are wanted.
  CUDA_OPS_DEVICE static void add_products(const TileQuad* rows, const TileQuad* columns, int64_t left, Numbers& sum, int64_t count = WIDTH) {
    const auto* row_numbers = reinterpret_cast<const T*>(rows + first_row() * STRIDE);
    const auto* column_numbers = reinterpret_cast<const T*>(columns);
    const int steps = int(smaller(int64_t(TILE), left) + 15) / 16;
    CUDA_OPS_UNROLL(1)
    for (int k = 0; k < steps; ++k) {
      uint32_t a[4];
      load_a(a, row_numbers + k * 16, STRIDE * 8);
      CUDA_OPS_UNROLL(WIDTH / 16)
      for (int n = 0; n < WIDTH / 8; n += 2) {
        if (n * 8 >= count) continue;
        uint32_t b[2][2];
        load_b_of_rows(b, column_numbers + n * STRIDE * 64 + k * 16, STRIDE * 8);
        for (int side = 0; side < 2; ++side) device::multiply(sum.at[n + side], a, b[side], T());
      }
    }
  }

  // Adds the products of rows and columns of which one or both are float32, whatever their length, as sums of those of their parts: with two PARTS right to about
  // 2^-16, with three almost as float32 is, but that a tensor core cuts off its sums. Of the columns the first `count` are wanted.
  template <int PARTS, class Rows, class Columns>
  CUDA_OPS_DEVICE static void multiply_parts(const Rows& rows, const Columns& columns, int64_t D, int64_t count, TileQuad* memory, Numbers& sum) {
    constexpr int LENGTH = 32, PART = TILE * (LENGTH / 8 + 1), ROW_PARTS = PARTS_OF<Rows, PARTS>, COLUMN_PARTS = PARTS_OF<Columns, PARTS>;
    static_assert((ROW_PARTS + COLUMN_PARTS) * PART <= QUADS);
    Eight *row_parts = reinterpret_cast<Eight*>(memory), *column_parts = row_parts + ROW_PARTS * PART;
    const auto* row_numbers = reinterpret_cast<const bfloat16*>(row_parts + first_row() * (LENGTH / 8 + 1));
    const auto* column_numbers = reinterpret_cast<const bfloat16*>(column_parts);
    CUDA_OPS_UNROLL(1)
    for (int64_t d0 = 0; d0 < D; d0 += LENGTH) {
      load_parts<ROW_PARTS, LENGTH>(rows, d0, TILE, row_parts);
      load_parts<COLUMN_PARTS, LENGTH>(columns, d0, padded(count), column_parts);
      device::barrier();
      const int steps = int(smaller(int64_t(LENGTH), D - d0) + 15) / 16;
      CUDA_OPS_UNROLL(1)
      for (int k = 0; k < steps; ++k) {
        uint32_t a[ROW_PARTS][4];
        CUDA_OPS_UNROLL(ROW_PARTS)
        for (int part = 0; part < ROW_PARTS; ++part) load_a(a[part], row_numbers + part * PART * 8 + k * 16, LENGTH + 8);
        CUDA_OPS_UNROLL(WIDTH / 16)
        for (int n = 0; n < WIDTH / 8; n += 2) {
          if (n * 8 >= count) continue;
          CUDA_OPS_UNROLL(COLUMN_PARTS)
          for (int part = COLUMN_PARTS - 1; part >= 0; --part) {  // small products first
            uint32_t b[2][2];
            load_b_of_rows(b, column_numbers + part * PART * 8 + n * 8 * (LENGTH + 8) + k * 16, LENGTH + 8);
            CUDA_OPS_UNROLL(ROW_PARTS)
            for (int other = ROW_PARTS - 1; other >= 0; --other)
              for (int side = 0; side < 2; ++side)
                if (part + other < PARTS) device::multiply(sum.at[n + side], a[other], b[side], bfloat16());
          }
        }
      }
      device::barrier();
    }
  }

  // take(row r, column c of D, sum): for each number of this thread the sum over the first `count` columns of weight * number d0 + c of the column.
  template <class Columns, class Take>
  CUDA_OPS_DEVICE static void weigh(const Weights& weights, const Columns& columns, int64_t d0, int64_t count, TileQuad* memory, const Take& take) {
    constexpr int PARTS = PARTS_OF<Columns, VALUE_PARTS>;
    load_parts<PARTS, TILE>(columns, d0, padded(count), reinterpret_cast<Eight*>(memory));
    device::barrier();
    const auto* numbers = reinterpret_cast<const bfloat16*>(memory);
    CUDA_OPS_UNROLL(TILE / 16)
    for (int n = 0; n < TILE / 8; n += 2) {
      float product[2][4] = {};
      CUDA_OPS_UNROLL(WIDTH / 16)
      for (int k = 0; k < WIDTH / 16; ++k) {
        if (k * 16 >= count) continue;
        CUDA_OPS_UNROLL(PARTS)
        for (int other = 0; other < PARTS; ++other) {
          uint32_t b[2][2];
          load_b(b, numbers + (other * PIECE_QUADS + k * 16 * STRIDE + n) * 8, STRIDE * 8);
          CUDA_OPS_UNROLL(VALUE_PARTS)
          for (int part = 0; part < VALUE_PARTS - other; ++part)
            for (int side = 0; side < 2; ++side) device::multiply(product[side], weights.at[k][part], b[side], bfloat16());
        }
      }
      for (int side = 0; side < 2; ++side)
        for (int i = 0; i < 4; ++i) take(i / 2, 2 * (n + side) + i % 2, product[side][i]);
    }
    device::barrier();
  }

  // sum[r][d] += values[r][c] * number d0 + d of column c, over the columns; the product of this tile first.
  CUDA_OPS_DEVICE static void add(const Numbers& values, const TileRows<T>& columns, int64_t d0, TileQuad* memory, Numbers& sum) {
    weigh(Weights(values), columns, d0, WIDTH, memory, [&](int r, int c, float product) { sum(r, c) += product; });
  }

  CUDA_OPS_DEVICE static void store(Numbers& numbers, TileQuad* to) {
    CUDA_OPS_UNROLL(ROWS)
    for (int r = 0; r < ROWS; ++r)
      CUDA_OPS_UNROLL(COLUMNS)
      for (int c = 0; c < COLUMNS; ++c) to->at[row(r) * TILE_STRIDE + column(c)] = numbers(r, c);
  }

 private:
  CUDA_OPS_DEVICE static int first_row() { return device::thread() / WARP * 16; }
  // Columns are multiplied 16 at a time.
  CUDA_OPS_DEVICE static int padded(int64_t count) { return int(smaller(int64_t(WIDTH), (count + 15) / 16 * 16)); }

  // LENGTH numbers from d0 on of the first `count` rows, a tile for each part of them.
  template <int PARTS, int LENGTH, class Rows>
  CUDA_OPS_DEVICE static void load_parts(const Rows& rows, int64_t d0, int count, Eight* to) {
    constexpr int CHUNKS = LENGTH / 8, PART = TILE * (CHUNKS + 1);
    for (int e = device::thread(); e < count * CHUNKS; e += THREADS) {
      const int i = e / CHUNKS, chunk = e % CHUNKS;
      store_eight<PARTS>(rows, i, d0 + chunk * 8, to + i * (CHUNKS + 1) + chunk, PART);
    }
  }
  template <int PARTS>
  CUDA_OPS_DEVICE static void store_eight(const TileRows<T>& rows, int i, int64_t d, Eight* to, int next) {
    static_assert(PARTS == DATA_PARTS<T>);
    store_parts(eight_of<T>(rows.start(i), rows.x.element, d, rows.D), to, next, T());
  }
  template <int PARTS, class Rows>
  CUDA_OPS_DEVICE static void store_eight(const Rows& rows, int i, int64_t d, Eight* to, int next) {
    float numbers[8];
    rows.read_eight(i, d, numbers);
    CUDA_OPS_UNROLL(PARTS)
    for (int part = 0; part < PARTS; ++part) {
      Eight all;
      for (int k = 0; k < 4; ++k) all.pairs[k] = round_off(numbers[2 * k], numbers[2 * k + 1]);
      to[part * next] = all;
    }
  }
};

// along_x = rows of x . columns of x, and the same of y.
template <class Tile, class T, class Numbers, class... Count>
CUDA_OPS_DEVICE void multiply_tiles(const TileRows<T>& x, const TileRows<T>& x_columns, const TileRows<T>& y, const TileRows<T>& y_columns, TileQuad* memory,
                                    Numbers& along_x, Numbers& along_y, Count... count) {
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
    Tile::add_products(x_piece, x_columns_piece, x.D - d0, along_x, count...);
    Tile::add_products(y_piece, y_columns_piece, x.D - d0, along_y, count...);
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
