// Stands for the device when kernels are compiled for the host. Every thread of a block is a fiber; the scheduler changes fibers at barriers and warp
// collectives, in the order that the test asks for. Blocks run one after another, each with its shared memory filled with 0xFF; those that
// are launched together take turns.
//
// What it reports, and ends the process with: a thread that leaves before a barrier or a collective that others wait at, or before its copies have come, threads of a
// block at different barriers, more shared memory than 48 KB, more threads than 1024 or half a warp. What it cannot see: races between blocks, bank conflicts, speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include <sys/mman.h>

#include "host_sanitizers.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

#define CUDA_OPS_KERNEL static void
#define CUDA_OPS_DEVICE inline
#define CUDA_OPS_SHARED(Type, name, count) Type* name = static_cast<Type*>(host_cuda::shared(#name, __FILE__, __LINE__, sizeof(Type) * (count)))
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) ((void)(stream), host_cuda::launch(blocks, threads, [=] { kernel(__VA_ARGS__); }))
#define CUDA_OPS_LAUNCH_TOGETHER(kernel, blocks, threads, stream, ...) ((void)(stream), host_cuda::launch(blocks, threads, [=] { kernel(__VA_ARGS__); }, true))
#define CUDA_OPS_BLOCKS_AT_ONCE(kernel, threads) host_cuda::blocks_at_once
#define CUDA_OPS_UNROLL(times)
#define CUDA_OPS_BLOCK(threads)
#define CUDA_OPS_BLOCKS(threads, blocks)
// The bare words are errors: a kernel that uses them would compile here to something else than there.
#define __shared__ use CUDA_OPS_SHARED
#define __syncthreads use device::barrier

using Stream = void*;

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
enum class State { ready, at_barrier, at_collective, at_meeting, done };

constexpr size_t STACK = 256 << 10, GUARD = 64 << 10, SHARED_LIMIT = 48 << 10;
constexpr int LANES = 32;

[[noreturn]] inline void fail(const char* what, const char* file = "", int line = 0) {
  std::fprintf(stderr, "host_cuda: %s %s:%d\n", what, file, line);
  std::abort();
}

struct Thread {
  Context context;
  sanitizers::Place place;
};

// What a test plants: a barrier, or a wait for copies, that does nothing: HOST_CUDA_LEFT_OUT=scan.h:22.
inline const char* const left_out = std::getenv("HOST_CUDA_LEFT_OUT");
inline const int left_out_line = left_out ? std::atoi(std::strrchr(left_out, ':') + 1) : 0;
inline bool is_left_out(const char* file, int line) {
  if (line != left_out_line) return false;
  const char* const folder_end = std::strrchr(file, '/');
  const std::string_view name = folder_end ? folder_end + 1 : file;
  return name == std::string_view(left_out, size_t(std::strrchr(left_out, ':') - left_out));
}

// From global to shared memory, on its way.
struct Copy {
  void* to;
  const void* from;  // none: zeros
};

struct Fiber : Thread {
  char* stack = nullptr;
  State state = State::ready;
  int barriers = 0, warp_barriers = 0;  // how many it has passed in this block
  int barrier_line = 0;
  int collective_line = 0;
  const int32_t* arrivals = nullptr;  // of blocks, where it waits until there are `all`
  int32_t all = 0;
  uint32_t given = 0;      // to a collective
  uint32_t from_all[32];   // what the lanes gave
  uint32_t words[10];      // what a collective of matrices takes and gives
  void (*work)(Fiber* lanes) = nullptr;  // what the last lane to arrive does there for all of them
  std::vector<Copy> copies;              // that it has not waited for
};

struct Site {
  const char *name, *file;
  int line;
  size_t offset, bytes;
};

// Where the threads of a block, and those of a warp, wait for each other; two of each in turn, or one that is ahead would seem to have waited for what others do later.
struct Meetings {
  char block[2], warps[32][2], end;
};

struct Block {
  int64_t number = 0;
  std::vector<Fiber> fibers;
  std::vector<int> turns;
  Meetings meetings;
  std::vector<Site> sites;
  size_t used = 0;  // of its shared memory
  alignas(64) char pool[SHARED_LIMIT];
};

// Used again by later launches, and never destroyed; blocks that follow each other have one each in turn.
inline std::vector<Block*>& blocks = *new std::vector<Block*>;
// The block whose threads go on, and what is often asked of it.
inline Block* now = nullptr;
inline Fiber* fibers = nullptr;
inline Meetings* meetings = nullptr;
inline char* pool = nullptr;
inline char launched;
inline Thread scheduler;
inline int current = 0, count = 0;
inline int64_t block_count = 0, blocks_at_once = 8;
inline Order order = Order::forward;
// Marsaglia's xorshift: <random> takes longer to compile than most kernels, as <functional> and <memory> do.
struct RandomNumbers {
  using result_type = uint32_t;
  uint32_t state = 1;
  static constexpr uint32_t min() { return 1; }
  static constexpr uint32_t max() { return UINT32_MAX; }
  void seed(uint32_t value) { state = value * 2654435761u | 1u; }
  uint32_t operator()() {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
  }
};
inline RandomNumbers random_numbers;
// What each thread runs: `run` gets `kernel`.
struct Body {
  void (*run)(const void* kernel) = nullptr;
  const void* kernel = nullptr;
};
inline Body body;

// The array of a CUDA_OPS_SHARED: one for each name, place in the source and block, with a guard of 64 bytes behind it.
inline void* shared(const char* name, const char* file, int line, size_t bytes) {
  const sanitizers::Unseen unseen;
  for (const Site& site : now->sites)
    if (site.line == line && !std::strcmp(site.name, name) && !std::strcmp(site.file, file)) return pool + site.offset;
  const Site site{name, file, line, now->used, bytes};
  now->used += (bytes + 63) / 64 * 64 + 64;
  if (now->used > SHARED_LIMIT) fail("more than 48 KB of shared memory", file, line);
  now->sites.push_back(site);
  sanitizers::allow(pool + site.offset, bytes);
  return pool + site.offset;
}

inline void check_guards() {
  if (sanitizers::GUARDS_ARE_POISONED) return;
  for (const Site& site : now->sites)
    for (size_t i = site.offset + site.bytes; i < site.offset + (site.bytes + 63) / 64 * 64 + 64; ++i)
      if (pool[i] != char(0xff)) fail("a thread wrote behind a shared array", site.file, site.line);
}

inline void change(Thread& from, Thread& to, bool for_ever = false) {
  sanitizers::leave(from.place, to.place, for_ever);
  change(from.context, to.context);
  sanitizers::arrive(from.place);
}

inline void wait(State state) {
  Fiber& self = fibers[size_t(current)];
  self.state = state;
  change(self, scheduler);
}

inline void barrier(int line) {
  Fiber& self = fibers[size_t(current)];
  self.barrier_line = line;
  char* const meeting = &meetings->block[self.barriers++ % 2];
  sanitizers::release(meeting);
  wait(State::at_barrier);
  sanitizers::acquire(meeting);
}

// Of blocks at a counter: two objects in turn here as well.
inline void meet(int32_t* arrivals, int32_t count_of_blocks, int line) {
  barrier(line);
  if (current == 0) {
    const int32_t before = __atomic_fetch_add(arrivals, 1, __ATOMIC_RELAXED) / count_of_blocks;
    char* const meeting = reinterpret_cast<char*>(arrivals) + before % 2;
    sanitizers::release(meeting);
    fibers[0].arrivals = arrivals;
    fibers[0].all = (before + 1) * count_of_blocks;
    wait(State::at_meeting);
    sanitizers::acquire(meeting);
  }
  barrier(line);
}

// What every lane of the warp gives, to all of them.
inline const uint32_t* exchange(uint32_t given, int line) {
  Fiber& self = fibers[size_t(current)];
  self.given = given;
  self.collective_line = line;
  wait(State::at_collective);
  return fibers[size_t(current)].from_all;
}

// A collective that computes on the words of all lanes and leaves its results there.
inline uint32_t* compute(void (*work)(Fiber* lanes), const uint32_t* words, size_t count, int line) {
  Fiber& self = fibers[size_t(current)];
  std::memcpy(self.words, words, count * sizeof *words);
  self.work = work;
  exchange(0, line);
  return fibers[size_t(current)].words;
}

// mma.m16n8k16 by the fragments of the PTX ISA: words 0 to 3 are c, 4 to 7 a, 8 and 9 b. Each element is summed in float32 in the order of k, each sum rounded; the
// products are exact. A tensor core adds in another order, and cuts off where this rounds.
template <class T>
inline void multiply_fragments(Fiber* lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < LANES; ++lane) {
    const uint32_t* words = lanes[lane].words;
    const int group = lane / 4, first = lane % 4 * 2;
    std::memcpy(&c[group][first], words, 8);
    std::memcpy(&c[group + 8][first], words + 2, 8);
    for (int half = 0; half < 2; ++half)
      for (int side = 0; side < 2; ++side) {
        const auto number = [&](int word) { return widen(T{uint16_t(words[word] >> 16 * side)}); };
        a[group][first + side + half * 8] = number(4 + 2 * half);
        a[group + 8][first + side + half * 8] = number(5 + 2 * half);
        b[first + side + half * 8][group] = number(8 + half);
      }
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < LANES; ++lane) {
    std::memcpy(lanes[lane].words, &c[lane / 4][lane % 4 * 2], 8);
    std::memcpy(lanes[lane].words + 2, &c[lane / 4 + 8][lane % 4 * 2], 8);
  }
}

// ldmatrix: every lane gives the 16 bytes of a row.
template <bool transposed>
inline void load_fragments(Fiber* lanes) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < LANES; ++lane) std::memcpy(matrices[lane / 8][lane % 8], lanes[lane].words, 16);
  for (int lane = 0; lane < LANES; ++lane)
    for (int k = 0; k < 4; ++k)
      for (int side = 0; side < 2; ++side) {
        const int row = lane / 4, column = lane % 4 * 2 + side;
        const uint16_t number = transposed ? matrices[k][column][row] : matrices[k][row][column];
        lanes[lane].words[k] = side ? lanes[lane].words[k] | uint32_t(number) << 16 : number;
      }
}
template <bool transposed>
inline void load(uint32_t (&to)[4], const void* row, int line) {
  const char* first = static_cast<const char*>(row);
  if (uintptr_t(row) % 16 || first < pool || first + 16 > pool + now->used) fail("a row of a matrix is 16 bytes of shared memory, at a multiple of 16", "", line);
  std::memcpy(to, row, sizeof to);
  std::memcpy(to, compute(load_fragments<transposed>, to, 4, line), sizeof to);
}

// Copies of 16 bytes happen as late as they may, and spoil at once what they will replace: who reads before the wait, or has not read yet, finds 0xFF.
inline void send(void* to, const void* from, bool here, int line) {
  const char* first = static_cast<const char*>(to);
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16 || first < pool || first + 16 > pool + now->used)
    fail("a copy is of 16 bytes to shared memory, at multiples of 16", "", line);
  std::memset(to, 0xff, 16);
  fibers[size_t(current)].copies.push_back({to, here ? from : nullptr});
}
inline void receive() {
  for (const Copy& copy : fibers[size_t(current)].copies)
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
  fibers[size_t(current)].copies.clear();
}

// Of the collectives only this one orders what the lanes write and read in memory.
inline void warp_barrier(int line) {
  Fiber& self = fibers[size_t(current)];
  char* const meeting = &meetings->warps[current / LANES][self.warp_barriers++ % 2];
  sanitizers::release(meeting);
  exchange(0, line);
  sanitizers::acquire(meeting);
}

inline void run_fiber() {
  sanitizers::begin(scheduler.place);
  sanitizers::acquire(&launched);
  sanitizers::acquire(&meetings->end);
  body.run(body.kernel);
  if (!fibers[size_t(current)].copies.empty()) fail("a thread left before its copies had come");
  fibers[size_t(current)].state = State::done;
  sanitizers::release(&meetings->end);
  change(fibers[size_t(current)], scheduler, true);
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
  uint32_t given[LANES] = {};
  for (int t = first; t < last; ++t) {
    if (fibers[size_t(t)].collective_line != fibers[size_t(first)].collective_line) fail("threads of a warp are at different collectives", "", fibers[size_t(t)].collective_line);
    given[t - first] = fibers[size_t(t)].given;
  }
  if (fibers[size_t(first)].work) fibers[size_t(first)].work(&fibers[size_t(first)]);
  for (int t = first; t < last; ++t) {
    std::memcpy(fibers[size_t(t)].from_all, given, sizeof given);
    fibers[size_t(t)].work = nullptr;
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

inline bool finish_meeting() {
  Fiber& first = fibers[0];
  if (first.state != State::at_meeting || *first.arrivals < first.all) return false;
  first.state = State::ready;
  return true;
}

// The order in which ready threads go on, chosen for each block; `shuffled` changes it at every turn. `warp_ahead` runs one warp as far as it can before any
// other thread moves.
inline void choose_turns() {
  std::vector<int>& turns = now->turns;
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
  change(scheduler, fibers[size_t(t)]);
  return true;
}

// With pages below it that nobody may touch.
inline char* new_stack() {
  void* memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE)) fail("no memory for the stack of a thread");
  return static_cast<char*>(memory) + GUARD;
}

inline void enter(Block& one) {
  now = &one;
  fibers = one.fibers.data();
  meetings = &one.meetings;
  pool = one.pool;
}

inline void begin_block(Block& one, int64_t number) {
  one.number = number;
  one.sites.clear();
  one.used = 0;
  if (one.fibers.size() < size_t(count)) one.fibers.resize(size_t(count));
  enter(one);
  sanitizers::allow(pool, SHARED_LIMIT);
  std::memset(pool, 0xff, SHARED_LIMIT);
  sanitizers::forbid(pool, SHARED_LIMIT);
  for (int t = 0; t < count; ++t) {
    Fiber& fiber = fibers[size_t(t)];
    if (!fiber.stack) fiber.stack = new_stack();
    fiber.state = State::ready;
    fiber.barriers = fiber.warp_barriers = 0;
    sanitizers::prepare(fiber.place, fiber.stack, STACK);
    prepare(fiber.context, fiber.stack, STACK, run_fiber);
  }
  choose_turns();
}

// Every thread that is ready goes on once; false if none was.
inline bool advance_block() {
  bool moved = false;
  if (order == Order::shuffled) std::shuffle(now->turns.begin(), now->turns.end(), random_numbers);
  for (int t : now->turns) {
    moved |= step(t);
    const int first = t / LANES * LANES;
    // a warp that is ahead goes on alone past its collectives
    while (order == Order::warp_ahead && finish_collective(first))
      for (int lane = first; lane < first + LANES && lane < count; ++lane) moved |= step(lane);
  }
  for (int first = 0; first < count; first += LANES) moved |= finish_collective(first);
  moved |= finish_barrier();
  moved |= finish_meeting();
  return moved;
}

inline void end_block() {
  for (int t = 0; t < count; ++t)
    if (fibers[size_t(t)].state != State::done) fail("threads wait for each other for ever");
  check_guards();
}

inline void run_one_after_another() {
  for (int64_t number = 0; number < block_count; ++number) {
    begin_block(*blocks[size_t(number) % sanitizers::SETS], number);
    while (advance_block()) {}
    end_block();
  }
}

// In the order of the threads. `shuffled` lets each block go one step at a time, the others as far as it can.
inline void run_together() {
  std::vector<Block*> next;
  for (int64_t number = 0; number < block_count; ++number) {
    next.push_back(blocks[size_t(number)]);
    begin_block(*next.back(), number);
  }
  if (order == Order::backward || order == Order::warps_backward) std::reverse(next.begin(), next.end());
  for (bool moved = true; moved;) {
    moved = false;
    if (order == Order::shuffled) std::shuffle(next.begin(), next.end(), random_numbers);
    for (Block* one : next) {
      enter(*one);
      while (advance_block()) {
        moved = true;
        if (order == Order::shuffled) break;
      }
    }
  }
  for (Block* one : next) {
    enter(*one);
    end_block();
  }
}

inline void launch_body(int64_t count_of_blocks, int threads, Body each, bool together) {
  if (threads > 1024 || threads < 1 || threads % LANES) fail("a block has 1 to 32 whole warps");
  if (count_of_blocks < 1 || count_of_blocks > INT32_MAX) fail("a launch has 1 to 2^31 - 1 blocks");
  if (together && count_of_blocks > blocks_at_once) fail("more blocks are launched together than run at once");
  sanitizers::release(&launched);
  {
    const sanitizers::Unseen unseen;
    while (blocks.size() < size_t(sanitizers::SETS) || (together && int64_t(blocks.size()) < count_of_blocks)) blocks.push_back(new Block);
    count = threads;
    body = each;
    block_count = count_of_blocks;
    if (together)
      run_together();
    else
      run_one_after_another();
    body = {};
  }
  for (Block* one : blocks) sanitizers::acquire(&one->meetings.end);
}

template <class Kernel>
inline void launch(int64_t count_of_blocks, int threads, const Kernel& kernel, bool together = false) {
  launch_body(count_of_blocks, threads, {[](const void* each) { (*static_cast<const Kernel*>(each))(); }, &kernel}, together);
}

}  // namespace host_cuda

namespace device {
inline int thread() { return host_cuda::current; }
inline int threads() { return host_cuda::count; }
inline int64_t block() { return host_cuda::now->number; }
inline int64_t blocks() { return host_cuda::block_count; }
inline void barrier(int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
  if (!host_cuda::is_left_out(file, line)) host_cuda::barrier(line);
}
inline void meet(int32_t* arrivals, int32_t blocks, int line = __builtin_LINE()) { host_cuda::meet(arrivals, blocks, line); }
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline void warp_barrier(int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
  if (!host_cuda::is_left_out(file, line)) host_cuda::warp_barrier(line);
}
inline uint32_t ballot(bool here, int line = __builtin_LINE()) {
  const uint32_t* votes = host_cuda::exchange(here, line);
  uint32_t word = 0;
  for (int lane = 0; lane < host_cuda::LANES; ++lane) word |= votes[lane] << lane;
  return word;
}
inline uint32_t match(int32_t value, int line = __builtin_LINE()) {
  const uint32_t* given = host_cuda::exchange(uint32_t(value), line);
  uint32_t word = 0;
  for (int lane = 0; lane < host_cuda::LANES; ++lane) word |= uint32_t(given[lane] == uint32_t(value)) << lane;
  return word;
}
inline int32_t shuffle(int32_t value, int lane, int line = __builtin_LINE()) { return int32_t(host_cuda::exchange(uint32_t(value), line)[lane % host_cuda::LANES]); }
inline float shuffle(float value, int lane, int line = __builtin_LINE()) { return float_of(host_cuda::exchange(bits_of(value), line)[lane % host_cuda::LANES]); }
inline int32_t shuffle_xor(int32_t value, int lanes, int line = __builtin_LINE()) {
  return int32_t(host_cuda::exchange(uint32_t(value), line)[(host_cuda::current % host_cuda::LANES) ^ lanes]);
}
inline float shuffle_xor(float value, int lanes, int line = __builtin_LINE()) {
  return float_of(host_cuda::exchange(bits_of(value), line)[(host_cuda::current % host_cuda::LANES) ^ lanes]);
}
inline int32_t add(int32_t* where, int32_t what) { return __atomic_fetch_add(where, what, __ATOMIC_RELAXED); }
// Of kernels/matrix.h.
template <class T>
inline void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T, int line = __builtin_LINE()) {
  uint32_t words[10];
  std::memcpy(words, c, 16);
  std::memcpy(words + 4, a, 16);
  std::memcpy(words + 8, b, 8);
  std::memcpy(c, host_cuda::compute(host_cuda::multiply_fragments<T>, words, 10, line), 16);
}
inline void load_matrices(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) { host_cuda::load<false>(to, row, line); }
inline void load_transposed(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) { host_cuda::load<true>(to, row, line); }
inline void fence() {
  static char everybody;
  host_cuda::sanitizers::release(&everybody);
  host_cuda::sanitizers::acquire(&everybody);
}
inline int ones(uint32_t word) { return __builtin_popcount(word); }
inline int ones(uint64_t word) { return __builtin_popcountll(word); }
inline float fma(float x, float y, float z) { return std::fma(x, y, z); }
// As the device converts: to the nearest, ties to even, NaN to 0x7fff.
inline uint32_t narrowed_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t narrowed_to_float16(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (x != x) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // from 65520 on
  // below 2^-14 the sum's last bits are units of 2^-24, rounded by the addition itself
  if (magnitude < 0x38800000) return sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000);
  return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
inline uint32_t pair_of_bfloat16(float low, float high) { return narrowed_to_bfloat16(high) << 16 | narrowed_to_bfloat16(low); }
inline uint32_t pair_of_float16(float low, float high) { return narrowed_to_float16(high) << 16 | narrowed_to_float16(low); }
inline float float_of_float16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float(fraction) * 5.9604644775390625e-8f);
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}
inline float exponential(float x) { return std::exp(x); }
inline float power_of_two(float x) {
  const float power = std::exp2(x);
  return power < 0x1p-126f ? 0 : power;
}
inline float larger_number(float x, float y) { return std::fmax(x, y); }
inline void copy_sixteen(void* shared, const void* global, bool here = true, int line = __builtin_LINE()) { host_cuda::send(shared, global, here, line); }
inline void wait_for_copies(int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
  if (!host_cuda::is_left_out(file, line)) host_cuda::receive();
}
template <class Word>
inline void forget(Word&) {}
inline float logarithm(float x) { return std::log(x); }
}  // namespace device
