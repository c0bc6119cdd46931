#define CUDA_OPS_AVX2
#include "table.h"

namespace cuda_ops::cpu {
const Kernels* avx2_kernels(Dtype accumulation) { return kernels_of("avx2", accumulation); }
}  // namespace cuda_ops::cpu
