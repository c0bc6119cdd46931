#include "groups.h"

#include "scan.h"

namespace {

constexpr int THREADS = 256;
constexpr int64_t PART = 1024, MOST_PARTS = 64;

struct Range {
  int64_t begin, end;
};
CUDA_OPS_DEVICE Range range_of(int64_t n, int64_t part, int64_t parts) { return {n * part / parts, n * (part + 1) / parts}; }

using cuda_ops::launch::Grouping;

// Blocks are (side, batch row, head, part); `heads` is B * H.
CUDA_OPS_KERNEL count_members(Tokens tokens, Grouping one, Grouping two, int64_t heads, int64_t H, int64_t parts) {
  const int64_t part = device::block() % parts, head = device::block() / parts % heads, b = head / H;
  const Grouping& own = device::block() < heads * parts ? one : two;
  int32_t* counts = own.counts + (head * parts + part) * own.C;
  for (int64_t c = device::thread(); c < own.C; c += THREADS) counts[c] = 0;
  device::barrier();
  const Range range = range_of(count_of(tokens, b), part, parts);
  for (int64_t i = range.begin + device::thread(); i < range.end; i += THREADS) {
    const int64_t c = own.assignment[head * tokens.N + position_of(tokens, b, i)];
    if (c >= 0 && c < own.C) device::add(&counts[c], 1);
  }
}

// Each part knows from the counts where its members of a cluster start, and goes through its tokens in tiles: a token's place is behind the earlier ones of the
// tile in the same cluster.
CUDA_OPS_KERNEL list_members(Tokens tokens, Grouping one, Grouping two, int64_t heads, int64_t H, int64_t parts) {
  CUDA_OPS_SHARED(int32_t, sums, THREADS / WARP);
  CUDA_OPS_SHARED(int32_t, cluster_of, THREADS);
  const int64_t part = device::block() % parts, head = device::block() / parts % heads, b = head / H;
  const Grouping& own = device::block() < heads * parts ? one : two;
  const int64_t C = own.C;
  const int32_t *counts = own.counts, *assignment = own.assignment;
  int32_t *starts = own.starts + (head * parts + part) * C, *order = own.order + head * tokens.N, *first = own.first + head * (C + 1);
  const int t = device::thread();
  int32_t smaller_clusters = 0;
  for (int64_t c0 = 0; c0 < C; c0 += THREADS) {
    const int64_t c = c0 + t;
    int32_t members = 0, earlier = 0, total;
    for (int64_t p = 0; p < parts && c < C; ++p) {
      const int32_t count = counts[(head * parts + p) * C + c];
      members += count;
      if (p < part) earlier += count;
    }
    const int32_t before = smaller_clusters + sum_before(members, sums, total);
    smaller_clusters += total;
    if (c < C) starts[c] = before + earlier;
    if (c < C && part == 0) first[c] = before;
  }
  if (part == 0 && t == 0) first[C] = smaller_clusters;
  const Range range = range_of(count_of(tokens, b), part, parts);
  for (int64_t i0 = range.begin; i0 < range.end; i0 += THREADS) {
    const int64_t i = i0 + t;
    const int32_t cluster = i < range.end ? assignment[head * tokens.N + position_of(tokens, b, i)] : -1;
    const bool listed = cluster >= 0 && cluster < C;
    device::barrier();
    cluster_of[t] = listed ? cluster : -1;
    device::barrier();
    int before = 0, all = 0;
    for (int other = 0; other < THREADS; ++other) {
      const bool same = cluster_of[other] == cluster;
      all += same;
      before += same && other < t;
    }
    const int32_t start = listed ? starts[cluster] : 0;
    device::barrier();
    if (listed) order[start + before] = int32_t(i);
    if (listed && before == 0) starts[cluster] = start + all;
  }
}

}  // namespace

namespace cuda_ops {

int64_t group_parts(int64_t N) {
  const int64_t parts = (N + PART - 1) / PART;
  return parts < 1 ? 1 : parts > MOST_PARTS ? MOST_PARTS : parts;
}

namespace launch {

void group_tokens(const Grouping* sides, int count, const Tokens& tokens, int64_t B, int64_t H, Stream stream) {
  const int64_t heads = B * H, parts = group_parts(tokens.N), blocks = count * heads * parts;
  if (!blocks) return;
  const Grouping one = sides[0], two = sides[count - 1];
  CUDA_OPS_LAUNCH(count_members, blocks, THREADS, stream, tokens, one, two, heads, H, parts);
  CUDA_OPS_LAUNCH(list_members, blocks, THREADS, stream, tokens, one, two, heads, H, parts);
}

}  // namespace launch
}  // namespace cuda_ops
