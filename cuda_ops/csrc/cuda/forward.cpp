#include "forward.h"

#include <algorithm>

#include "cells.h"
#include "centroids.h"
#include "groups.h"
#include "kernels/centroid_scores.h"
#include "kernels/cluster_codes.h"
#include "kernels/cluster_rows.h"
#include "kernels/exact_attention.h"
#include "kernels/full_attention.h"
#include "kernels/group_mean.h"
#include "kernels/hash_vectors.h"
#include "kernels/refined_attention.h"
#include "kernels/top_keys.h"

namespace cuda_ops {
namespace {

// One call. A row's own number of valid tokens decides which path it takes, on the device.
struct Call {
  const Tensor &q, &k, &v;
  Shape shape;
  Stream stream;
  float scale;
  int64_t exact_below;
  ValidTokens valid;
  Tensor out, log_mass;

  Call(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale, int64_t exact_below)
      : q(q),
        k(k),
        v(v),
        shape(shape_of(q, k)),
        stream(stream_of(q)),
        scale(float(scale)),
        exact_below(exact_below),
        valid(q, mask, shape.B, shape.N, stream),
        out(empty_heads(q, shape, q.scalar_type())),
        log_mass(empty_floats(q, {shape.B, shape.H, shape.N})) {}

  Tokens clustered_rows() const { return valid.rows(exact_below); }
  // No row can have as many tokens as the clustered path asks for.
  bool all_exact() const { return shape.N < exact_below; }
};

// The means of the query clusters, their scores with all keys, and their top keys.
struct Scored {
  Tensor means, scores, top_keys;
  Scored(const Call& call, const Budgets& budgets)
      : means(empty_floats(call.q, {call.shape.B, call.shape.H, budgets.C, call.shape.D})),
        scores(empty_floats(call.q, {call.shape.B, call.shape.H, budgets.C, call.shape.N})),
        top_keys(empty_integers(call.q, {call.shape.B, call.shape.H, budgets.C, budgets.K})) {}
  void run(const Call& call, const Groups& groups, const Budgets& budgets) {
    const Shape& s = call.shape;
    const Tokens rows = call.clustered_rows();
    launch::group_mean(vectors(call.q), rows, groups, s.B, s.H, s.D, budgets.C, call.scale, data<float>(means), call.stream);
    launch::centroid_scores(data<const float>(means), vectors(call.k), rows, s, budgets, data<float>(scores), call.stream);
    launch::top_keys(data<const float>(scores), rows, s.B, s.H, budgets, data<int32_t>(top_keys), call.stream);
  }
};

// The rows of the exact path, and zeros on padding.
void finish(const Call& call) {
  const Vectors out = vectors(call.out);
  float* log_mass = data<float>(call.log_mass);
  if (call.exact_below > 0)
    launch::full_attention(vectors(call.q), vectors(call.k), vectors(call.v), call.valid.rows(0, call.exact_below), call.shape, call.scale, out, log_mass, call.stream);
  launch::clear_padding(call.valid.all(), call.shape, out, log_mass, call.stream);
}

// Sign hashes of the queries and their clusters.
void cluster_queries(const Call& call, const Tensor& planes, int64_t C, int64_t iterations, Tensor& assignment) {
  const Shape& s = call.shape;
  const int64_t P = planes.size(0), words = (P + 63) / 64;
  const Tokens rows = call.clustered_rows();
  const Tensor packed = torch::stable::contiguous(planes);
  const int64_t count = launch::cluster_codes_memory(s.B, s.H, P, C);
  Tensor codes = empty(call.q, {s.B, s.H, s.N, words}, ScalarType::Long), centroids = empty(call.q, {s.B, s.H, C, words}, ScalarType::Long),
         memory = empty_integers(call.q, {count});
  launch::hash_vectors(vectors(call.q), data<const float>(packed), rows, s.B, s.H, s.D, P, data<uint64_t>(codes), call.stream, {data<int32_t>(memory), count});
  launch::cluster_codes(data<const uint64_t>(codes), rows, s.B, s.H, P, C, iterations, data<int32_t>(memory), data<int32_t>(assignment), data<uint64_t>(centroids),
                        call.stream);
}

// One side of cluster_rows and its memory.
struct Side {
  Tensor assignment, centroids, half_norms, memory;
  launch::RowClusters clusters;
  Side(const Call& call, const Tensor& x, bool keys, int64_t C, int64_t sample)
      : assignment(empty_integers(call.q, {call.shape.B, call.shape.H, call.shape.N})),
        centroids(empty_floats(call.q, {call.shape.B, x.size(1), C, call.shape.D})),
        half_norms(empty_floats(call.q, {call.shape.B, x.size(1), C})),
        memory(empty_integers(call.q, {call.shape.B, x.size(1), launch::cluster_rows_memory(call.shape.N, C, sample)})),
        clusters{vectors(x),          x.size(1), C, keys, data<float>(centroids), data<float>(half_norms), data<int32_t>(memory), data<int32_t>(assignment),
                 call.shape.H / x.size(1)} {}
};

void no_decisions(std::initializer_list<Tensor*> decisions) {
  for (Tensor* each : decisions) torch::stable::fill_(*each, -1);
}

int64_t largest_sample(const Budgets& budgets) {
  int64_t most = 0;
  for (int32_t i = 0; i < budgets.count; ++i) most = std::max<int64_t>(most, budgets.steps[i].sample);
  return most;
}

int32_t budget(int64_t number, int64_t least) {
  STD_TORCH_CHECK(number >= least && number <= INT32_MAX, "clusters and key_clusters must be positive, topk and sample not negative");
  return int32_t(number);
}

}  // namespace

Budgets budgets_of(int64_t clusters, int64_t topk, int64_t key_clusters, int64_t sample, const std::vector<int64_t>& longer, int64_t N) {
  std::vector<int64_t> numbers{0, clusters, topk, key_clusters, sample};
  numbers.insert(numbers.end(), longer.begin(), longer.end());
  STD_TORCH_CHECK(numbers.size() % 5 == 0 && numbers.size() / 5 <= MOST_STEPS, "longer must have five numbers a step, and fewer than 32 steps on a GPU");
  Budgets budgets{0, 0, 0, int32_t(numbers.size() / 5), {}};
  for (int32_t i = 0; i < budgets.count; ++i) {
    const int64_t* step = numbers.data() + 5 * i;
    STD_TORCH_CHECK(i == 0 || step[0] > budgets.steps[i - 1].tokens, "the steps of longer must ascend");
    budgets.steps[i] = {budget(std::min<int64_t>(step[0], INT32_MAX), 0), budget(step[1], 1), budget(std::min(step[2], N), 0), budget(step[3], 1),
                        budget(std::min(step[4], N), 0)};
    budgets.C = std::max(budgets.C, step[1]);
    budgets.K = std::max(budgets.K, std::min(step[2], N));
    budgets.M = std::max(budgets.M, step[3]);
  }
  return budgets;
}

Forward improved_forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Tensor& planes, int64_t clusters, int64_t topk,
                         int64_t iterations, double scale, int64_t exact_below) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(planes.dim() == 2 && planes.size(1) == q.size(3) && planes.size(0) > 0 && planes.size(0) <= 256, "planes must be (P, D), 1 to 256 of them");
  check_type("planes", planes, ScalarType::Float);
  STD_TORCH_CHECK(iterations >= 0, "iterations must not be negative");
  const Call call(q, k, v, mask, scale, exact_below);
  const Shape& s = call.shape;
  const Budgets budgets = budgets_of(clusters, topk, 1, 0, {}, s.N);
  Tensor assignment = empty_integers(q, {s.B, s.H, s.N});
  Scored scored(call, budgets);
  if (call.all_exact()) {
    no_decisions({&assignment, &scored.top_keys});
  } else {
    const Tokens rows = call.clustered_rows();
    cluster_queries(call, planes, budgets.C, iterations, assignment);
    const GroupedTokens groups(q, rows, integers(assignment), s.B, s.H, budgets.C, call.stream);
    scored.run(call, groups.groups(), budgets);
    const CentroidAttention shared(q, s, budgets.C);
    launch::centroid_attention(data<const float>(scored.scores), vectors(v), rows, s, integers(scored.top_keys), budgets, data<float>(shared.part_sums),
                               data<float>(shared.part_masses), data<float>(shared.rest), data<float>(shared.top_mass), data<float>(shared.log_mass), call.stream);
    const Rest rest{data<const float>(shared.rest), data<const float>(shared.log_mass), data<float>(call.log_mass)};
    launch::exact_attention(vectors(q), vectors(k), vectors(v), rows, s, groups.groups(), integers(scored.top_keys), data<const float>(shared.top_mass), budgets,
                            call.scale, rest, vectors(call.out), call.stream);
  }
  finish(call);
  return {call.out, call.log_mass, assignment, assignment, scored.top_keys};
}

Forward refined_forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, const Budgets& budgets, int64_t band, int64_t rounds,
                        double scale, int64_t exact_below) {
  check_queries(q, k, v);
  STD_TORCH_CHECK(rounds >= 0 && band >= 0, "rounds and band must not be negative");
  const Call call(q, k, v, mask, scale, exact_below);
  const Shape& s = call.shape;
  const int64_t sample = largest_sample(budgets);
  Side queries(call, q, false, budgets.C, sample), keys(call, k, true, budgets.M, sample);
  Scored scored(call, budgets);
  if (call.all_exact()) {
    no_decisions({&queries.assignment, &keys.assignment, &scored.top_keys});
  } else {
    const Tokens rows = call.clustered_rows();
    const launch::RowClusters sides[] = {queries.clusters, keys.clusters};
    launch::cluster_rows(sides, 2, rows, budgets, s.B, s.D, rounds, call.stream);
    const auto groups = GroupedTokens::both(q, rows, integers(queries.assignment), budgets.C, integers(keys.assignment), budgets.M, s.B, s.H, call.stream);
    scored.run(call, groups.first.groups(), budgets);
    const Tail tail(q, s, budgets.C, budgets.M);
    launch::tail(data<const float>(scored.scores), vectors(k), vectors(v), rows, s, groups.second.groups(), 1, integers(scored.top_keys), budgets, tail.part_sums(),
                 tail.part_masses(), tail.cells(), call.stream);
    const Refined refined{data<const float>(scored.means), data<const float>(scored.scores), tail.cells(), integers(keys.assignment), integers(scored.top_keys), band,
                          call.scale};
    launch::refined_attention(vectors(q), vectors(k), vectors(v), rows, s, groups.first.groups(), refined, budgets, vectors(call.out), data<float>(call.log_mass),
                              call.stream);
  }
  finish(call);
  return {call.out, call.log_mass, queries.assignment, keys.assignment, scored.top_keys};
}

}  // namespace cuda_ops
