// Who does the work: heads are dealt out to the threads of torch; where there are fewer heads than threads, they help each other inside of a head.
#pragma once
#include <functional>

#include "kernels/interface.h"

namespace cuda_ops::cpu {

// For memory that nobody has written to yet: rows of one head lie on a small page each, and the system hands them out one by one.
void ask_for_large_pages(void* memory, size_t bytes);

// task(b, h, scratch) for every head of every batch row.
void for_each_head(int64_t B, int64_t H, const std::function<void(int64_t, int64_t, Scratch&)>& task);

}  // namespace cuda_ops::cpu
