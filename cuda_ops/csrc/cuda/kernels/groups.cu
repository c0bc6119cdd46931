#include "groups.h"

#include "scan.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, AT_ONCE = 4;
constexpr int COUNTED = 512;  // most clusters that are counted in shared memory
constexpr int64_t PART = 1024, MOST_PARTS = 64;

struct Range {
  int begin, end;
};
CUDA_OPS_DEVICE Range range_of(int64_t n, int64_t part, int64_t parts) { return {int(n * part / parts), int(n * (part + 1) / parts)}; }

using cuda_ops::launch::Grouping;

// The clusters of the tokens of a head.
struct Clusters {
  const int32_t *assignment, *positions;
  int C;

  CUDA_OPS_DEVICE Clusters(const Grouping& grouping, const Tokens& tokens, int64_t head, int64_t b)
      : assignment(grouping.assignment + head * tokens.N), positions(tokens.positions ? tokens.positions + b * tokens.N : nullptr), C(int(grouping.C)) {}
  // Those of every `step`-th token from `first` on; -1 for one that belongs to none, and from `end` on.
  template <int COUNT>
  CUDA_OPS_DEVICE void read(int first, int step, int end, int32_t (&to)[COUNT]) const {
    int32_t position[COUNT];
    CUDA_OPS_UNROLL(COUNT)
    for (int r = 0; r < COUNT; ++r) position[r] = first + r * step;
    if (positions) {
      CUDA_OPS_UNROLL(COUNT)
      for (int r = 0; r < COUNT; ++r) position[r] = first + r * step < end ? positions[position[r]] : 0;
    }
    CUDA_OPS_UNROLL(COUNT)
    for (int r = 0; r < COUNT; ++r) {
      const int32_t cluster = first + r * step < end ? assignment[position[r]] : -1;
      to[r] = cluster < C ? cluster : -1;
    }
  }
};

// Blocks are (side, batch row, head, part); `heads` is B * H.
CUDA_OPS_KERNEL count_members(Tokens tokens, Grouping one, Grouping two, int64_t heads, int64_t H, int64_t parts) {
  CUDA_OPS_SHARED(int32_t, near, COUNTED);
  const int64_t part = device::block() % parts, head = device::block() / parts % heads, b = head / H;
  const Grouping& own = device::block() < heads * parts ? one : two;
  const Clusters clusters(own, tokens, head, b);
  const bool counted = clusters.C <= COUNTED;
  int32_t* counts = own.counts + (head * parts + part) * clusters.C;
  for (int c = device::thread(); c < clusters.C; c += THREADS) (counted ? near[c] : counts[c]) = 0;
  device::barrier();
  const Range range = range_of(count_of(tokens, b), part, parts);
  for (int i = range.begin + device::thread(); i < range.end; i += AT_ONCE * THREADS) {
    int32_t cluster[AT_ONCE];
    clusters.read(i, THREADS, range.end, cluster);
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) {
      if (cluster[r] >= 0 && counted) device::add(&near[cluster[r]], 1);
      if (cluster[r] >= 0 && !counted) device::add(&counts[cluster[r]], 1);
    }
  }
  device::barrier();
  for (int c = device::thread(); c < clusters.C && counted; c += THREADS) counts[c] = near[c];
}

// Each warp lists the members among its range of tokens behind those of the warps before it: `places`, (WARPS, C), tells where its next member of a cluster goes.
CUDA_OPS_DEVICE void list_by_warps(const Clusters& clusters, Range range, int32_t* places, int32_t* order) {
  const int lane = device::thread() % WARP;
  for (int i = range.begin + lane; i - lane < range.end; i += AT_ONCE * WARP) {
    int32_t cluster[AT_ONCE];
    clusters.read(i, WARP, range.end, cluster);
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) {
      const int32_t place = take_place(cluster[r], places);
      if (cluster[r] >= 0) order[place] = i + r * WARP;
    }
  }
}

// For more clusters: the block goes through its tokens in tiles. A token's place is behind the earlier ones of the tile in the same cluster.
CUDA_OPS_DEVICE void list_by_tiles(const Clusters& clusters, Range range, int32_t* cluster_of, int32_t* starts, int32_t* order) {
  const int t = device::thread();
  for (int i0 = range.begin; i0 < range.end; i0 += THREADS) {
    int32_t cluster[1];
    clusters.read(i0 + t, THREADS, range.end, cluster);
    const bool listed = cluster[0] >= 0;
    device::barrier();
    cluster_of[t] = cluster[0];
    device::barrier();
    int before = 0, all = 0;
    for (int other = 0; other < THREADS; ++other) {
      const bool same = cluster_of[other] == cluster[0];
      all += same;
      before += same && other < t;
    }
    const int32_t start = listed ? starts[cluster[0]] : 0;
    device::barrier();
    if (listed) order[start + before] = i0 + t;
    if (listed && before == 0) starts[cluster[0]] = start + all;
  }
}

// Each part knows from the counts where its members of a cluster start.
CUDA_OPS_KERNEL list_members(Tokens tokens, Grouping one, Grouping two, int64_t heads, int64_t H, int64_t parts) {
  CUDA_OPS_SHARED(int32_t, sums, WARPS);
  CUDA_OPS_SHARED(int32_t, cluster_of, THREADS);
  CUDA_OPS_SHARED(int32_t, places, WARPS * COUNTED);
  const int64_t part = device::block() % parts, head = device::block() / parts % heads, b = head / H;
  const Grouping& own = device::block() < heads * parts ? one : two;
  const Clusters clusters(own, tokens, head, b);
  const int C = clusters.C, t = device::thread(), warp = t / WARP;
  const bool counted = C <= COUNTED;
  const int32_t* counts = own.counts + head * parts * C;
  int32_t *starts = own.starts + (head * parts + part) * C, *order = own.order + head * tokens.N, *first = own.first + head * (C + 1);
  const Range range = range_of(count_of(tokens, b), part, parts);
  const int length = (range.end - range.begin + THREADS - 1) / THREADS * WARP;
  const Range mine{smaller(range.begin + warp * length, range.end), smaller(range.begin + (warp + 1) * length, range.end)};
  if (counted) {
    for (int k = t; k < WARPS * C; k += THREADS) places[k] = 0;
    device::barrier();
    for (int i = mine.begin + t % WARP; i < mine.end; i += AT_ONCE * WARP) {
      int32_t cluster[AT_ONCE];
      clusters.read(i, WARP, mine.end, cluster);
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int r = 0; r < AT_ONCE; ++r)
        if (cluster[r] >= 0) device::add(&places[warp * C + cluster[r]], 1);
    }
  }
  int32_t smaller_clusters = 0;
  for (int c0 = 0; c0 < C; c0 += THREADS) {
    const int c = c0 + t;
    int32_t members = 0, earlier = 0, total;
    if (c < C) {
      CUDA_OPS_UNROLL(8)
      for (int p = 0; p < int(parts); ++p) {
        const int32_t count = counts[p * C + c];
        members += count;
        if (p < part) earlier += count;
      }
    }
    const int32_t before = smaller_clusters + sum_before(members, sums, total);  // and all warps have counted
    smaller_clusters += total;
    if (c < C && part == 0) first[c] = before;
    if (c < C && !counted) starts[c] = before + earlier;
    int32_t place = before + earlier;
    for (int w = 0; w < WARPS && c < C && counted; ++w) {
      const int32_t count = places[w * C + c];
      places[w * C + c] = place;
      place += count;
    }
  }
  if (part == 0 && t == 0) first[C] = smaller_clusters;
  device::barrier();
  if (counted)
    list_by_warps(clusters, mine, places + warp * C, order);
  else
    list_by_tiles(clusters, range, cluster_of, starts, order);
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
