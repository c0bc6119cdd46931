// Stands for the device when kernels are compiled for the host. Every thread of a block is a fiber; the scheduler changes fibers at barriers and warp
// collectives, in the order that the test asks for. Blocks run one after another, each with its shared memory filled with 0xFF.
//
// What it reports, and ends the process with: a thread that leaves before a barrier or a collective that others wait at, threads of a block at different
// barriers, more shared memory than 48 KB, more threads than 1024. What it cannot see: races between blocks, bank conflicts, speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#define CUDA_OPS_KERNEL static void
#define CUDA_OPS_DEVICE inline
#define CUDA_OPS_SHARED(Type, name, count) Type* name = static_cast<Type*>(host_cuda::shared(__FILE__, __LINE__, sizeof(Type) * (count)))
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) ((void)(stream), host_cuda::launch(blocks, threads, [=] { kernel(__VA_ARGS__); }))
// The bare words are errors: a kernel that uses them would compile here to something else than there.
#define __shared__ use CUDA_OPS_SHARED
#define __syncthreads use device::barrier

using Stream = void*;

struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace host_cuda {

// Where a fiber, or the scheduler, goes on. ucontext asks the system twice at every change; 15 instructions of our own are 20 times faster.
#ifdef __x86_64__
using Context = void*;  // the stack pointer; what must survive a call lies on the stack
extern "C" void host_cuda_change(Context* from, Context to);
asm(".pushsection .text\n.weak host_cuda_change\n.type host_cuda_change,@function\nhost_cuda_change:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\n"
    "movq %rsi,%rsp\npopq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.popsection\n");
inline void change(Context& from, Context& to) { host_cuda_change(&from, to); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  const uintptr_t top = (uintptr_t(stack) + bytes - 64) & ~uintptr_t(15);  // where `ret` finds the entry: aligned as a call leaves it
  *reinterpret_cast<uintptr_t*>(top) = uintptr_t(entry);
  std::memset(reinterpret_cast<void*>(top - 48), 0, 48);
  context = reinterpret_cast<void*>(top - 48);
}
#else
using Context = ucontext_t;
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

enum class Order { forward, backward, shuffled, warps_backward, warp_ahead };
enum class State { ready, at_barrier, at_collective, done };


constexpr size_t STACK = 256 << 10, SHARED_LIMIT = 48 << 10;
constexpr int LANES = 32;

[[noreturn]] inline void fail(const char* what, const char* file = "", int line = 0) {
  std::fprintf(stderr, "host_cuda: %s %s:%d\n", what, file, line);
  std::abort();
}

struct Fiber {
  Context context;
  std::vector<char> stack;
  State state = State::ready;
  int barrier_line = 0;
  int collective_line = 0;
  bool vote = false;
  uint32_t votes = 0;
};

struct Site {
  const char* file;
  int line;
  size_t offset, bytes;
};

inline std::vector<Fiber> fibers;
inline Context scheduler;
inline int current = 0, count = 0;
inline dim3 block, blocks_total;
inline Order order = Order::forward;
inline std::mt19937 random_numbers{1};
inline std::vector<int> turns;
inline std::vector<Site> sites;
inline std::vector<char> pool;
inline size_t used = 0;
inline const std::function<void()>* body = nullptr;

// The array of a CUDA_OPS_SHARED: one for each place in the source and block, with a guard of 64 bytes behind it.
inline void* shared(const char* file, int line, size_t bytes) {
  for (const Site& site : sites)
    if (site.line == line && !std::strcmp(site.file, file)) return pool.data() + site.offset;
  const Site site{file, line, used, bytes};
  used += (bytes + 63) / 64 * 64 + 64;
  if (used > SHARED_LIMIT) fail("more than 48 KB of shared memory", file, line);
  sites.push_back(site);
  return pool.data() + site.offset;
}

inline void check_guards() {
  for (const Site& site : sites)
    for (size_t i = site.offset + site.bytes; i < site.offset + (site.bytes + 63) / 64 * 64 + 64; ++i)
      if (pool[i] != char(0xff)) fail("a thread wrote behind a shared array", site.file, site.line);
}

inline void wait(State state) {
  Fiber& self = fibers[size_t(current)];
  self.state = state;
  change(self.context, scheduler);
}

inline void barrier(int line) {
  fibers[size_t(current)].barrier_line = line;
  wait(State::at_barrier);
}

inline uint32_t ballot(bool vote, int line) {
  Fiber& self = fibers[size_t(current)];
  self.vote = vote;
  self.collective_line = line;
  wait(State::at_collective);
  return fibers[size_t(current)].votes;
}

inline void run_fiber() {
  (*body)();
  fibers[size_t(current)].state = State::done;
  change(fibers[size_t(current)].context, scheduler);
}

// Gives the lanes of a warp what their collective computes, when all of them are there.
inline bool finish_collective(int first) {
  const int last = first + LANES < count ? first + LANES : count;
  int waiting = 0, gone = 0;
  for (int t = first; t < last; ++t) {
    waiting += fibers[size_t(t)].state == State::at_collective;
    gone += fibers[size_t(t)].state == State::done;
  }
  if (waiting && gone) fail("a thread left before a collective of its warp");
  if (waiting < last - first || !waiting) return false;
  uint32_t votes = 0;
  for (int t = first; t < last; ++t) {
    if (fibers[size_t(t)].collective_line != fibers[size_t(first)].collective_line) fail("threads of a warp are at different collectives", "", fibers[size_t(t)].collective_line);
    votes |= uint32_t(fibers[size_t(t)].vote) << (t - first);
  }
  for (int t = first; t < last; ++t) {
    fibers[size_t(t)].votes = votes;
    fibers[size_t(t)].state = State::ready;
  }
  return true;
}

inline bool finish_barrier() {
  int waiting = 0, gone = 0, line = 0;
  for (int t = 0; t < count; ++t) {
    const Fiber& fiber = fibers[size_t(t)];
    if (fiber.state == State::done) ++gone;
    if (fiber.state != State::at_barrier) continue;
    if (waiting++ && fiber.barrier_line != line) fail("threads of a block are at different barriers", "", fiber.barrier_line);
    line = fiber.barrier_line;
  }
  if (waiting && waiting + gone == count && gone) fail("a thread left before a barrier", "", line);
  if (!waiting || waiting < count) return false;
  for (int t = 0; t < count; ++t) fibers[size_t(t)].state = State::ready;
  return true;
}

// The order in which ready threads go on, chosen for each block; `shuffled` changes it at every turn. `warp_ahead` runs one warp as far as it can before any
// other thread moves.
inline void choose_turns() {
  turns.resize(size_t(count));
  for (int t = 0; t < count; ++t) turns[size_t(t)] = t;
  const int warps = (count + LANES - 1) / LANES, ahead = int(random_numbers() % unsigned(warps));
  if (order == Order::backward) std::reverse(turns.begin(), turns.end());
  if (order == Order::warps_backward) std::stable_sort(turns.begin(), turns.end(), [](int a, int b) { return a / LANES > b / LANES; });
  if (order == Order::warp_ahead) std::stable_sort(turns.begin(), turns.end(), [ahead](int a, int b) { return (a / LANES == ahead) > (b / LANES == ahead); });
}

inline bool step(int t) {
  if (fibers[size_t(t)].state != State::ready) return false;
  current = t;
  change(scheduler, fibers[size_t(t)].context);
  return true;
}

inline void run_block() {
  sites.clear();
  used = 0;
  pool.assign(SHARED_LIMIT, char(0xff));
  for (int t = 0; t < count; ++t) {
    Fiber& fiber = fibers[size_t(t)];
    if (fiber.stack.empty()) fiber.stack.resize(STACK);
    fiber.state = State::ready;
    prepare(fiber.context, fiber.stack.data(), fiber.stack.size(), run_fiber);
  }
  choose_turns();
  for (bool moved = true; moved;) {
    moved = false;
    if (order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), random_numbers);
    for (int t : turns) {
      moved |= step(t);
      const int first = t / LANES * LANES;
      // a warp that is ahead goes on alone past its collectives
      while (order == Order::warp_ahead && finish_collective(first))
        for (int lane = first; lane < first + LANES && lane < count; ++lane) moved |= step(lane);
    }
    for (int first = 0; first < count; first += LANES) moved |= finish_collective(first);
    moved |= finish_barrier();
  }
  for (int t = 0; t < count; ++t)
    if (fibers[size_t(t)].state != State::done) fail("threads wait for each other for ever");
  check_guards();
}

inline void launch(dim3 blocks, int threads, const std::function<void()>& kernel) {
  if (threads > 1024 || threads < 1) fail("a block has 1 to 1024 threads");
  if (fibers.size() < size_t(threads)) fibers.resize(size_t(threads));
  count = threads;
  body = &kernel;
  blocks_total = blocks;
  for (uint32_t y = 0; y < blocks.y; ++y)
    for (uint32_t x = 0; x < blocks.x; ++x) {
      block = dim3(x, y);
      run_block();
    }
  body = nullptr;
}

}  // namespace host_cuda

namespace device {
inline int thread() { return host_cuda::current; }
inline int threads() { return host_cuda::count; }
inline int64_t block_x() { return host_cuda::block.x; }
inline int64_t block_y() { return host_cuda::block.y; }
inline void barrier(int line = __builtin_LINE()) { host_cuda::barrier(line); }
inline uint32_t ballot(bool here, int line = __builtin_LINE()) { return host_cuda::ballot(here, line); }
inline int ones(uint32_t word) { return __builtin_popcount(word); }
inline float fma(float x, float y, float z) { return std::fma(x, y, z); }
}  // namespace device
