#pragma once
#include "vectors.h"

namespace cuda_ops::launch {

// K-means in Hamming space, of 1 to 256 bits. `assignment` is (B, H, N) by token position, -1 where a token is not valid; `centroids` (B, H, C, words), 0 for an
// empty row. `memory` is what it needs beside, cluster_codes_memory() integers, all zero.
void cluster_codes(const uint64_t* codes, const Tokens& tokens, int64_t B, int64_t H, int64_t bits, int64_t C, int64_t iterations, int32_t* memory, int32_t* assignment,
                   uint64_t* centroids, Stream stream);
int64_t cluster_codes_memory(int64_t B, int64_t H, int64_t bits, int64_t C);

}  // namespace cuda_ops::launch
