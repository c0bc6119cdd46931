// What kernels may use of CUDA, and all that they may use. The tests compile the same kernels for the host: there CUDA_OPS_HOST_CUDA names a header that
// stands for the device, with one fiber for each thread. Rules that make this work: no bare __shared__ or <<< >>>, no return before the last barrier, and
// every thread of a warp calls a collective.
#pragma once
#include <cstdint>

#ifdef CUDA_OPS_HOST_CUDA
#include CUDA_OPS_HOST_CUDA
#else
#include <cuda_runtime.h>

#define CUDA_OPS_KERNEL static __global__ void
#define CUDA_OPS_DEVICE __device__ __forceinline__
// An array that the threads of a block share.
#define CUDA_OPS_SHARED(Type, name, count) __shared__ Type name[count]
// CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, arguments …); blocks is a dim3.
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

using Stream = void*;

namespace device {
CUDA_OPS_DEVICE int thread() { return int(threadIdx.x); }
CUDA_OPS_DEVICE int threads() { return int(blockDim.x); }
CUDA_OPS_DEVICE int64_t block_x() { return blockIdx.x; }
CUDA_OPS_DEVICE int64_t block_y() { return blockIdx.y; }
CUDA_OPS_DEVICE void barrier() { __syncthreads(); }
CUDA_OPS_DEVICE uint32_t ballot(bool here) { return __ballot_sync(0xffffffffu, here); }
CUDA_OPS_DEVICE int ones(uint32_t word) { return __popc(word); }
CUDA_OPS_DEVICE float fma(float x, float y, float z) { return fmaf(x, y, z); }
}  // namespace device
#endif

namespace {

constexpr int WARP = 32;

// 16-bit numbers as they lie in memory. The conversions are exact, so they need no instruction of their own to agree with.
struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

CUDA_OPS_DEVICE float float_of(uint32_t bits) {
  union { uint32_t bits; float value; } both = {bits};
  return both.value;
}
CUDA_OPS_DEVICE float widen(float x) { return x; }
CUDA_OPS_DEVICE float widen(bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
CUDA_OPS_DEVICE float widen(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  // below the normal range the fraction counts units of 2^-24
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float(fraction) * 5.9604644775390625e-8f);
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace
