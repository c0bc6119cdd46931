#include "group_mean.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, EIGHT = 8, COLUMNS = 2 * EIGHT, PARTS = THREADS * EIGHT / COLUMNS, AT_ONCE = 4;

template <class T>
struct alignas(16) Eight {
  T at[EIGHT];
};

// Whether rows can be read by eights, those of float32 by two fours.
template <class T>
bool reads_eights(const Heads<T>& x, int64_t D) {
  const auto aligned = [](int64_t stride) { return stride % (16 / int64_t(sizeof(T))) == 0; };
  return D % EIGHT == 0 && x.element == 1 && aligned(x.batch) && aligned(x.head) && aligned(x.token) && uintptr_t(x.base) % 16 == 0;
}

// The members of a cluster: where each of its rows lies.
struct Members {
  const int32_t *members, *positions;
  int size;
  int64_t stride;

  CUDA_OPS_DEVICE int64_t offset(int r) const {
    if (r >= size) return -1;
    return (positions ? positions[members[r]] : members[r]) * stride;
  }
};

// Eight numbers of every PARTS-th row, in their order; there are `here` of them in a row.
template <bool EIGHTS, class T>
CUDA_OPS_DEVICE void add_rows(const Members& rows, const T* start, int64_t element, int here, float scale, float (&sum)[EIGHT]) {
  for (int r0 = device::thread() / 2; r0 < rows.size; r0 += AT_ONCE * PARTS) {
    int64_t offset[AT_ONCE];
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int k = 0; k < AT_ONCE; ++k) offset[k] = rows.offset(r0 + k * PARTS);
    Eight<T> numbers[AT_ONCE];
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int k = 0; k < AT_ONCE; ++k) {
      if constexpr (EIGHTS) {
        if (offset[k] >= 0) numbers[k] = *reinterpret_cast<const Eight<T>*>(start + offset[k]);
      } else {
        CUDA_OPS_UNROLL(EIGHT)
        for (int i = 0; i < EIGHT; ++i) numbers[k].at[i] = offset[k] >= 0 && i < here ? start[offset[k] + i * element] : T{};
      }
    }
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int k = 0; k < AT_ONCE; ++k)
      if (offset[k] >= 0) {
        CUDA_OPS_UNROLL(EIGHT)
        for (int i = 0; i < EIGHT; ++i) sum[i] = device::fma(widen(numbers[k].at[i]), scale, sum[i]);
      }
  }
}

// A block adds COLUMNS numbers of the members of a cluster. Member r belongs to part r % PARTS, two neighbouring threads with eight numbers each; a part adds in the
// order of the members, then the parts of a warp are added in pairs and the warps in order: the bits depend on the members alone, not on where they lie.
template <class T>
CUDA_OPS_KERNEL mean_of_cluster(Heads<T> x, bool eights, Tokens tokens, cuda_ops::Groups groups, int64_t H, int D, int64_t C, float scale, float* means) {
  CUDA_OPS_SHARED(float, sums, WARPS * COLUMNS);
  const int pieces = (D + COLUMNS - 1) / COLUMNS, d0 = int(device::block() % pieces) * COLUMNS;
  const int64_t row = device::block() / pieces, cluster = row % C, head = row / C, b = head / H, h = head % H;
  const int t = device::thread(), lane = t % WARP, d = d0 + t % 2 * EIGHT;
  const int32_t* first = groups.first + head * (C + 1) + cluster;
  const int size = first[1] - first[0];
  const Members rows{groups.order + head * tokens.N + first[0], tokens.positions ? tokens.positions + b * tokens.N : nullptr, d < D ? size : 0, x.token};
  const T* start = x.base + x.offset(b, h, 0, d);
  float sum[EIGHT] = {};
  if (eights)
    add_rows<true>(rows, start, x.element, EIGHT, scale, sum);
  else
    add_rows<false>(rows, start, x.element, D - d, scale, sum);
  // each step leaves half of the numbers to either of two lanes
  CUDA_OPS_UNROLL(3)
  for (int half = EIGHT / 2; half; half /= 2) {
    const bool upper = lane & 4 * half;
    CUDA_OPS_UNROLL(EIGHT / 2)
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? sum[half + i] : sum[i], given = upper ? sum[i] : sum[half + i];
      sum[i] = kept + device::shuffle_xor(given, 4 * half);
    }
  }
  const float both = sum[0] + device::shuffle_xor(sum[0], 2);
  if (lane / 2 % 2 == 0) sums[t / WARP * COLUMNS + t % 2 * EIGHT + lane / 4] = both;
  device::barrier();
  if (t < COLUMNS && d0 + t < D) {
    float all = 0;
    for (int w = 0; w < WARPS; ++w) all += sums[w * COLUMNS + t];
    means[row * D + d0 + t] = size ? all / float(size) : 0;
  }
}

}  // namespace

namespace cuda_ops::launch {

void group_mean(const Vectors& x, const Tokens& tokens, const Groups& groups, int64_t B, int64_t H, int64_t D, int64_t C, float scale, float* means, Stream stream) {
  const int64_t blocks = B * H * C * ((D + COLUMNS - 1) / COLUMNS);
  if (!blocks) return;
  with_type(x.type, [&](auto type) {
    const Heads<decltype(type)> heads(x);
    CUDA_OPS_LAUNCH(mean_of_cluster<decltype(type)>, blocks, THREADS, stream, heads, reads_eights(heads, D), tokens, groups, H, int(D), C, scale, means);
  });
}

}  // namespace cuda_ops::launch
