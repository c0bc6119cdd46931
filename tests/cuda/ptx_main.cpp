// Runs a translated kernel by its name, on 32 threads, and prints the 64 words that it wrote where its only parameter points.
#include "device.h"
#include "ptx_table.h"

int main(int, char** arguments) {
  host_cuda::order = host_cuda::Order::shuffled;
  alignas(16) uint32_t words[64] = {};
  const uint32_t* const to = words;
  const char* const places[] = {reinterpret_cast<const char*>(&to)};
  const ptx::Code kernel = ptx::translated().at(arguments[1]);
  host_cuda::launch(1, 32, [&] { kernel(places); });
  for (const uint32_t word : words) std::printf("%u ", word);
}
