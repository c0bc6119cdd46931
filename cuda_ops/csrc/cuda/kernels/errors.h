#pragma once

namespace cuda_ops {

// What went wrong with a launch of this thread since the last call; null if nothing did.
const char* last_error();

}  // namespace cuda_ops
