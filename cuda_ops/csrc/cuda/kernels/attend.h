// Attention of the queries of one block over keys that come in tiles: products, one running softmax, weighted values, summed in float32.
//
// All methods share it: they differ in the keys (all valid ones, listed ones, virtual ones with a bias, neighbours with two terms) and in what they make of the
// result. Keys are taken in their order, so the bits of a row depend on its keys alone, not on the rows beside it.
//
// An Attention is used as
//   Attention attention(memory);  attention.start(queries);  attention.add(queries, keys) …;  attention.close();  attention.each_total(…);  attention.each_row(…);
// by all threads of the block, with a barrier of its own wherever it shares memory.
#pragma once
#include "attend_matrix.h"
#include "attend_vector.h"

namespace {

// 16-bit numbers go to the tensor cores.
template <class T>
constexpr bool ON_TENSOR_CORES = !std::is_same_v<T, float>;
template <class T, int SIZE>
using AttentionOf = std::conditional_t<ON_TENSOR_CORES<T>, MatrixAttention<T, SIZE>, VectorAttention<(SIZE + COLUMNS - 1) / COLUMNS>>;

// Calls run with a number that D is at most, as a type.
template <class Run>
inline void with_size(int64_t D, const Run& run) {
  if (D <= 64) run(std::integral_constant<int, 64>());
  else if (D <= 128) run(std::integral_constant<int, 128>());
  else run(std::integral_constant<int, 256>());
}

}  // namespace
