// What kernels may use of CUDA, and all that they may use. The tests compile the same kernels for the host: there CUDA_OPS_HOST_CUDA names a header that
// stands for the device, with one fiber for each thread. Rules that make this work: no bare __shared__ or <<< >>>, no return before the last barrier, every
// thread of a warp calls a collective, blocks are one-dimensional with whole warps, products and sums are fused by device::fma and nowhere else.
#pragma once
#include <cstdint>

#ifdef CUDA_OPS_HOST_CUDA
#include CUDA_OPS_HOST_CUDA
#elif defined(__CUDACC__)
#include <cuda_runtime.h>

#include <atomic>

#define CUDA_OPS_KERNEL static __global__ void
// CUDA_OPS_KERNEL CUDA_OPS_BLOCK(threads) name(…): the registers do for a block of so many threads.
#define CUDA_OPS_BLOCK(threads) __launch_bounds__(threads, 1)
// The same for some such blocks that share a multiprocessor.
#define CUDA_OPS_BLOCKS(threads, blocks) __launch_bounds__(threads, blocks)
#define CUDA_OPS_DEVICE __device__ __forceinline__
// An array that the threads of a block share. Aligned for whole 16-byte accesses.
#define CUDA_OPS_SHARED(Type, name, count) __shared__ __align__(16) Type name[count]
// CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, arguments …); blocks is a number below 2^31.
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<uint32_t(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// The same for blocks that meet: all of them run at once, at most CUDA_OPS_BLOCKS_AT_ONCE(kernel, threads).
#define CUDA_OPS_LAUNCH_TOGETHER(kernel, blocks, threads, stream, ...) device::launch_together(kernel, blocks, threads, stream, __VA_ARGS__)
#define CUDA_OPS_BLOCKS_AT_ONCE(kernel, threads) device::blocks_at_once<kernel>(threads)
#define CUDA_OPS_PRAGMA(text) _Pragma(#text)
#define CUDA_OPS_UNROLL(times) CUDA_OPS_PRAGMA(unroll times)

using Stream = void*;

namespace device {
CUDA_OPS_DEVICE int thread() { return int(threadIdx.x); }
CUDA_OPS_DEVICE int threads() { return int(blockDim.x); }
CUDA_OPS_DEVICE int64_t block() { return blockIdx.x; }
CUDA_OPS_DEVICE int64_t blocks() { return gridDim.x; }
CUDA_OPS_DEVICE void barrier() { __syncthreads(); }
// A barrier of `blocks` blocks that were launched together, at a counter in global memory that was 0 before the launch: what any of them wrote before is seen by
// all of them after it.
CUDA_OPS_DEVICE void meet(int32_t* arrivals, int32_t blocks) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const int32_t all = (atomicAdd(arrivals, 1) / blocks + 1) * blocks;
    while (*static_cast<volatile int32_t*>(arrivals) < all) {}
    __threadfence();
  }
  __syncthreads();
}
// Collectives of a warp.
CUDA_OPS_DEVICE void warp_barrier() { __syncwarp(); }
CUDA_OPS_DEVICE uint32_t ballot(bool here) { return __ballot_sync(0xffffffffu, here); }
// The lanes that give the same number.
CUDA_OPS_DEVICE uint32_t match(int32_t value) { return __match_any_sync(0xffffffffu, value); }
CUDA_OPS_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
CUDA_OPS_DEVICE int32_t shuffle(int32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
CUDA_OPS_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
CUDA_OPS_DEVICE int32_t shuffle_xor(int32_t value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
// Adds and returns what was there, in global or shared memory. Integers only: a sum of floats would depend on the order of the threads.
CUDA_OPS_DEVICE int32_t add(int32_t* where, int32_t what) { return atomicAdd(where, what); }
// What this thread wrote before is seen by whoever sees what it writes afterwards.
CUDA_OPS_DEVICE void fence() { __threadfence(); }
CUDA_OPS_DEVICE int ones(uint32_t word) { return __popc(word); }
CUDA_OPS_DEVICE int ones(uint64_t word) { return __popcll(word); }
CUDA_OPS_DEVICE float fma(float x, float y, float z) { return fmaf(x, y, z); }
CUDA_OPS_DEVICE float exponential(float x) { return expf(x); }
// To about 2^-22, in one instruction; results below 2^-126 are 0.
CUDA_OPS_DEVICE float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
// The larger one; the other where one is no number.
CUDA_OPS_DEVICE float larger_number(float x, float y) { return fmaxf(x, y); }
CUDA_OPS_DEVICE float logarithm(float x) { return logf(x); }
// The compiler forgets what it knows of x. What was computed from x before is computed again where it is needed, instead of being kept in registers.
template <class Word>
CUDA_OPS_DEVICE void forget(Word& x) {
  static_assert(sizeof(Word) == 4);
  asm volatile("" : "+r"(x));
}
CUDA_OPS_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
CUDA_OPS_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
// Conversions to the nearest number, of two equally near ones to the even one; NaN becomes 0x7fff.
CUDA_OPS_DEVICE uint32_t pair_of_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
CUDA_OPS_DEVICE uint32_t pair_of_float16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
CUDA_OPS_DEVICE float float_of_float16(uint16_t bits) {
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
}

// Sixteen bytes from global to shared memory, on their way until wait_for_copies(); both at multiples of 16. Zeros where they are not `here`: nothing is read then.
CUDA_OPS_DEVICE void copy_sixteen(void* shared, const void* global, bool here = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global), "r"(here ? 16 : 0) : "memory");
}
// Of this thread; a barrier makes them seen by the others.
CUDA_OPS_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// On the host: errors are left to cudaGetLastError, as those of any launch.
template <class... Parameters, class... Arguments>
inline void launch_together(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream, Arguments... arguments) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = uint32_t(blocks);
  config.blockDim = uint32_t(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &together;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// How many blocks of a kernel the current device runs at once, asked for once per device.
template <auto kernel>
inline int64_t blocks_at_once(int threads) {
  static std::atomic<int64_t> known[64];
  int device = 0, of_one = 0, multiprocessors = 0;
  (void)cudaGetDevice(&device);
  if (device < 64 && known[device]) return known[device];
  (void)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_one, kernel, threads, 0);
  (void)cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (device < 64) known[device] = int64_t(of_one) * multiprocessors;
  return int64_t(of_one) * multiprocessors;
}
}  // namespace device
#else  // the C++ compiler takes structures and launchers from these headers: what is for the device it reads and never calls
#define CUDA_OPS_DEVICE inline

using Stream = void*;

namespace device {
uint32_t bits_of(float x);
float float_of(uint32_t bits);
uint32_t pair_of_bfloat16(float low, float high);
uint32_t pair_of_float16(float low, float high);
float float_of_float16(uint16_t bits);
float power_of_two(float x);
}  // namespace device
#endif

namespace {

constexpr int WARP = 32;

CUDA_OPS_DEVICE float infinity() { return device::float_of(0x7f800000u); }
// The larger one; y where either is no number.
CUDA_OPS_DEVICE float larger(float x, float y) { return x > y ? x : y; }
CUDA_OPS_DEVICE float lesser(float x, float y) { return x < y ? x : y; }
template <class I>
CUDA_OPS_DEVICE I smaller(I x, I y) { return x < y ? x : y; }

// 16-bit numbers as they lie in memory.
struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

CUDA_OPS_DEVICE float widen(float x) { return x; }
CUDA_OPS_DEVICE float widen(bfloat16 x) { return device::float_of(uint32_t(x.bits) << 16); }
CUDA_OPS_DEVICE float widen(float16 x) { return device::float_of_float16(x.bits); }

// To the nearest number, of two equally near ones to the even one; NaN stays NaN.
CUDA_OPS_DEVICE void narrow(float x, float& to) { to = x; }
CUDA_OPS_DEVICE void narrow(float x, bfloat16& to) { to.bits = uint16_t(device::pair_of_bfloat16(x, 0)); }
CUDA_OPS_DEVICE void narrow(float x, float16& to) { to.bits = uint16_t(device::pair_of_float16(x, 0)); }
// Two at once, the first one in the lower half.
CUDA_OPS_DEVICE uint32_t pair(float low, float high, bfloat16) { return device::pair_of_bfloat16(low, high); }
CUDA_OPS_DEVICE uint32_t pair(float low, float high, float16) { return device::pair_of_float16(low, high); }
// And back.
template <class T>
CUDA_OPS_DEVICE float first_of(uint32_t two, T) {
  return widen(T{uint16_t(two)});
}
template <class T>
CUDA_OPS_DEVICE float second_of(uint32_t two, T) {
  return widen(T{uint16_t(two >> 16)});
}

// e^x to about 2^-22, in two instructions; results below 2^-126 are 0.
CUDA_OPS_DEVICE float quick_exponential(float x) { return device::power_of_two(x * 1.44269504088896340736f); }

}  // namespace
