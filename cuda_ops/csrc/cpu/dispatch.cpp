#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

#ifdef CUDA_OPS_X86
#include <cpuid.h>
#endif

#define CUDA_OPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace cuda_ops::cpu {

namespace {

using Choose = const Kernels* (*)(Dtype);

struct InstructionSet {
  const char* name;
  Choose choose;
  bool available;
};

#ifdef CUDA_OPS_X86
// Clang 14's __builtin_cpu_supports does not know this one.
bool supports_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const InstructionSet* instruction_sets() {
#ifdef CUDA_OPS_X86
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
                           supports_f16c();
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq");
  static const InstructionSet sets[] = {{"avx512", avx512_kernels, avx512}, {"avx2", avx2_kernels, avx2}, {"portable", portable_kernels, true}, {nullptr, nullptr, false}};
#elif defined(CUDA_OPS_ARM64)
  static const InstructionSet sets[] = {{"neon", neon_kernels, true}, {"portable", portable_kernels, true}, {nullptr, nullptr, false}};
#else
  static const InstructionSet sets[] = {{"portable", portable_kernels, true}, {nullptr, nullptr, false}};
#endif
  return sets;
}

// The set that CUDA_OPS_INSTRUCTION_SET names, if the processor has it, else the best; _library.py compares and explains.
const InstructionSet& active() {
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    const char* wanted = getenv("CUDA_OPS_INSTRUCTION_SET");
    const InstructionSet* best = nullptr;
    for (const InstructionSet* set = instruction_sets(); set->name; ++set) {
      if (!set->available) continue;
      if (wanted && !strcmp(wanted, set->name)) return *set;
      if (!best) best = set;
    }
    return *best;
  }();
  return chosen;
}

}  // namespace

const Kernels& kernels(Dtype accumulation) { return *active().choose(accumulation); }

}  // namespace cuda_ops::cpu

CUDA_OPS_EXPORT const char* cuda_ops_instruction_sets() {
#ifdef CUDA_OPS_X86
  return "portable,avx2,avx512";
#elif defined(CUDA_OPS_ARM64)
  return "portable,neon";
#else
  return "portable";
#endif
}

CUDA_OPS_EXPORT const char* cuda_ops_active_instruction_set() { return cuda_ops::cpu::active().name; }
