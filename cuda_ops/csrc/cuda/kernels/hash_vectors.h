#pragma once
#include "vectors.h"

namespace cuda_ops::launch {

struct Zeros {
  int32_t* memory = nullptr;
  int64_t count = 0;
};

// Bit p of token i = [x_i . plane_p > 0], 64 to a word, (B, H, N, ceil(P / 64)); 0 where a token is not valid. Planes are (P, D), contiguous.
// A product depends on its row and its plane alone: one chain of fused additions in the order of d, of 16-bit rows the sum of split_product.h.
// Clears `zeros` beside, for what follows; not where there are no tokens.
void hash_vectors(const Vectors& x, const float* planes, const Tokens& tokens, int64_t B, int64_t H, int64_t D, int64_t P, uint64_t* codes, Stream stream,
                  const Zeros& zeros = {});

}  // namespace cuda_ops::launch
