#include "top_keys.h"

#include "scan.h"

namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, DIGIT = 11, BINS = 1 << DIGIT, OWN_BINS = BINS / THREADS, AT_ONCE = 4;
// Keys in shared memory: without the indices of their tokens, with them, and those that a bound is taken from.
constexpr int KEYS = 8192, LISTED = KEYS / 2, SAMPLE = KEYS / 2;

// Unsigned integers in the order of the scores: NaN is the largest, -0 equals +0.
CUDA_OPS_DEVICE uint32_t order_key(float x) {
  const uint32_t bits = device::bits_of(x + 0.0f);  // -0 + 0 is +0
  const uint32_t key = bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
  return x == x ? key : 0xffffffffu;
}
// The number that has a key, or NaN.
CUDA_OPS_DEVICE float number_of(uint32_t key) { return device::float_of(key >> 31 ? key ^ 0x80000000u : ~key); }

// The scores of a cluster for the `count` valid tokens of its row.
struct Scores {
  const float* scores;
  const int32_t* positions;
  int count;

  CUDA_OPS_DEVICE int position(int i) const { return positions ? positions[i] : i; }
  CUDA_OPS_DEVICE uint32_t key(int i) const { return order_key(scores[position(i)]); }
  // Those of the indices `at`, all on their way at once; 0 where the index is not below `count`.
  CUDA_OPS_DEVICE void read(int (&at)[AT_ONCE], float (&to)[AT_ONCE]) const {
    bool here[AT_ONCE];
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) here[r] = at[r] < count;
    if (positions) {
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int r = 0; r < AT_ONCE; ++r) at[r] = here[r] ? positions[at[r]] : 0;
    }
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) to[r] = here[r] ? scores[at[r]] : 0;
  }
  CUDA_OPS_DEVICE void read_keys(int first, uint32_t (&to)[AT_ONCE]) const {
    int at[AT_ONCE];
    float score[AT_ONCE];
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) at[r] = first + r * THREADS;
    read(at, score);
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) to[r] = order_key(score[r]);
  }
};

// Some of them in shared memory, in the order of the tokens.
struct Keys {
  const Scores& scores;
  const uint32_t* keys;
  const int32_t* indices;  // none: all of them are here
  int count;

  CUDA_OPS_DEVICE int position(int i) const { return scores.position(indices ? indices[i] : i); }
  CUDA_OPS_DEVICE uint32_t key(int i) const { return keys[i]; }
  CUDA_OPS_DEVICE void read_keys(int first, uint32_t (&to)[AT_ONCE]) const {
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) to[r] = first + r * THREADS < count ? keys[first + r * THREADS] : 0;
  }
};

// What the threads of a block share beside the keys.
struct Memory {
  int32_t *bins, *sums, *chosen, *higher_of, *equal_of;
};

// The keys whose digits from bit `shift` on exceed those of `prefix` belong to the top, and the first `ties` of those that have the same digits.
struct Threshold {
  uint32_t prefix;
  int shift, ties;
};

// How many keys with the digits found so far have each value of the next digit, from bit `next` on.
template <class Row>
CUDA_OPS_DEVICE void count_digits(const Row& row, const Threshold& found, int next, int32_t* bins) {
  CUDA_OPS_UNROLL(1)
  for (int first = device::thread(); first < row.count; first += AT_ONCE * THREADS) {
    uint32_t key[AT_ONCE];
    row.read_keys(first, key);
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r)
      if (first + r * THREADS < row.count && (found.shift == 32 || key[r] >> found.shift == found.prefix)) device::add(&bins[key[r] >> next & (BINS - 1)], 1);
  }
}

// Digit by digit from the highest, until at most `most` keys have the digits so far or higher ones. 0 < K <= most, K < the number of keys.
template <class Row>
CUDA_OPS_DEVICE Threshold find_threshold(const Row& row, int K, int most, const Memory& memory) {
  const int top = BINS - 1 - device::thread() * OWN_BINS;  // thread 0 has the highest digits
  Threshold found{0, 32, K};
  for (int same = row.count; K - found.ties + same > most && found.shift > 0;) {
    const int next = found.shift < DIGIT ? 0 : found.shift - DIGIT;
    for (int i = 0; i < OWN_BINS; ++i) memory.bins[top - i] = 0;
    device::barrier();
    count_digits(row, found, next, memory.bins);
    device::barrier();
    int32_t here = 0, all;
    for (int i = 0; i < OWN_BINS; ++i) here += memory.bins[top - i];
    int32_t above = sum_before(here, memory.sums, all);
    if (above < found.ties && above + here >= found.ties) {
      int bin = top;
      for (; above + memory.bins[bin] < found.ties; --bin) above += memory.bins[bin];
      memory.chosen[0] = bin;
      memory.chosen[1] = above;
      memory.chosen[2] = memory.bins[bin];
    }
    device::barrier();
    found.prefix = found.prefix << (found.shift - next) | uint32_t(memory.chosen[0]);
    found.shift = next;
    found.ties -= memory.chosen[1];
    same = memory.chosen[2];
  }
  return found;
}

struct Place {
  bool higher, equal;
};

template <class Row>
CUDA_OPS_DEVICE Place place_of(const Row& row, int i, int end, const Threshold& found) {
  const uint32_t digits = i < end ? row.key(i) >> found.shift : 0;
  return {i < end && digits > found.prefix, i < end && digits == found.prefix};
}

// The K highest keys of a row with more. The threshold once found, each warp goes through a range of its own: first it counts what it will list, then, with the
// counts of the warps before it, it lists.
template <class Row>
CUDA_OPS_DEVICE void list_top(const Row& row, int K, const Memory& memory, int32_t* top) {
  const int t = device::thread(), lane = t % WARP, warp = t / WARP;
  const uint32_t lower_lanes = (1u << lane) - 1;
  const Threshold found = find_threshold(row, K, K, memory);
  const int range = (row.count + THREADS - 1) / THREADS * WARP, begin = warp * range, end = smaller(begin + range, row.count);
  int32_t higher = 0, equal = 0;
  for (int first = begin; first < end; first += WARP) {
    const Place place = place_of(row, first + lane, end, found);
    higher += place.higher;
    equal += place.equal;
  }
  for (int lanes = 1; lanes < WARP; lanes *= 2) {
    higher += device::shuffle_xor(higher, lanes);
    equal += device::shuffle_xor(equal, lanes);
  }
  if (lane == 0) memory.higher_of[warp] = higher;
  if (lane == 0) memory.equal_of[warp] = equal;
  device::barrier();
  int higher_before = 0, equal_before = 0;
  for (int w = 0; w < warp; ++w) {
    higher_before += memory.higher_of[w];
    equal_before += memory.equal_of[w];
  }
  if (higher + equal == 0) return;  // the same for the warp, and no barrier follows
  for (int first = begin; first < end; first += WARP) {
    const Place place = place_of(row, first + lane, end, found);
    const uint32_t highers = device::ballot(place.higher), equals = device::ballot(place.equal);
    const int highers_before = higher_before + device::ones(highers & lower_lanes), equals_before = equal_before + device::ones(equals & lower_lanes);
    if (place.higher || (place.equal && equals_before < found.ties)) top[highers_before + smaller(equals_before, found.ties)] = row.position(first + lane);
    higher_before += device::ones(highers);
    equal_before += device::ones(equals);
  }
}

// A number that at least K scores reach, from a sample of pieces all over a row with more: few other scores do.
CUDA_OPS_DEVICE float lower_bound(const Scores& row, int K, const Memory& memory, uint32_t* keys) {
  const int pieces = row.count / WARP;
  CUDA_OPS_UNROLL(1)
  for (int s0 = device::thread(); s0 < SAMPLE; s0 += AT_ONCE * THREADS) {
    int at[AT_ONCE];
    float score[AT_ONCE];
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) {
      const int s = s0 + r * THREADS;
      at[r] = int(int64_t(s / WARP) * pieces / (SAMPLE / WARP)) * WARP + s % WARP;
    }
    row.read(at, score);
    CUDA_OPS_UNROLL(AT_ONCE)
    for (int r = 0; r < AT_ONCE; ++r) keys[s0 + r * THREADS] = order_key(score[r]);
  }
  device::barrier();
  const int few = int(int64_t(SAMPLE) * (LISTED / 2) / row.count);
  const Threshold found = find_threshold(Keys{row, keys, nullptr, SAMPLE}, K, few > K ? few : K, memory);
  return number_of(found.prefix << found.shift);
}

// Lists the scores that are not below a bound, with their keys, and returns how many they are; more than LISTED are not listed. A bit for each token tells which:
// what is listed before a token is known when the bits are counted.
CUDA_OPS_DEVICE int list_from(const Scores& row, float bound, const Memory& memory, uint32_t* keys, int32_t* indices) {
  const int t = device::thread(), lane = t % WARP;
  int listed = 0;
  CUDA_OPS_UNROLL(1)
  for (int base = 0; base < row.count; base += BINS * WARP) {
    const int words = smaller((row.count - base + WARP - 1) / WARP, BINS);
    device::barrier();
    CUDA_OPS_UNROLL(1)
    for (int w0 = t / WARP * AT_ONCE; w0 < words; w0 += WARPS * AT_ONCE) {
      const int first = base + w0 * WARP + lane;
      int at[AT_ONCE];
      float score[AT_ONCE];
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int r = 0; r < AT_ONCE; ++r) at[r] = first + r * WARP;
      row.read(at, score);
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int r = 0; r < AT_ONCE; ++r) {
        const uint32_t votes = device::ballot(first + r * WARP < row.count && !(score[r] < bound));
        if (lane == 0 && w0 + r < words) memory.bins[w0 + r] = int32_t(votes);
      }
    }
    device::barrier();
    int32_t here = 0, all;
    for (int w = t * OWN_BINS; w < (t + 1) * OWN_BINS && w < words; ++w) here += device::ones(uint32_t(memory.bins[w]));
    int place = listed + sum_before(here, memory.sums, all);
    listed += all;
    for (int w = t * OWN_BINS; w < (t + 1) * OWN_BINS && w < words && listed <= LISTED; ++w)
      for (uint32_t left = uint32_t(memory.bins[w]); left; left &= left - 1) indices[place++] = base + w * WARP + device::ones((left & (0 - left)) - 1);
  }
  device::barrier();
  for (int i = t; i < listed && listed <= LISTED; i += THREADS) keys[i] = row.key(indices[i]);
  device::barrier();
  return listed;
}

// A block for each cluster of a head. Of rows that do not fit in shared memory the scores that reach a bound are kept there; where these are too many, all steps
// read the row.
CUDA_OPS_KERNEL list_top_keys(const float* scores, Tokens tokens, int64_t H, cuda_ops::Budgets budgets, int32_t* top_keys) {
  CUDA_OPS_SHARED(uint32_t, keys, KEYS);
  CUDA_OPS_SHARED(int32_t, bins, BINS);
  CUDA_OPS_SHARED(int32_t, sums, WARPS);
  CUDA_OPS_SHARED(int32_t, chosen, 3);
  CUDA_OPS_SHARED(int32_t, higher_of, WARPS);
  CUDA_OPS_SHARED(int32_t, equal_of, WARPS);
  const int64_t c = device::block() % budgets.C, b = device::block() / budgets.C / H;
  const int t = device::thread(), n = int(count_of(tokens, b));
  const Memory memory{bins, sums, chosen, higher_of, equal_of};
  const Scores row{scores + device::block() * tokens.N, tokens.positions ? tokens.positions + b * tokens.N : nullptr, n};
  const cuda_ops::Step step = step_of(budgets, n);
  const int K = c < step.clusters ? smaller(smaller(step.topk, n), int(budgets.K)) : 0;
  int32_t* top = top_keys + device::block() * budgets.K;
  for (int64_t slot = K + t; slot < budgets.K; slot += THREADS) top[slot] = -1;
  if (K == n) {
    for (int i = t; i < K; i += THREADS) top[i] = row.position(i);
  } else if (K > 0 && n <= KEYS) {
    CUDA_OPS_UNROLL(1)
    for (int first = t; first < n; first += AT_ONCE * THREADS) {
      uint32_t key[AT_ONCE];
      row.read_keys(first, key);
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int r = 0; r < AT_ONCE; ++r)
        if (first + r * THREADS < n) keys[first + r * THREADS] = key[r];
    }
    device::barrier();
    list_top(Keys{row, keys, nullptr, n}, K, memory, top);
  } else if (K > 0) {
    int32_t* indices = reinterpret_cast<int32_t*>(keys) + LISTED;
    int listed = n;
    if (int64_t(K) * n < int64_t(SAMPLE) * LISTED / 4 * 3) listed = list_from(row, lower_bound(row, K, memory, keys), memory, keys, indices);
    if (listed == K) {
      for (int i = t; i < K; i += THREADS) top[i] = row.position(indices[i]);
    } else if (listed <= LISTED) {
      list_top(Keys{row, keys, indices, listed}, K, memory, top);
    } else {
      list_top(row, K, memory, top);
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
