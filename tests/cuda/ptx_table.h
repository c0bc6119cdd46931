// Once in a program of ptx_launch.h: the kernels that nvcc compiled, by their names.
#pragma once
#include <fstream>
#include <map>
#include <string>

#include "ptx_launch.h"

namespace ptx {

// By the file of kernels without its ending, a colon and the kernel's name with its template arguments.
inline std::map<std::string, Code>& translated() {
  static std::map<std::string, Code> codes;
  return codes;
}
Translation::Translation(const char* name, Code code) {
  if (!translated().emplace(name, code).second) host_cuda::fail("two kernels have one name", name);
}

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

Code code_of(const void* kernel, const char* path) {
  if (translated().empty()) return nullptr;
  const std::string file = path;
  const size_t start = file.rfind('/') + 1;
  const auto at = translated().find(file.substr(start, file.rfind('.') - start) + ":" + name_of(kernel));
  return at == translated().end() ? nullptr : at->second;
}

}  // namespace ptx
