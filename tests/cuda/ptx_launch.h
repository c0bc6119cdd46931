// In the place of host_cuda.h: launches that run nvcc's own code of a kernel, translated by ptx_translation.py, where the program was linked with it; else the kernel
// as it was compiled for the host.
#pragma once
#include <fstream>
#include <map>
#include <string>

#include "host_cuda.h"

#undef CUDA_OPS_LAUNCH
#undef CUDA_OPS_LAUNCH_TOGETHER
#define CUDA_OPS_LAUNCH(kernel, blocks, threads, stream, ...) ((void)(stream), ptx::launch(kernel, __FILE__, blocks, threads, false, __VA_ARGS__))
#define CUDA_OPS_LAUNCH_TOGETHER(kernel, blocks, threads, stream, ...) ((void)(stream), ptx::launch(kernel, __FILE__, blocks, threads, true, __VA_ARGS__))

namespace ptx {

// Takes the places of a kernel's parameters.
using Code = void (*)(const char* const* parameters);

// By the file of kernels without its ending, a colon and the kernel's name with its template arguments.
inline std::map<std::string, Code>& translated() {
  static std::map<std::string, Code> codes;
  return codes;
}
struct Translation {
  Translation(const char* name, Code code) {
    if (!translated().emplace(name, code).second) host_cuda::fail("two kernels have one name", name);
  }
};

// Names of the kernels compiled for the host, by their addresses: static functions, so they are read from a list of the program's symbols that PTX_KERNELS names.
inline std::string name_of(const void* kernel) {
  static const auto names = [] {
    std::map<const void*, std::string> found;
    const char* path = std::getenv("PTX_KERNELS");
    std::ifstream list(path ? path : "");
    for (std::string address, name; list >> address >> std::ws && std::getline(list, name);)
      found[reinterpret_cast<const void*>(std::stoull(address, nullptr, 16))] = name;
    return found;
  }();
  const auto at = names.find(kernel);
  if (at == names.end()) host_cuda::fail("a kernel that PTX_KERNELS does not list");
  return at->second;
}

// None where only the host's is there.
inline Code code_of(const void* kernel, const std::string& file) {
  if (translated().empty()) return nullptr;
  const size_t start = file.rfind('/') + 1;
  const auto at = translated().find(file.substr(start, file.rfind('.') - start) + ":" + name_of(kernel));
  return at == translated().end() ? nullptr : at->second;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const char* file, int64_t blocks, int threads, bool together, std::type_identity_t<Parameters>... parameters) {
  const char* const places[] = {reinterpret_cast<const char*>(&parameters)...};
  if (const Code code = code_of(reinterpret_cast<const void*>(kernel), file)) host_cuda::launch(blocks, threads, [&] { code(places); }, together);
  else host_cuda::launch(blocks, threads, [&] { kernel(parameters...); }, together);
}

}  // namespace ptx
