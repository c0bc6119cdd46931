// Chooses the instruction set once, at the first call: the best that the processor has, or the one that CUDA_OPS_INSTRUCTION_SET names.
#pragma once
#include "kernels/interface.h"

namespace cuda_ops::cpu {

const Kernels& kernels(Dtype accumulation);

}  // namespace cuda_ops::cpu
