// The results of centroid_attention and the memory in which they are added up.
#pragma once
#include "kernels/centroid_attention.h"
#include "tensors.h"

namespace cuda_ops {

struct CentroidAttention {
  Tensor rest, top_mass, log_mass, part_sums, part_masses;
  CentroidAttention(const Tensor& like, const Shape& s, int64_t C)
      : rest(empty_floats(like, {s.B, s.H, C, s.D})),
        top_mass(empty_floats(like, {s.B, s.H, C})),
        log_mass(empty_floats(like, {s.B, s.H, C})),
        part_sums(empty_floats(like, {s.B, s.H, launch::centroid_attention_parts(s.N), C, s.D})),
        part_masses(empty_floats(like, {s.B, s.H, launch::centroid_attention_parts(s.N), C, 3})) {}
};

}  // namespace cuda_ops
