// The tail of every head and the memory in which it is added up.
#pragma once
#include "kernels/tail.h"
#include "tensors.h"

namespace cuda_ops {

struct Tail {
  Tensor log_mass, spread, keys, values;
  Tail(const Tensor& like, const Shape& s, int64_t C, int64_t M)
      : log_mass(empty_floats(like, {s.B, s.H, C, M})),
        spread(empty_floats(like, {s.B, s.H, C, M})),
        keys(empty_floats(like, {s.B, s.H, C, M, s.D})),
        values(empty_floats(like, {s.B, s.H, C, M, s.D})),
        sums_(empty_floats(like, {s.B, s.H, launch::tail_segments(s.N, M), C, 2 * s.D})),
        masses_(empty_floats(like, {s.B, s.H, launch::tail_segments(s.N, M), C, 3})) {}
  Cells cells() const { return {data<float>(log_mass), data<float>(spread), data<float>(keys), data<float>(values)}; }
  float* part_sums() const { return data<float>(sums_); }
  float* part_masses() const { return data<float>(masses_); }

 private:
  Tensor sums_, masses_;
};

}  // namespace cuda_ops
