// The table of functions of this translation unit's instruction set.
#pragma once
#include "refined_backward.h"

namespace {

template <class A>
constexpr Kernels kernels_named(const char* name) {
  return {name,
          hash_vectors<A>,
          cluster_codes,
          group_mean<A>,
          centroid_scores<A>,
          top_keys<A>,
          centroid_attention<A>,
          exact_attention<A>,
          cluster_rows<A>,
          tail<A>,
          refined_attention<A>,
          fused<A, clustered_rows<A>>,
          fused<A, refined_rows<A>>,
          fused_backward<A, clustered_backward_rows<A>>,
          fused_backward<A, refined_backward_rows<A>>};
}

inline const Kernels* kernels_of(const char* name, Dtype accumulation) {
  static const Kernels single = kernels_named<float>(name), wide = kernels_named<double>(name);
  return accumulation == Dtype::float64 ? &wide : &single;
}

}  // namespace
