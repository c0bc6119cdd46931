#pragma once
#include "vectors.h"

namespace cuda_ops::launch {

// The ascending valid positions of each batch row, (B, N), the index of each token among them, (B, N), -1 where it is padded, and how many there are, (B).
void list_valid_tokens(const Mask& mask, int64_t B, int64_t N, int32_t* positions, int32_t* indices, int32_t* counts, Stream stream);

}  // namespace cuda_ops::launch
