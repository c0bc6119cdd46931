// Any processor: 16-byte vectors of the compiler, no fused multiply-add.
#include "table.h"

namespace cuda_ops::cpu {
const Kernels* portable_kernels(Dtype accumulation) { return kernels_of("portable", accumulation); }
}  // namespace cuda_ops::cpu
