#include "workers.h"

#include <stdlib.h>
#include <torch/csrc/stable/ops.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <new>

#include "kernels/scratch.h"

namespace cuda_ops::cpu {
namespace {

constexpr size_t HUGE_PAGE = size_t(1) << 21, KEPT = size_t(1) << 26;

void free_blocks(Scratch& scratch) {
  while (scratch.first) {
    ScratchBlock* next = scratch.first->next;
    free(scratch.first);
    scratch.first = next;
  }
  scratch.current = nullptr;
}

size_t capacity_of(const Scratch& scratch) {
  size_t capacity = 0;
  for (const ScratchBlock* block = scratch.first; block; block = block->next) capacity += block->capacity;
  return capacity;
}

// All blocks as one: what a head needed once, the next one needs too.
void join_blocks(Scratch& scratch) {
  if (scratch.first && scratch.first->next) {
    const size_t capacity = capacity_of(scratch);
    free_blocks(scratch);
    scratch.first = new_block(capacity);
  }
  scratch.current = scratch.first;
  if (scratch.first) scratch.first->used = 0;
}

// The working memory of a thread, kept from call to call: the system hands out every page anew and clears it, which takes longer than short texts do.
struct Own {
  Scratch scratch{nullptr, nullptr, false};
  int depth = 0;
  ~Own() { free_blocks(scratch); }
};
thread_local Own own;

// While a thread works: its scratch starts empty, or where the work that it interrupts has come to.
class Working {
 public:
  explicit Working(bool shared) : before_(own.scratch.shared) {
    if (own.depth++ == 0) join_blocks(own.scratch);
    at_ = mark(own.scratch);
    own.scratch.shared = shared;
  }
  ~Working() {
    own.scratch.shared = before_;
    release(own.scratch, at_);
    if (--own.depth == 0 && capacity_of(own.scratch) > KEPT) free_blocks(own.scratch);
  }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;

 private:
  bool before_;
  ScratchMark at_;
};

}  // namespace

void ask_for_large_pages(void* memory, size_t bytes) {
#ifdef __linux__
  const size_t begin = (size_t(memory) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, end = (size_t(memory) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: where it is refused, nothing is lost but time
#else
  (void)memory, (void)bytes;
#endif
}

ScratchBlock* new_block(size_t capacity) {
  const bool large = capacity >= HUGE_PAGE;
  const size_t alignment = large ? HUGE_PAGE : SCRATCH_ALIGNMENT, bytes = (SCRATCH_ALIGNMENT + capacity + alignment - 1) / alignment * alignment;
  void* memory = aligned_alloc(alignment, bytes);
  if (!memory) throw std::bad_alloc();
  if (large) ask_for_large_pages(memory, bytes);
  return new (memory) ScratchBlock{nullptr, bytes - SCRATCH_ALIGNMENT, 0};
}

void share(int64_t count, void (*task)(const void*, int64_t, Scratch&), const void* what) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    const Working working(false);
    for (int64_t i; (i = next++) < count;) {
      const ScratchMark before = mark(own.scratch);
      task(what, i, own.scratch);
      release(own.scratch, before);
    }
  });
}

// Each thread takes every so many heads, not a run of them: those of a long text among short ones are many threads' work, and lines of heads that are neighbours,
// which lie side by side, are read at about the same time.
void for_each_head(int64_t B, int64_t H, const std::function<void(int64_t, int64_t, Scratch&)>& task) {
  const int64_t threads = torch::stable::get_num_threads();
  const bool shared = B * H < threads;
  const int64_t workers = shared ? 1 : threads;
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t i = worker; i < B * H; i += workers) {
        const Working working(shared);
        task(i / H, i % H, own.scratch);
      }
  };
  if (shared)
    work(0, 1);
  else
    torch::stable::parallel_for(0, workers, 1, work);
}

}  // namespace cuda_ops::cpu
