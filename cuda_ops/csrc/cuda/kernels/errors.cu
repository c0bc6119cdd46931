#include "errors.h"

#include "device.h"

namespace cuda_ops {

const char* last_error() {
#ifdef CUDA_OPS_HOST_CUDA
  return nullptr;
#else
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

}  // namespace cuda_ops
