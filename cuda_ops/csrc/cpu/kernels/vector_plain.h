// What sets of instructions without stores past the caches, and without a maximum that takes b for NaN, leave to the compiler.
#pragma once

namespace {

template <class A>
CUDA_OPS_INLINE void stream(A* p, vec<A> v) {
  store(p, v);
}
inline void finish_streams() {}
template <class V>
CUDA_OPS_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
CUDA_OPS_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}

}  // namespace
