// Products of small matrices by the tensor cores: D (16 x 8) += A (16 x 16) B (16 x 8), each spread over the lanes of a warp as the PTX ISA lays the fragments of
// mma.m16n8k16 out. 16-bit numbers, sums in float32. Every lane of the warp calls each of these functions, which are the only ones besides device.h with
// instructions of their own.
#pragma once
#include "device.h"

#ifndef CUDA_OPS_HOST_CUDA
namespace device {
// c += a b. The type is the numbers', two of them to a register, the lower column or k in the lower half. Products are exact; the order in which they are added
// to c, and how sums are rounded, is the tensor core's.
CUDA_OPS_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CUDA_OPS_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four matrices of 8 x 8 16-bit numbers from shared memory: lane l tells where row l % 8 of matrix l / 8 is, 16 bytes at a multiple of 16, and gets of each matrix
// the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4; of column l / 4 when transposed.
CUDA_OPS_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
CUDA_OPS_DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
}  // namespace device
#endif

namespace {

// Tiles in shared memory (CUDA_OPS_SHARED, 16-bit), `stride` numbers from row to row: a multiple of 8, as is where the tile begins. With stride / 8 odd no two rows of a
// load meet in a bank. Every number of a tile must be written: NaN times 0 is NaN.

// A, whose rows lie one below the other: Q in Q K^T.
template <class T>
CUDA_OPS_DEVICE void load_a(uint32_t (&a)[4], const T* tile, int stride) {
  const int lane = device::thread() % WARP;
  device::load_matrices(a, tile + lane % 16 * stride + lane / 16 * 8);
}

// Two B side by side, 16 (k) x 16 (n), whose columns are rows of memory: 16 rows of K in Q K^T, 16 numbers of each. b[0] is that of the first 8 rows.
template <class T>
CUDA_OPS_DEVICE void load_b_of_rows(uint32_t (&b)[2][2], const T* tile, int stride) {
  const int lane = device::thread() % WARP;
  uint32_t all[4];
  device::load_matrices(all, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  for (int k = 0; k < 4; ++k) b[k / 2][k % 2] = all[k];
}

// Two B side by side, 16 (k) x 16 (n), as they lie in memory: 16 rows of V in P V, 16 numbers of each. b[0] is that of the first 8 numbers of a row.
template <class T>
CUDA_OPS_DEVICE void load_b(uint32_t (&b)[2][2], const T* tile, int stride) {
  const int lane = device::thread() % WARP;
  uint32_t all[4];
  device::load_transposed(all, tile + lane % 16 * stride + lane / 16 * 8);
  for (int k = 0; k < 4; ++k) b[k / 2][k % 2] = all[k];
}

// Where number i of this lane's part of D is in the 16 x 8 tile. Two D of one row of tiles, narrowed in pairs, are an A: {first 01, first 23, second 01, second 23}.
CUDA_OPS_DEVICE int row_of_d(int i) { return device::thread() % WARP / 4 + i / 2 * 8; }
CUDA_OPS_DEVICE int column_of_d(int i) { return device::thread() % 4 * 2 + i % 2; }

}  // namespace
