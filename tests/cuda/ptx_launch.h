// In the place of host_cuda.h: launches that run nvcc's own code of a kernel, translated by ptx_translation.py, where the program was linked with it; else the kernel
// as it was compiled for the host.
#pragma once
#include <type_traits>

#include "host_cuda.h"

#define CUDA_OPS_PTX_TABLE "ptx_table.h"

#undef CUDA_OPS_LAUNCH
#undef CUDA_OPS_LAUNCH_TOGETHER
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) ((void)(stream), ptx::launch(kernel, __FILE__, blocks, threads, false, __VA_ARGS__))
#define CUDA_OPS_LAUNCH_TOGETHER(kernel, blocks, threads, stream, ...) ((void)(stream), ptx::launch(kernel, __FILE__, blocks, threads, true, __VA_ARGS__))

namespace ptx {

// Takes the places of a kernel's parameters.
using Code = void (*)(const char* const* parameters);

// Of one translated kernel; ptx_table.h, which the program's main file includes, has what stands behind these.
struct Translation {
  Translation(const char* name, Code code);
};
// None where only the host's is there.
Code code_of(const void* kernel, const char* file);

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const char* file, int64_t blocks, int threads, bool together, std::type_identity_t<Parameters>... parameters) {
  const char* const places[] = {reinterpret_cast<const char*>(&parameters)...};
  if (const Code code = code_of(reinterpret_cast<const void*>(kernel), file)) host_cuda::launch(blocks, threads, [&] { code(places); }, together);
  else host_cuda::launch(blocks, threads, [&] { kernel(parameters...); }, together);
}

}  // namespace ptx
