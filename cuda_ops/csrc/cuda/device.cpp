#include "device.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#ifndef CUDA_OPS_HOST_CUDA
#include <dlfcn.h>
#endif

#include "kernels/runtime.h"

namespace cuda_ops {
namespace {

#ifndef CUDA_OPS_HOST_CUDA
using CurrentStream = AOTITorchError (*)(int32_t, void**);

// Of the torch for CUDA, which is loaded wherever there are tensors on a GPU; linked to, it would keep the library from loading beside a torch without.
CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  STD_TORCH_CHECK(found, "this torch has no aoti_torch_get_current_cuda_stream; cuda_ops needs torch >= 2.11 built for CUDA");
  return reinterpret_cast<CurrentStream>(found);
}
#endif

}  // namespace

Stream stream_of(const torch::stable::Tensor& x) {
  void* stream = nullptr;
#ifndef CUDA_OPS_HOST_CUDA
  static const CurrentStream current_stream = find_current_stream();
  TORCH_ERROR_CODE_CHECK(current_stream(x.get_device_index(), &stream));
#else
  (void)x;
#endif
  return stream;
}

void run_on_device(const char* reference, Boxed run, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const AtenTensorHandle first = torch::stable::detail::to<AtenTensorHandle>(stack[0]);
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(first, &type));
  if (type == aoti_torch_dtype_float64()) {
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(reference, "", stack, TORCH_ABI_VERSION));
    return;
  }
#ifndef CUDA_OPS_HOST_CUDA
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(first, &device));
  const torch::stable::accelerator::DeviceGuard guard(device);
  use_device(device);
#endif
  run(stack, inputs, outputs);
  const char* error = last_error();
  STD_TORCH_CHECK(!error, "a CUDA kernel could not be launched: ", error, ". python -m cuda_ops tells which GPUs it was built for");
}

}  // namespace cuda_ops
