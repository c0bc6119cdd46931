// What attention takes: the queries of a block, and keys and values of a head.
#pragma once
#include "vectors.h"

namespace {

constexpr int KEYS = 64;  // of a tile

struct alignas(16) Quad {
  float at[4];
};

// The running softmax of the queries of a block, in shared memory: the largest logit so far, the sum of numerators relative to it, and what sums so far have to be
// multiplied by.
struct Running {
  float *largest, *total, *factor;

  // Takes the logits of a row in, whose largest is `most` and whose numerators relative to the larger of both add up to `sum`.
  CUDA_OPS_DEVICE void take(int r, float most, float sum) const {
    const float before = largest[r], shrink = before == -infinity() ? 0 : device::exponential(before - most);
    factor[r] = shrink;
    total[r] = device::fma(total[r], shrink, sum);
    largest[r] = most;
  }
};

// A numerator; 0 for no key. Without a single logit above -inf there is nothing to be relative to.
CUDA_OPS_DEVICE float numerator(float logit, float most) { return most != -infinity() ? device::exponential(logit - most) : logit == logit ? 0 : logit; }

// The rows of the queries of a block: `count` of them at these token positions.
template <class T>
struct QueryRows {
  Heads<T> q;
  int64_t b, h, D, count;
  const int32_t* position;
  float scale;
  CUDA_OPS_DEVICE float at(int64_t r, int64_t d) const { return r < count && d < D ? q.at(b, h, position[r], d) * scale : 0; }
};

// Copies a row of 16-bit numbers to shared memory, eight at a time where it can be read so, and zeros behind it up to `width`.
template <class T>
CUDA_OPS_DEVICE void copy_eight(const Heads<T>& x, int64_t offset, bool here, int64_t d, int64_t D, T* to) {
  if (here && d + 8 <= D && x.eights) {
    *reinterpret_cast<Quad*>(to) = *reinterpret_cast<const Quad*>(x.base + offset + d);
    return;
  }
  for (int i = 0; i < 8; ++i) to[i] = here && d + i < D ? x.base[offset + (d + i) * x.element] : T{};
}

// Keys and values at listed token positions.
template <class T>
struct ListedKeys {
  Heads<T> k, v;
  int64_t b, h, D, count;
  const int32_t* list;  // none: the valid tokens themselves
  Tokens tokens;
  CUDA_OPS_DEVICE int64_t position(int64_t j) const { return list ? list[j] : position_of(tokens, b, j); }
  CUDA_OPS_DEVICE float key(int64_t j, int64_t d) const { return k.at(b, h, position(j), d); }
  CUDA_OPS_DEVICE float value(int64_t j, int64_t d) const { return v.at(b, h, position(j), d); }
  // A key is the sum of so many 16-bit parts. Eight numbers of one, or of a value; 0 where there is none.
  static constexpr int PARTS = 1;
  CUDA_OPS_DEVICE void copy_key(int64_t j, int64_t d, int, T* to) const { copy(k, j, d, to); }
  CUDA_OPS_DEVICE void copy_value(int64_t j, int64_t d, T* to) const { copy(v, j, d, to); }
  CUDA_OPS_DEVICE void prepare(int64_t) const {}
  CUDA_OPS_DEVICE float logit(float product, int64_t, int64_t) const { return product; }

 private:
  CUDA_OPS_DEVICE void copy(const Heads<T>& x, int64_t j, int64_t d, T* to) const {
    const bool here = j < count;
    copy_eight(x, x.offset(b, h, here ? position(j) : 0, 0), here, d, D, to);
  }
};

// The entries of a list of top keys that name a token: -1 stands behind all of them.
CUDA_OPS_DEVICE int64_t named_keys(const int32_t* list, int64_t K, int64_t N) {
  int64_t low = 0, high = K;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (uint32_t(list[middle]) < uint32_t(N)) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace
