// What test_matrix_on_host.py calls of kernels/matrix.h.
#include "../../cuda_ops/csrc/cuda/kernels/matrix.h"
#include "../../cuda_ops/csrc/cuda/kernels/vectors.h"

namespace {

// Every lane's registers as they are: a (32, 4), b (32, 2), c (32, 4).
template <class T>
CUDA_OPS_KERNEL multiply_registers(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = device::thread();
  uint32_t of_a[4], of_b[2];
  float of_c[4];
  for (int i = 0; i < 4; ++i) of_a[i] = a[lane * 4 + i], of_c[i] = c[lane * 4 + i];
  for (int i = 0; i < 2; ++i) of_b[i] = b[lane * 2 + i];
  device::multiply(of_c, of_a, of_b, T());
  for (int i = 0; i < 4; ++i) c[lane * 4 + i] = of_c[i];
}

// Each warp of the block: scores = Q K^T and out = (the narrowed scores) V, all of 16 x 16, one after the other in memory.
template <class T>
CUDA_OPS_KERNEL multiply_tiles(const T* q, const T* k, const T* v, float* scores, float* out) {
  constexpr int STRIDE = 24, TILE = 16 * STRIDE, WARPS = 2;
  CUDA_OPS_SHARED(T, q_tile, WARPS * TILE);
  CUDA_OPS_SHARED(T, k_tile, WARPS * TILE);
  CUDA_OPS_SHARED(T, v_tile, WARPS * TILE);
  const int warp = device::thread() / WARP, lane = device::thread() % WARP, from = warp * 256, at = warp * TILE;
  for (int i = lane; i < 256; i += WARP) {
    q_tile[at + i / 16 * STRIDE + i % 16] = q[from + i];
    k_tile[at + i / 16 * STRIDE + i % 16] = k[from + i];
    v_tile[at + i / 16 * STRIDE + i % 16] = v[from + i];
  }
  device::warp_barrier();
  uint32_t a[4], b[2][2];
  float s[2][4] = {}, o[2][4] = {};
  load_a(a, q_tile + at, STRIDE);
  load_b_of_rows(b, k_tile + at, STRIDE);
  for (int side = 0; side < 2; ++side) device::multiply(s[side], a, b[side], T());
  for (int i = 0; i < 4; ++i) a[i] = pair(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1], T());
  load_b(b, v_tile + at, STRIDE);
  for (int side = 0; side < 2; ++side) {
    device::multiply(o[side], a, b[side], T());
    for (int i = 0; i < 4; ++i) {
      const int where = from + row_of_d(i) * 16 + side * 8 + column_of_d(i);
      scores[where] = s[side][i];
      out[where] = o[side][i];
    }
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default"))) void

EXPORTED run_registers(int type, const uint32_t* a, const uint32_t* b, float* c) {
  if (type == 1) CUDA_OPS_LAUNCH(multiply_registers<bfloat16>, 1, WARP, nullptr, a, b, c);
  if (type == 2) CUDA_OPS_LAUNCH(multiply_registers<float16>, 1, WARP, nullptr, a, b, c);
}

template <class T>
static void run(const void* q, const void* k, const void* v, float* scores, float* out) {
  CUDA_OPS_LAUNCH(multiply_tiles<T>, 1, 2 * WARP, nullptr, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), scores, out);
}
EXPORTED run_tiles(int type, const void* q, const void* k, const void* v, float* scores, float* out) {
  (type == 1 ? run<bfloat16> : run<float16>)(q, k, v, scores, out);
}

#ifdef CUDA_OPS_HOST_CUDA
EXPORTED set_order(int order, int seed) {
  host_cuda::order = host_cuda::Order(order);
  host_cuda::random_numbers.seed(unsigned(seed));
}
#endif
