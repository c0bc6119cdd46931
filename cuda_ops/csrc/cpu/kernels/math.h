// Exponential and reductions. A reduction's order depends only on the number of elements and the vector width.
#pragma once
#include "vector.h"

namespace {

// Coefficients of e^r for |r| <= ln 2 / 2. float32: the polynomial of degree 6 with the least relative error, 3e-9; float64: Taylor's of degree 13.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int degree = 6;
  static constexpr float coefficient[degree + 1] = {1, 1, 0.499999934f, 0.166665206f, 0.0416683881f, 0.00836871709f, 0.00138145964f};
  static constexpr float lowest = -104.0f, highest = 71.0f, log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, rounder = 12582912.0f;  // a number plus this has the nearest whole number in its last bits
};
template <>
struct Exponential<double> {
  static constexpr int degree = 13;
  static constexpr double coefficient[degree + 1] = {1,           1,           1 / 2.0,        1 / 6.0,         1 / 24.0,         1 / 120.0,        1 / 720.0,
                                                     1 / 5040.0,  1 / 40320.0, 1 / 362880.0,   1 / 3628800.0,   1 / 39916800.0,   1 / 479001600.0,  1 / 6227020800.0};
  static constexpr double lowest = -746.0, highest = 671.0, log2_e = 1.4426950408889634, ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6,
                          rounder = 6755399441055744.0;
};

// e^x: x = m ln 2 + r with |r| <= ln 2 / 2, the polynomial in r, times 2^m.
// Within 2 ulp; e^-inf = 0; NaN stays NaN; above `highest` it saturates, where no softmax comes.
template <class A>
CUDA_OPS_INLINE vec<A> exponential(vec<A> x) {
  using E = Exponential<A>;
  x = lesser(set(E::highest), larger(set(E::lowest), x));
  const vec<A> rounded = fma(x, set(E::log2_e), set(E::rounder)), m = rounded - set(E::rounder);
  const vec<A> r = fma(m, set(-E::ln2_low), fma(m, set(-E::ln2_high), x));
  // Two coefficients at a time, by powers of r^2: half as many steps wait for each other. They are lowered by what times_power raises too much.
  constexpr auto coefficient = [](int i) { return i <= E::degree ? E::coefficient[i] * POWER_LOWERED<A> : A(0); };
  const vec<A> square = r * r;
  vec<A> p = {};
  for (int i = E::degree / 2 * 2; i >= 0; i -= 2) {
    const vec<A> pair = i < E::degree ? fma(set(coefficient(i + 1)), r, set(coefficient(i))) : set(coefficient(i));
    p = i + 2 > E::degree ? pair : fma(p, square, pair);
  }
  return times_power(p, m, rounded);
}

// Joins lane i with lane i + half of them, until one is left.
template <class A, int width, int... lane, class Join>
CUDA_OPS_INLINE A fold_lanes(vec<A> v, const Join& join) {
  if constexpr (width == 0)
    return v[0];
  else
    return fold_lanes<A, width / 2, lane...>(join(v, __builtin_shufflevector(v, v, (lane ^ width)...)), join);
}
template <class A, class Join>
CUDA_OPS_INLINE A join_lanes(vec<A> v, const Join& join) {
  constexpr int count = Vec<A>::lanes;
  if constexpr (count == 2) return fold_lanes<A, 1, 0, 1>(v, join);
  if constexpr (count == 4) return fold_lanes<A, 2, 0, 1, 2, 3>(v, join);
  if constexpr (count == 8) return fold_lanes<A, 4, 0, 1, 2, 3, 4, 5, 6, 7>(v, join);
  if constexpr (count == 16) return fold_lanes<A, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(v, join);
}
template <class A>
CUDA_OPS_INLINE A sum_lanes(vec<A> v) {
  return join_lanes<A>(v, [](vec<A> a, vec<A> b) { return a + b; });
}
template <class A>
CUDA_OPS_INLINE A largest_lane(vec<A> v) {
  return join_lanes<A>(v, [](vec<A> a, vec<A> b) { return larger(a, b); });
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// `count` rows in as few parts of at most `most` as it takes, whose sizes differ by at most one: a part of few rows takes as long as one of many.
struct Parts {
  int64_t number, size, longer;  // the first `longer` parts have one row more than `size`
  Parts(int64_t count, int64_t most) : number((count + most - 1) / most), size(number ? uint32_t(count) / uint32_t(number) : 0), longer(count - number * size) {}
  int64_t begin(int64_t part) const { return part * size + smaller(part, longer); }
};

template <class A>
constexpr A infinity() {
  return A(__builtin_inf());
}

// A row of n numbers lies in memory for a whole number of vectors; what is behind n is set to -inf here.
template <class A>
inline A row_largest(A* row, int64_t n) {
  constexpr int L = Vec<A>::lanes;
  const int64_t padded = round_up(n, L);
  for (int64_t j = n; j < padded; ++j) row[j] = -infinity<A>();
  vec<A> most = set(-infinity<A>());
  for (int64_t j = 0; j < padded; j += L) most = larger(load(row + j), most);
  return largest_lane<A>(most);
}

// Turns a row, after row_largest, into exp(row - largest) and returns the sum.
template <class A>
inline A numerators(A* row, int64_t n, A largest) {
  constexpr int L = Vec<A>::lanes;
  vec<A> total = set(A(0));
  for (int64_t j = 0; j < round_up(n, L); j += L) {
    const vec<A> e = exponential<A>(load(row + j) - set(largest));
    store(row + j, e);
    total = total + e;
  }
  return sum_lanes<A>(total);
}

template <class A>
inline A softmax_numerators(A* row, int64_t n, A* largest) {
  *largest = row_largest(row, n);
  return numerators(row, n, *largest);
}

}  // namespace
