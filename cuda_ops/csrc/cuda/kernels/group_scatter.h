#pragma once
#include "vectors.h"

namespace cuda_ops::launch {

// Copies to each token (B, H, N, row bytes) the row of its cluster (B, H, C, row bytes), an even number of bytes; zero bytes where it has none.
void group_scatter(const void* values, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t C, int64_t row_bytes, void* out, Stream stream);

}  // namespace cuda_ops::launch
