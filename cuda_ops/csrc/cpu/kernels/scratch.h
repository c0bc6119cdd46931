// Working memory of one worker: blocks that are reused from head to head and freed with the worker.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "interface.h"

namespace {

using namespace cuda_ops;

// Unlike memset and memcpy these take the null pointer of an empty tensor.
inline void clear(void* p, size_t bytes) {
  if (bytes) memset(p, 0, bytes);
}
inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes) memcpy(to, from, bytes);
}

template <class T>
inline T* take(Scratch& scratch, int64_t count) {
  constexpr size_t alignment = 64, header = 64;
  const size_t bytes = (size_t(count) * sizeof(T) + alignment - 1) / alignment * alignment;
  while (scratch.current && scratch.current->capacity - scratch.current->used < bytes && scratch.current->next) scratch.current = scratch.current->next;
  if (!scratch.current || scratch.current->capacity - scratch.current->used < bytes) {
    size_t capacity = scratch.current ? 2 * scratch.current->capacity : size_t(1) << 18;
    if (capacity < bytes) capacity = bytes;
    void* memory = aligned_alloc(alignment, header + capacity / alignment * alignment + alignment);
    if (!memory) out_of_memory(capacity);
    ScratchBlock* block = static_cast<ScratchBlock*>(memory);
    *block = {nullptr, capacity, 0};
    (scratch.current ? scratch.current->next : scratch.first) = block;
    scratch.current = block;
  }
  ScratchBlock* block = scratch.current;
  T* result = reinterpret_cast<T*>(reinterpret_cast<char*>(block) + header + block->used);
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

}  // namespace
