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

// The same of parts that are rounded to the nearest: two of them are a number to about 2^-17.
CUDA_OPS_DEVICE uint32_t round_off(float& low, float& high) {
  const uint32_t part = device::pair_of_bfloat16(low, high);
  low -= first_of(part, bfloat16());
  high -= second_of(part, bfloat16());
  return part;
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

// Pieces of so many columns are multiplied at once, in groups of which a lane has eight.
constexpr int PIECE = 64, GROUP = 32;
// Vectors are multiplied 16 at a time: they are the A of the products, rows are B, so that a lane has what it needs of either side by side.
constexpr int SET = 16, SET_EIGHTS = FLOAT_PARTS * SET * PIECE / 8;

// Numbers d … d + 7 of a vector, none for zeros, 0 behind its end.
CUDA_OPS_DEVICE void read_eight(const float* vector, int64_t d, int64_t D, float (&numbers)[8]) {
  if (vector && d + 8 <= D && uintptr_t(vector + d) % 16 == 0) {
    for (int half = 0; half < 2; ++half) {
      const Quad four = reinterpret_cast<const Quad*>(vector + d)[half];
      for (int i = 0; i < 4; ++i) numbers[half * 4 + i] = four.at[i];
    }
  } else {
    for (int i = 0; i < 8; ++i) numbers[i] = vector && d + i < D ? vector[d + i] : 0;
  }
}

// The pieces from column d0 on of `sets` sets of vectors, vector(v), one behind the other, by a block. A set has its groups of columns one behind the other, a group
// its parts, a part two products, a product what lane 0, 1, … of a warp has of A: pairs of columns of vectors lane / 4 and lane / 4 + 8.
template <int THREADS, int COLUMNS = PIECE, class Vector>
CUDA_OPS_DEVICE void split_vectors(int sets, const Vector& vector, int64_t d0, int64_t D, Eight* to) {
  constexpr int CHUNKS = COLUMNS / 8;
  CUDA_OPS_UNROLL(1)
  for (int e = device::thread(); e < sets * (SET / 2 * CHUNKS); e += THREADS) {
    const int chunk = e % CHUNKS, v = e / CHUNKS % 8, set = e / CHUNKS / 8;
    float numbers[2][8];
    for (int side = 0; side < 2; ++side) read_eight(vector(set * SET + side * 8 + v), d0 + chunk * 8, D, numbers[side]);
    Eight* at = to + set * SET_EIGHTS + chunk / 4 * (FLOAT_PARTS * 2 * WARP) + v * 4 + chunk % 4;
    CUDA_OPS_UNROLL(FLOAT_PARTS)
    for (int part = 0; part < FLOAT_PARTS; ++part)
      CUDA_OPS_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        Eight all;
        for (int k = 0; k < 4; ++k) all.pairs[k] = cut(numbers[k % 2][half * 4 + k / 2 * 2], numbers[k % 2][half * 4 + k / 2 * 2 + 1]);
        at[(part * 2 + half) * WARP] = all;
      }
  }
}

// The sums of 8 TILES rows with a set of vectors: number i of a lane is that of row 8 * tile + column_of_d(i) and vector row_of_d(i). Those of the largest parts and
// those of the others are added up apart.
template <int TILES>
struct SplitSums {
  float largest[TILES][4], others[TILES][4];

  CUDA_OPS_DEVICE void clear() {
    CUDA_OPS_UNROLL(TILES)
    for (int tile = 0; tile < TILES; ++tile)
      for (int i = 0; i < 4; ++i) largest[tile][i] = others[tile][i] = 0;
  }
  CUDA_OPS_DEVICE float of(int tile, int i) const { return largest[tile][i] + others[tile][i]; }
  // of(…) > 0: a sum has the sign that it has before it is rounded
  CUDA_OPS_DEVICE bool positive(int tile, int i) const { return largest[tile][i] > -others[tile][i]; }
};

// A piece of the 8 TILES rows of a warp, in registers: a lane has eight columns of each group of row lane / 4 of every tile. The first two pairs of the four lanes
// of a row are the 16 columns of one product, the other two those of the next one.
template <class T, int TILES, int COLUMNS = PIECE>
class SplitRows {
  static constexpr int PARTS = DATA_PARTS<T>, GROUPS = COLUMNS / GROUP;

 public:
  // row(r) tells where a row is, nullptr for zeros.
  template <class Row>
  CUDA_OPS_DEVICE void load(const Row& row, int64_t element, int64_t d0, int64_t D) {
    const T* starts[TILES];
    bool eights = element == 1 && D % 8 == 0;
    CUDA_OPS_UNROLL(TILES)
    for (int tile = 0; tile < TILES; ++tile) {
      starts[tile] = row(tile * 8 + row_of_d(0));
      eights = eights && uintptr_t(starts[tile]) % 16 == 0;
    }
    const int64_t d = d0 + device::thread() % 4 * 8;
    Eight numbers[TILES][GROUPS] = {};
    if (eights) {
      CUDA_OPS_UNROLL(TILES)
      for (int tile = 0; tile < TILES; ++tile)
        CUDA_OPS_UNROLL(GROUPS)
        for (int group = 0; group < GROUPS; ++group)
          if (starts[tile] && d + group * GROUP < D) numbers[tile][group] = *reinterpret_cast<const Eight*>(starts[tile] + d + group * GROUP);
    } else {
      CUDA_OPS_UNROLL(1)
      for (int i = 7; i >= 0; --i)
        CUDA_OPS_UNROLL(TILES)
        for (int tile = 0; tile < TILES; ++tile)
          CUDA_OPS_UNROLL(GROUPS)
          for (int group = 0; group < GROUPS; ++group) {
            const int64_t column = d + group * GROUP + i;
            put_before(numbers[tile][group], starts[tile] && column < D ? starts[tile][column * element] : T{});
          }
    }
    CUDA_OPS_UNROLL(TILES)
    for (int tile = 0; tile < TILES; ++tile)
      CUDA_OPS_UNROLL(GROUPS)
      for (int group = 0; group < GROUPS; ++group) store_parts(numbers[tile][group], rows_[tile][group], 1, T());
  }

  // Adds the products with a set of vectors, whose piece has so many columns; more than that are zeros. A sum depends on its row and its vector alone.
  CUDA_OPS_DEVICE void multiply(const Eight* set, int64_t columns, SplitSums<TILES>& sums) const {
    set += device::thread() % WARP;
    CUDA_OPS_UNROLL(GROUPS)
    for (int group = 0; group < GROUPS; ++group)
      CUDA_OPS_UNROLL(FLOAT_PARTS)
      for (int part = FLOAT_PARTS - 1; part >= 0 && group * GROUP < columns; --part)
        CUDA_OPS_UNROLL(2)
        for (int half = 0; half < 2; ++half) {
          const Eight a = set[((group * FLOAT_PARTS + part) * 2 + half) * WARP];
          CUDA_OPS_UNROLL(PARTS)
          for (int other = PARTS - 1; other >= 0; --other) {
            if (part + other >= FLOAT_PARTS) continue;  // less than half a unit in the last place of its product
            CUDA_OPS_UNROLL(TILES)
            for (int tile = 0; tile < TILES; ++tile) {
              const uint32_t b[2] = {rows_[tile][group][other].pairs[2 * half], rows_[tile][group][other].pairs[2 * half + 1]};
              device::multiply(part + other ? sums.others[tile] : sums.largest[tile], a.pairs, b, bfloat16());
            }
          }
        }
  }

 private:
  CUDA_OPS_DEVICE static void put_before(Eight& all, T first) {
    CUDA_OPS_UNROLL(3)
    for (int k = 3; k > 0; --k) all.pairs[k] = all.pairs[k] << 16 | all.pairs[k - 1] >> 16;
    all.pairs[0] = all.pairs[0] << 16 | first.bits;
  }

  Eight rows_[TILES][GROUPS][PARTS];
};

// The sums of rows and SETS sets of vectors of any length, piece after piece, by a block. Behind the last use of the memory is a barrier.
template <class T, int THREADS, int SETS, int TILES, class Row, class Vector>
CUDA_OPS_DEVICE void multiply_pieces(bool any, const Row& row, int64_t element, const Vector& vector, int64_t D, Eight* memory, SplitSums<TILES> (&sums)[SETS]) {
  CUDA_OPS_UNROLL(SETS)
  for (int set = 0; set < SETS; ++set) sums[set].clear();
  constexpr int COLUMNS = PIECE / DATA_PARTS<T>;  // as many registers for one part as for two
  CUDA_OPS_UNROLL(1)
  for (int64_t d0 = 0; d0 < D; d0 += COLUMNS) {
    SplitRows<T, TILES, COLUMNS> rows;
    if (any) rows.load(row, element, d0, D);
    split_vectors<THREADS, COLUMNS>(SETS, vector, d0, D, memory);
    device::barrier();
    if (any) {
      CUDA_OPS_UNROLL(SETS)
      for (int set = 0; set < SETS; ++set) rows.multiply(memory + set * SET_EIGHTS, D - d0, sums[set]);
    }
    device::barrier();
  }
}

// The same for a warp's 16 of the ROWS rows of a block, of which the first `rows` are wanted.
template <class T, int ROWS, int VECTORS>
struct SplitProduct {
  static constexpr int SETS = VECTORS / SET, QUADS = SETS * SET_EIGHTS;
  using Sums = SplitSums<2>[SETS];

  template <class Row, class Vector>
  CUDA_OPS_DEVICE static void multiply(int rows, const Row& row, int64_t element, const Vector& vector, int64_t D, Quad* memory, Sums& sums) {
    const int first = device::thread() / WARP * 16;
    const auto own = [=](int r) { return first + r < rows ? row(first + r) : nullptr; };
    multiply_pieces<T, ROWS / 16 * WARP>(first < rows, own, element, vector, D, reinterpret_cast<Eight*>(memory), sums);
  }
};

// How many tiles of rows a warp keeps, in as many registers for one part as for two.
template <class T>
constexpr int OWN_TILES = 4 / DATA_PARTS<T>;
// A lane's rows of those. In the end it hands on one of them, or leaves that to the other lane that has the same one.
template <class T>
constexpr int LANE_ROWS = 2 * OWN_TILES<T>;
template <class T>
CUDA_OPS_DEVICE bool hands_row_on() { return LANE_ROWS<T> == 8 || device::thread() / 4 % 2 == 0; }
template <class T>
CUDA_OPS_DEVICE int handed_row() {
  const int lane = device::thread() % WARP, own = lane * LANE_ROWS<T> / WARP;
  return own / 2 * 8 + column_of_d(own % 2);
}

// Lanes with the same rows each have something of every one of them. exchange(i, j, upper, lanes): place i gets what this lane and the one `lanes` away have of row
// i, of row j where this lane is the upper one. Afterwards what all of them had of handed_row() is at place 0.
template <class T, class Exchange>
CUDA_OPS_DEVICE void gather_rows(const Exchange& exchange) {
  CUDA_OPS_UNROLL(3)
  for (int lanes = WARP / 2; lanes >= 4; lanes /= 2) {
    const int half = LANE_ROWS<T> * lanes / WARP;
    const bool upper = device::thread() & lanes;
    if (half == 0) exchange(0, 0, upper, lanes);
    CUDA_OPS_UNROLL(4)
    for (int r = 0; r < half; ++r) exchange(r, r + half, upper, lanes);
  }
}

// A block splits its vectors once for several tiles of rows; this leaves about as many blocks as a large card runs at once.
inline int64_t tiles_of_block(int64_t tiles) {
  constexpr int64_t BLOCKS = 512;
  return (tiles + BLOCKS - 1) / BLOCKS;
}

}  // namespace
