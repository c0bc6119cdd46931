// Runs one head through the kernels of one instruction set, forward and backward, without torch: test_emulated_processors.py starts it under an
// emulated processor. `kernels_main METHOD SET TYPE < INPUT > OUTPUT`; arrays lie in the order in which they are read and written below, values in
// TYPE, planes and log mass in the accumulation type.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>
#include <vector>

#include "cpu/kernels/interface.h"

namespace cuda_ops::cpu {
ScratchBlock* new_block(size_t capacity) {
  void* memory = aligned_alloc(64, (capacity + 127) / 64 * 64);
  if (!memory) abort();
  return new (memory) ScratchBlock{nullptr, capacity, 0};
}
void share(int64_t, void (*)(const void*, int64_t, Scratch&), const void*) { abort(); }
}  // namespace cuda_ops::cpu

namespace {

using namespace cuda_ops::cpu;
using Bytes = std::vector<char>;

Bytes read(size_t bytes) {
  Bytes data(bytes);
  if (fread(data.data(), 1, bytes, stdin) != bytes) exit(2);
  return data;
}

template <class T>
T* as(Bytes& data) {
  return reinterpret_cast<T*>(data.data());
}

void write(const Bytes& data) { fwrite(data.data(), 1, data.size(), stdout); }

const Kernels* find_kernels(const char* set, Dtype accumulation) {
  if (!strcmp(set, "portable")) return portable_kernels(accumulation);
#ifdef CUDA_OPS_X86
  if (!strcmp(set, "avx2")) return avx2_kernels(accumulation);
  if (!strcmp(set, "avx512")) return avx512_kernels(accumulation);
#endif
#ifdef CUDA_OPS_ARM64
  if (!strcmp(set, "neon")) return neon_kernels(accumulation);
#endif
  exit(3);
}

Dtype find_type(const char* name) {
  const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  for (int32_t i = 0; i < 4; ++i)
    if (!strcmp(name, names[i])) return Dtype(i);
  exit(4);
}

}  // namespace

int main(int, char** arguments) {
  const bool refined = !strcmp(arguments[1], "refined_clustered");
  const Dtype type = find_type(arguments[3]), accumulation = type == Dtype::float64 ? type : Dtype::float32;
  const Kernels& kernels = *find_kernels(arguments[2], accumulation);
  const size_t element = type == Dtype::float64 ? 8 : type == Dtype::float32 ? 4 : 2, wide = accumulation == Dtype::float64 ? 8 : 4;
  Bytes header = read(10 * 8);
  const int64_t *numbers = as<int64_t>(header), n = numbers[6];
  const Sizes sizes{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]};
  const size_t values = size_t(sizes.N * sizes.D);
  Bytes position = read(size_t(n) * 4), q = read(values * element), k = read(values * element), v = read(values * element), grad = read(values * element);
  Bytes planes = read(size_t(sizes.P * sizes.D) * wide), scale = read(8);

  Bytes out(values * element), log_mass(size_t(sizes.N) * wide), assignment(size_t(sizes.N) * 4), key_assignment(size_t(sizes.N) * 4);
  Bytes top_keys(size_t(sizes.C * sizes.K) * 4);
  const auto slice = [&](Bytes& data) { return Slice{data.data(), sizes.D, 1, type, int64_t(data.size())}; };
  const Valid valid{as<int32_t>(position), n};
  Scratch scratch{};
  HeadForward forward{};
  forward.sizes = sizes;
  forward.valid = valid;
  forward.q = slice(q);
  forward.k = slice(k);
  forward.v = slice(v);
  forward.out = slice(out);
  forward.planes = planes.data();
  forward.iterations = numbers[7];
  forward.band = numbers[8];
  forward.sample = numbers[9];
  forward.scale = *as<double>(scale);
  forward.log_mass = log_mass.data();
  forward.assignment = as<int32_t>(assignment);
  forward.key_assignment = as<int32_t>(key_assignment);
  forward.top_keys = as<int32_t>(top_keys);
  forward.listed_clusters = sizes.C;
  forward.listed_keys = sizes.K;
  (refined ? kernels.refined_clustered : kernels.improved_clustered)(forward, scratch);

  Bytes grad_q(values * element), grad_k(values * element), grad_v(values * element);
  const Slice grad_slice = slice(grad), q_slice = slice(q), grad_q_slice = slice(grad_q);
  const int32_t *clusters = as<int32_t>(assignment), *key_clusters = as<int32_t>(key_assignment), *top = as<int32_t>(top_keys);
  HeadBackward backward{};
  backward.sizes = sizes;
  backward.valid = valid;
  backward.group = 1;
  backward.grad = &grad_slice;
  backward.q = &q_slice;
  backward.grad_q = &grad_q_slice;
  backward.k = slice(k);
  backward.v = slice(v);
  backward.grad_k = slice(grad_k);
  backward.grad_v = slice(grad_v);
  backward.scale = forward.scale;
  backward.band = forward.band;
  backward.assignment = &clusters;
  backward.key_assignment = &key_clusters;
  backward.top_keys = &top;
  (refined ? kernels.refined_clustered_backward : kernels.improved_clustered_backward)(backward, scratch);

  for (const Bytes* result : {&out, &log_mass, &assignment, &key_assignment, &top_keys, &grad_q, &grad_k, &grad_v}) write(*result);
}
