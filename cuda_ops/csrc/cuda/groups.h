// Tokens by cluster: decisions made elsewhere already leave the padding out, so operators that take them need no mask.
#pragma once
#include <climits>
#include <utility>

#include "kernels/groups.h"
#include "tensors.h"

namespace cuda_ops {

inline Tokens every_token(int64_t N) { return {nullptr, nullptr, nullptr, N, 0, INT64_MAX}; }

// The groups of kernels/groups.h and their memory.
class GroupedTokens {
 public:
  GroupedTokens(const Tensor& like, const Tokens& tokens, const int32_t* assignment, int64_t B, int64_t H, int64_t C, Stream stream)
      : GroupedTokens(like, assignment, B, H, tokens.N, C) {
    launch::group_tokens(&grouping_, 1, tokens, B, H, stream);
  }
  Groups groups() const { return {grouping_.order, grouping_.first}; }

  // Two assignments of the same tokens at once.
  static std::pair<GroupedTokens, GroupedTokens> both(const Tensor& like, const Tokens& tokens, const int32_t* one, int64_t C, const int32_t* two, int64_t M, int64_t B,
                                                      int64_t H, Stream stream) {
    std::pair<GroupedTokens, GroupedTokens> grouped{GroupedTokens(like, one, B, H, tokens.N, C), GroupedTokens(like, two, B, H, tokens.N, M)};
    const launch::Grouping sides[] = {grouped.first.grouping_, grouped.second.grouping_};
    launch::group_tokens(sides, 2, tokens, B, H, stream);
    return grouped;
  }

 private:
  GroupedTokens(const Tensor& like, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t C)
      : work_(empty_integers(like, {2, B, H, group_parts(N), C})), order_(empty_integers(like, {B, H, N})), first_(empty_integers(like, {B, H, C + 1})) {
    int32_t* work = data<int32_t>(work_);
    grouping_ = {assignment, C, work, work + B * H * group_parts(N) * C, data<int32_t>(order_), data<int32_t>(first_)};
  }

  Tensor work_, order_, first_;
  launch::Grouping grouping_;
};

}  // namespace cuda_ops
