// One vector type per accumulation type, from the widest registers that this translation unit may use: vector_avx512.h, vector_avx2.h, vector_neon.h or
// vector_portable.h has what the instruction set does by itself.
//
// All arithmetic beyond + - * / is there; a fused multiply-add is explicit (the build passes -ffp-contract=off), so bits do not depend on the optimiser. Each of
// them defines, for A = float and double:
//
//   set(x)                               x in every lane
//   fma(a, b, c)                         a b + c, rounded once where the set can
//   larger(a, b), lesser(a, b)           a > b ? a : b and a < b ? a : b, so b where one of them is NaN
//   times_power(x, m, rounded)           x 2^m / POWER_LOWERED<A>, rounded once, for whole m from the least subnormal's exponent up to 103 or 969; `rounded` has m in its last
//                                        bits, below the bits of a number that has none there
//   load_part(p, count, fill)            the first `count` lanes; the others are `fill` and their memory is not touched
//   store_part(p, v, count)              only the first `count` lanes
//   gather(base, index)                  base[index[i]] in each lane
//   lookup(table, count, index)          the same of a table of `count` entries with room for whole vectors behind them
//   load_words(p, v)                     one word of 32 bits to a lane
//   lanes_at_least(a, b)                 one bit a lane: a >= b, signed integers
//   store_marked(to, v, lanes)           stores the marked lanes one after the other and returns how many; writes a whole vector
//   stream(p, v), finish_streams()       stores past the caches, to an aligned place: what is written once and not read soon need not be read from memory first.
//                                        Behind finish_streams other threads see it
//   ones_of(x)                           how many bits are set in each word of 64
//   LOOKS_UP_BYTES, look_up(table, x)    table[x[i]] in each byte, of a table of 16; only where it takes one instruction
//   from_float16(x), to_float16(x)       one number; widen_vectors, narrow_vectors: as many as whole vectors convert, which is returned
//   PRODUCT_ROWS, SUM_ROWS, SUM_VECTORS  rows at a time of product and weighted_sum, and vectors of a row of the latter, by the number of registers
//   AHEAD_LINES, AHEAD_STEPS             so many lines are fetched ahead (Ahead), and so many steps of such a product's inner loop later the next: in time for all of
//                                        them with few rows, and not before one lot has arrived
#pragma once
#include <stdint.h>
#include <string.h>

#define CUDA_OPS_INLINE inline __attribute__((always_inline))

namespace {

#if defined(CUDA_OPS_AVX512)
constexpr int VECTOR_BYTES = 64;
#elif defined(CUDA_OPS_AVX2)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int lanes = VECTOR_BYTES / 4;
  typedef float type __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct Vec<double> {
  static constexpr int lanes = VECTOR_BYTES / 8;
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t integers __attribute__((vector_size(VECTOR_BYTES)));
};

template <class A>
using vec = typename Vec<A>::type;
template <class A>
using integers = typename Vec<A>::integers;
template <class A>
using integer = decltype(integers<A>{}[0] + 0);  // as wide as A

template <class V, class A>
CUDA_OPS_INLINE V load_as(const A* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A>
CUDA_OPS_INLINE vec<A> load(const A* p) {
  return load_as<vec<A>>(p);
}
template <class A>
CUDA_OPS_INLINE void store(A* p, vec<A> v) {
  memcpy(p, &v, sizeof v);
}

// Words of 64 bits.
typedef int64_t Words __attribute__((vector_size(VECTOR_BYTES)));
constexpr int WORD_LANES = VECTOR_BYTES / 8;
typedef int8_t Bytes __attribute__((vector_size(VECTOR_BYTES)));

inline float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Square transpose of `lanes` vectors.
template <class A>
CUDA_OPS_INLINE void transpose(vec<A>* rows);

}  // namespace

#if defined(CUDA_OPS_AVX512)
#include "vector_avx512.h"
#elif defined(CUDA_OPS_AVX2)
#include "vector_avx2.h"
#elif defined(CUDA_OPS_NEON)
#include "vector_neon.h"
#else
#include "vector_portable.h"
#endif

namespace {

// i in lane i, and 2^i.
template <class A>
CUDA_OPS_INLINE integers<A> lane_numbers() {
  integers<A> numbers;
  for (int i = 0; i < Vec<A>::lanes; ++i) numbers[i] = i;
  return numbers;
}
template <class A>
CUDA_OPS_INLINE integers<A> lane_bits() {
  integers<A> bits;
  for (int i = 0; i < Vec<A>::lanes; ++i) bits[i] = integer<A>(1) << i;
  return bits;
}

// By log2(lanes) perfect shuffles.
template <class A, int... lane>
CUDA_OPS_INLINE void transpose_lanes(vec<A>* rows) {
  constexpr int count = sizeof...(lane);
  vec<A> other[count];
  for (int width = 1; width < count; width *= 2) {
    for (int i = 0; i < count / 2; ++i) {
      other[2 * i] = __builtin_shufflevector(rows[i], rows[i + count / 2], (lane / 2 + (lane % 2) * count)...);
      other[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + count / 2], (lane / 2 + count / 2 + (lane % 2) * count)...);
    }
    for (int i = 0; i < count; ++i) rows[i] = other[i];
  }
}
template <class A>
CUDA_OPS_INLINE void transpose(vec<A>* rows) {
  constexpr int count = Vec<A>::lanes;
  if constexpr (count == 2) transpose_lanes<A, 0, 1>(rows);
  if constexpr (count == 4) transpose_lanes<A, 0, 1, 2, 3>(rows);
  if constexpr (count == 8) transpose_lanes<A, 0, 1, 2, 3, 4, 5, 6, 7>(rows);
}

}  // namespace
