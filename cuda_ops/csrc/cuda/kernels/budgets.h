// The budgets of a batch row depend on how many valid tokens it has.
#pragma once
#include "vectors.h"

namespace cuda_ops {

// The budgets of rows with at least `tokens` valid tokens.
struct Step {
  int32_t tokens, clusters, topk, key_clusters, sample;
};

constexpr int MOST_STEPS = 32;

struct Budgets {
  int64_t C, K, M;         // the largest of all steps, K at most N: the shapes of arrays
  int32_t count;
  Step steps[MOST_STEPS];  // ascending in their tokens, the first from 0 on
};

}  // namespace cuda_ops

namespace {

using cuda_ops::Budgets;
using cuda_ops::Step;

CUDA_OPS_DEVICE Step step_of(const Budgets& budgets, int64_t n) {
  int last = 0;
  while (last + 1 < budgets.count && budgets.steps[last + 1].tokens <= n) ++last;
  return budgets.steps[last];
}

}  // namespace
