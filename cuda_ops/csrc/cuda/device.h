// Where and how an operator runs: its tensors' device and stream, the reference for what has no kernel, errors of the launches.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "kernels/device.h"

namespace cuda_ops {

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

// Runs a boxed operator with the device of its first tensor as the current one. float64 goes to the operator `reference`.
void run_on_device(const char* reference, Boxed run, StableIValue* stack, uint64_t inputs, uint64_t outputs);

// The stream that torch uses now on the device of x.
Stream stream_of(const torch::stable::Tensor& x);

}  // namespace cuda_ops
