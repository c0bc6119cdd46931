// Working memory of one worker: blocks that are reused from head to head and freed with the worker.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "interface.h"

namespace {

using namespace cuda_ops::cpu;

// Unlike memset and memcpy these take the null pointer of an empty tensor.
inline void clear(void* p, size_t bytes) {
  if (bytes) memset(p, 0, bytes);
}
inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes) memcpy(to, from, bytes);
}

constexpr size_t SCRATCH_ALIGNMENT = 64;

template <class T>
inline T* take(Scratch& scratch, int64_t count) {
  const size_t bytes = (size_t(count) * sizeof(T) + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
  while (scratch.current && scratch.current->capacity - scratch.current->used < bytes && scratch.current->next) scratch.current = scratch.current->next;
  if (!scratch.current || scratch.current->capacity - scratch.current->used < bytes) {
    const size_t grown = scratch.current ? 2 * scratch.current->capacity : size_t(1) << 18;
    ScratchBlock* block = new_block(grown < bytes ? bytes : grown);
    (scratch.current ? scratch.current->next : scratch.first) = block;
    scratch.current = block;
  }
  ScratchBlock* block = scratch.current;
  T* result = reinterpret_cast<T*>(reinterpret_cast<char*>(block) + SCRATCH_ALIGNMENT + block->used);
  block->used += bytes;
  return result;
}

// Gives back what was taken since, for loops that need the same working memory again and again.
struct ScratchMark {
  ScratchBlock* block;
  size_t used;
};
inline ScratchMark mark(const Scratch& scratch) { return {scratch.current, scratch.current ? scratch.current->used : 0}; }
inline void release(Scratch& scratch, ScratchMark at) {
  ScratchBlock* block = at.block ? at.block->next : scratch.first;
  for (; block; block = block->next) block->used = 0;
  scratch.current = at.block ? at.block : scratch.first;
  if (at.block) at.block->used = at.used;
}

// task(i, scratch) for i = 0 … count - 1, each on its own: on all workers where they are free, else one after the other. No result depends on which.
template <class Task>
inline void each(int64_t count, Scratch& scratch, const Task& task) {
  if (scratch.shared && count > 1) return share(count, [](const void* what, int64_t i, Scratch& own) { (*static_cast<const Task*>(what))(i, own); }, &task);
  const ScratchMark before = mark(scratch);
  for (int64_t i = 0; i < count; ++i, release(scratch, before)) task(i, scratch);
}

}  // namespace
