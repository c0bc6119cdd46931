#include "top_keys.h"

#include "scan.h"

namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, DIGIT = 8, BINS = 1 << DIGIT, AT_ONCE = 4;

// Unsigned integers in the order of the scores: NaN is the largest, -0 equals +0.
CUDA_OPS_DEVICE uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = device::bits_of(x == 0 ? 0 : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The scores of a cluster for the valid tokens of its row.
struct Row {
  const float* scores;
  Tokens tokens;
  int64_t b, n;

  CUDA_OPS_DEVICE uint32_t key(int64_t i) const { return order_key(scores[position_of(tokens, b, i)]); }
};

// The keys whose digits from bit `shift` on exceed those of `prefix` belong to the top, and the first `ties` of those that have the same digits.
struct Threshold {
  uint32_t prefix;
  int shift;
  int64_t ties;
};

// How many keys with the digits found so far have each value of the next digit.
CUDA_OPS_DEVICE void count_digits(const Row& row, const Threshold& found, int32_t* bins) {
  const int next = found.shift - DIGIT;
  for (int64_t first = device::thread(); first < row.n; first += AT_ONCE * THREADS) {
    uint32_t key[AT_ONCE];
    for (int r = 0; r < AT_ONCE; ++r) key[r] = first + r * THREADS < row.n ? row.key(first + r * THREADS) : 0;
    for (int r = 0; r < AT_ONCE; ++r)
      if (first + r * THREADS < row.n && uint64_t(key[r]) >> found.shift == found.prefix) device::add(&bins[key[r] >> next & (BINS - 1)], 1);
  }
}

// Digit by digit from the highest, until all keys with the digits so far belong to the top. 0 < K < n. `sums` and `chosen` are for this alone.
CUDA_OPS_DEVICE Threshold find_threshold(const Row& row, int64_t K, int32_t* bins, int32_t* sums, int32_t* chosen) {
  const int t = device::thread();
  Threshold found{0, 32, K};
  for (int64_t same = row.n; same > found.ties && found.shift > 0;) {
    for (int bin = t; bin < BINS; bin += THREADS) bins[bin] = 0;
    device::barrier();
    count_digits(row, found, bins);
    device::barrier();
    const int32_t here = t < BINS ? bins[BINS - 1 - t] : 0;  // thread 0 has the highest digit
    int32_t all;
    const int32_t above = sum_before(here, sums, all);
    if (above < found.ties && above + here >= found.ties) {
      chosen[0] = BINS - 1 - t;
      chosen[1] = above;
      chosen[2] = here;
    }
    device::barrier();
    found.prefix = found.prefix << DIGIT | uint32_t(chosen[0]);
    found.shift -= DIGIT;
    found.ties -= chosen[1];
    same = chosen[2];
  }
  return found;
}

struct Place {
  bool higher, equal;
};

CUDA_OPS_DEVICE Place place_of(const Row& row, int64_t i, int64_t end, const Threshold& found) {
  const uint64_t digits = i < end ? uint64_t(row.key(i)) >> found.shift : 0;
  return {i < end && digits > found.prefix, i < end && digits == found.prefix};
}

// A block for each cluster of a head. The threshold once found, each warp goes through a range of tokens of its own: first it counts what it will list, then, with
// the counts of the warps before it, it lists.
CUDA_OPS_KERNEL list_top_keys(const float* scores, Tokens tokens, int64_t H, cuda_ops::Budgets budgets, int32_t* top_keys) {
  CUDA_OPS_SHARED(int32_t, bins, BINS);
  CUDA_OPS_SHARED(int32_t, sums, WARPS);
  CUDA_OPS_SHARED(int32_t, chosen, 3);
  CUDA_OPS_SHARED(int32_t, higher_of, WARPS);
  CUDA_OPS_SHARED(int32_t, equal_of, WARPS);
  const int64_t c = device::block() % budgets.C, head = device::block() / budgets.C, b = head / H;
  const int t = device::thread(), lane = t % WARP, warp = t / WARP;
  const uint32_t lower_lanes = (1u << lane) - 1;
  const Row row{scores + device::block() * tokens.N, tokens, b, count_of(tokens, b)};
  const cuda_ops::Step step = step_of(budgets, row.n);
  const int64_t K = c < step.clusters ? smaller(smaller(int64_t(step.topk), row.n), budgets.K) : 0;
  int32_t* top = top_keys + device::block() * budgets.K;
  for (int64_t slot = K + t; slot < budgets.K; slot += THREADS) top[slot] = -1;
  if (K == row.n) {
    for (int64_t i = t; i < K; i += THREADS) top[i] = int32_t(position_of(tokens, b, i));
  } else if (K > 0) {
    const Threshold found = find_threshold(row, K, bins, sums, chosen);
    const int64_t range = (row.n + THREADS - 1) / THREADS * WARP, begin = warp * range, end = smaller(begin + range, row.n);
    int64_t higher = 0, equal = 0;
    for (int64_t first = begin; first < end; first += WARP) {
      const Place place = place_of(row, first + lane, end, found);
      higher += device::ones(device::ballot(place.higher));
      equal += device::ones(device::ballot(place.equal));
    }
    if (lane == 0) higher_of[warp] = int32_t(higher);
    if (lane == 0) equal_of[warp] = int32_t(equal);
    device::barrier();
    higher = 0;
    equal = 0;
    for (int w = 0; w < warp; ++w) {
      higher += higher_of[w];
      equal += equal_of[w];
    }
    for (int64_t first = begin; first < end; first += WARP) {
      const Place place = place_of(row, first + lane, end, found);
      const uint32_t highers = device::ballot(place.higher), equals = device::ballot(place.equal);
      const int64_t higher_before = higher + device::ones(highers & lower_lanes), equal_before = equal + device::ones(equals & lower_lanes);
      if (place.higher || (place.equal && equal_before < found.ties))
        top[higher_before + smaller(equal_before, found.ties)] = int32_t(position_of(tokens, b, first + lane));
      higher += device::ones(highers);
      equal += device::ones(equals);
    }
  }
}

}  // namespace

namespace cuda_ops::launch {

void top_keys(const float* scores, const Tokens& tokens, int64_t B, int64_t H, const Budgets& budgets, int32_t* top_keys, Stream stream) {
  const int64_t blocks = B * H * budgets.C;
  if (blocks * budgets.K == 0) return;
  CUDA_OPS_LAUNCH(list_top_keys, blocks, THREADS, stream, scores, tokens, H, budgets, top_keys);
}

}  // namespace cuda_ops::launch
