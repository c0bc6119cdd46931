#pragma once
#include "vectors.h"

namespace cuda_ops::launch {

// Exact attention of every valid query over every valid key; log_mass (B, H, N). Padded tokens are not written.
void full_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, float scale, const Vectors& out, float* log_mass,
                    Stream stream);

// 0 and -inf where a token is not valid.
void clear_padding(const Tokens& tokens, const Shape& shape, const Vectors& out, float* log_mass, Stream stream);

}  // namespace cuda_ops::launch
