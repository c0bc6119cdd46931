#define CUDA_OPS_AVX512
#include "table.h"

namespace cuda_ops::cpu {
const Kernels* avx512_kernels(Dtype accumulation) { return kernels_of("avx512", accumulation); }
}  // namespace cuda_ops::cpu
