// What the torch side needs of the CUDA runtime that the kernels are linked with, which is not torch's own.
#pragma once

namespace cuda_ops {

// Launches go to this device from now on, as those of torch's runtime already do.
void use_device(int device);

// What went wrong with a launch of this thread since the last call; null if nothing did.
const char* last_error();

}  // namespace cuda_ops
