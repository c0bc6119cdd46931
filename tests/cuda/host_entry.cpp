// What the tests call of the host's device, besides the operators.
#include "../../cuda_ops/csrc/cuda/kernels/device.h"

extern "C" __attribute__((visibility("default"))) void set_order(int order, int seed) {
  host_cuda::order = host_cuda::Order(order);
  host_cuda::random_numbers.seed(unsigned(seed));
}

// How many blocks that meet fit on the device.
extern "C" __attribute__((visibility("default"))) void set_blocks_at_once(int64_t blocks) { host_cuda::blocks_at_once = blocks; }
