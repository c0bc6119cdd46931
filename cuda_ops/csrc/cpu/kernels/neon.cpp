#define CUDA_OPS_NEON
#include "table.h"

namespace cuda_ops::cpu {
const Kernels* neon_kernels(Dtype accumulation) { return kernels_of("neon", accumulation); }
}  // namespace cuda_ops::cpu
