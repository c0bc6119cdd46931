#pragma once
#include "vectors.h"

namespace cuda_ops {

// The ascending valid positions of each batch row, (B, N), and how many they are, (B).
void list_valid_tokens(const Mask& mask, int64_t B, int64_t N, int32_t* positions, int32_t* counts, Stream stream);

}  // namespace cuda_ops
