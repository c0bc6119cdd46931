#include "runtime.h"

#include "device.h"

namespace cuda_ops {

#ifdef CUDA_OPS_HOST_CUDA
void use_device(int) {}

const char* last_error() { return nullptr; }
#else
void use_device(int device) { (void)cudaSetDevice(device); }  // an error is left to last_error

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

}  // namespace cuda_ops
