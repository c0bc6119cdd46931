// Runs every kernel once in each order of threads and prints a number for what it wrote: the same in all orders, and whatever is planted in a kernel changes it or is
// reported. A stage takes a few lines: memory that it needs, its launcher, what it wrote. The tests compile this plain and with each sanitizer, and fail if a line of
// the kernels is never executed.
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "centroid_attention.h"
#include "centroid_scores.h"
#include "cluster_codes.h"
#include "cluster_rows.h"
#include "exact_attention.h"
#include "full_attention.h"
#include "full_attention_backward.h"
#include "group_mean.h"
#include "group_scatter.h"
#include "hash_vectors.h"
#include "improved_clustered_backward.h"
#include "refined_attention.h"
#include "refined_backward.h"
#include "runtime.h"
#include "tail.h"
#include "top_keys.h"
#include "valid_tokens.h"
#ifdef CUDA_OPS_PTX_TABLE
#include CUDA_OPS_PTX_TABLE
#endif

using namespace cuda_ops;

namespace {

constexpr int64_t GROUP = 2, N = 67, D = 70, C = 5, K = 7, M = 3, P = 70, SAMPLE = 32, WORDS = (P + 63) / 64;
constexpr int64_t LONG = 2100, FEW = 5, MANY = 600;  // tokens and clusters of lists that are cut into several parts
constexpr float SCALE = 0.3f;
int64_t B, H;  // of the stages that follow
const Budgets BUDGETS{C, K, M, 2, {{0, 4, 5, 2, 16}, {40, C, K, M, SAMPLE}}};

// Each array is memory of its own, so that AddressSanitizer sees where it ends; NaN, as integers -1, until something is written.
std::vector<std::unique_ptr<char[]>> arrays;
template <class T>
T* memory(int64_t count) {
  arrays.emplace_back(new char[size_t(count) * sizeof(T)]);
  std::memset(arrays.back().get(), 0xff, size_t(count) * sizeof(T));
  return reinterpret_cast<T*>(arrays.back().get());
}
template <class T>
T* zeros(int64_t count) {
  T* array = memory<T>(count);
  std::memset(static_cast<void*>(array), 0, size_t(count) * sizeof(T));
  return array;
}

// What it is to print: nothing more comes after a line that is another.
std::ifstream expected;
// All that it wrote, for those who compare numbers: a line of stage, type and count, and the numbers as they lie in memory.
std::ofstream values;
template <class T>
constexpr char letter_of = std::is_same_v<T, float> ? 'f' : std::is_same_v<T, bfloat16> ? 'b' : sizeof(T) == 4 ? 'i' : 'u';

template <class T>
void wrote(const char* stage, const T* array, int64_t count) {
  uint64_t hash = 1469598103934665603u;
  for (size_t i = 0; i < size_t(count) * sizeof(T); ++i) hash = (hash ^ reinterpret_cast<const unsigned char*>(array)[i]) * 1099511628211u;
  char line[80];
  std::snprintf(line, sizeof line, "%s %016llx", stage, static_cast<unsigned long long>(hash));
  std::puts(line);
  values << stage << ' ' << letter_of<T> << ' ' << count << '\n';
  values.write(reinterpret_cast<const char*>(array), count * int64_t(sizeof(T)));
  std::string wanted;
  if (expected.is_open() && (!std::getline(expected, wanted) || wanted != line)) std::exit(1);
}

std::mt19937 numbers;
float normal() {
  float sum = 0;
  for (int i = 0; i < 12; ++i) sum += float(numbers()) / 4294967296.0f;
  return sum - 6;
}

template <class T>
constexpr Type type_of = std::is_same_v<T, float> ? Type::float32 : std::is_same_v<T, bfloat16> ? Type::bfloat16 : Type::float16;

// (B, heads, tokens, size), NaN where a token is not valid.
template <class T>
Vectors random_vectors(int64_t heads, const bool* mask, int64_t tokens = N, int64_t size = D) {
  const int64_t row = heads * tokens * size;
  T* x = memory<T>(B * row);
  for (int64_t i = 0; i < B * row; ++i) narrow(mask[i / row * tokens + i / size % tokens] ? normal() : NAN, x[i]);
  return {x, row, tokens * size, size, 1, type_of<T>};
}

struct Rows {
  bool* mask;
  Tokens tokens;
};
Rows list_rows(int64_t tokens, int likely) {
  bool* mask = memory<bool>(B * tokens);
  for (int64_t i = 0; i < B * tokens; ++i) mask[i] = int(numbers() % 10) < (i < tokens ? 8 : likely);
  int32_t *positions = memory<int32_t>(B * tokens), *indices = memory<int32_t>(B * tokens), *counts = memory<int32_t>(B);
  launch::list_valid_tokens({mask, tokens, 1}, B, tokens, positions, indices, counts, nullptr);
  wrote("positions", positions, B * tokens);
  wrote("indices", indices, B * tokens);
  wrote("counts", counts, B);
  return {mask, {positions, indices, counts, tokens, 0, INT64_MAX}};
}

// The last cluster has no members.
Groups group(const Rows& rows, int64_t clusters, int32_t** assignment) {
  const int64_t tokens = rows.tokens.N;
  *assignment = memory<int32_t>(B * H * tokens);
  for (int64_t i = 0; i < B * H * tokens; ++i) (*assignment)[i] = rows.mask[i / (H * tokens) * tokens + i % tokens] ? int32_t(numbers() % unsigned(clusters - 1)) : -1;
  int32_t *order = memory<int32_t>(B * H * tokens), *first = memory<int32_t>(B * H * (clusters + 1));
  const int64_t counts = B * H * group_parts(tokens) * clusters;
  const launch::Grouping grouping{*assignment, clusters, memory<int32_t>(counts), memory<int32_t>(counts), order, first};
  launch::group_tokens(&grouping, 1, rows.tokens, B, H, nullptr);
  wrote("order", order, B * H * tokens);
  wrote("first", first, B * H * (clusters + 1));
  return {order, first};
}

template <class T>
void run() {
  const Shape shape{B, H, N, D, GROUP};
  int32_t *clusters, *key_clusters, *ignored;
  for (const int64_t count : {FEW, MANY}) group(list_rows(LONG, 9), count, &ignored);
  const Rows rows = list_rows(N, 4);
  const Vectors q = random_vectors<T>(H, rows.mask), k = random_vectors<T>(H / GROUP, rows.mask), v = random_vectors<T>(H / GROUP, rows.mask);
  const Vectors out = random_vectors<T>(H, rows.mask);
  const int64_t elements = B * H * N * D;

  float* planes = memory<float>(P * D);
  for (int64_t i = 0; i < P * D; ++i) planes[i] = normal();
  uint64_t* codes = memory<uint64_t>(B * H * N * WORDS);
  launch::hash_vectors(q, planes, rows.tokens, B, H, D, P, codes, nullptr);
  wrote("hash_vectors", codes, B * H * N * WORDS);

  int32_t* hashed = memory<int32_t>(B * H * N);
  uint64_t* code_centroids = memory<uint64_t>(B * H * C * WORDS);
  launch::cluster_codes(codes, rows.tokens, B, H, P, C, 3, zeros<int32_t>(launch::cluster_codes_memory(B, H, P, C)), hashed, code_centroids, nullptr);
  wrote("cluster_codes", hashed, B * H * N);
  wrote("code_centroids", code_centroids, B * H * C * WORDS);

  const auto side = [&](const Vectors& x, int64_t heads, int64_t most, bool keys) {
    return launch::RowClusters{x, heads, most, keys, memory<float>(B * heads * most * D), memory<float>(B * heads * most),
                               memory<int32_t>(B * heads * launch::cluster_rows_memory(N, most, SAMPLE)), memory<int32_t>(B * H * N), H / heads};
  };
  const launch::RowClusters sides[] = {side(q, H, C, false), side(k, H / GROUP, M, true)};
  launch::cluster_rows(sides, 2, rows.tokens, BUDGETS, B, D, 3, nullptr);
  for (const launch::RowClusters& each : sides) {
    wrote("cluster_rows", each.assignment, B * H * N);
    wrote("row_centroids", each.centroids, B * each.heads * each.C * D);
  }

  const Groups groups = group(rows, C, &clusters), key_groups = group(rows, M, &key_clusters);
  float* centroids = memory<float>(B * H * C * D);
  launch::group_mean(q, rows.tokens, groups, B, H, D, C, SCALE, centroids, nullptr);
  wrote("group_mean", centroids, B * H * C * D);

  float* scattered = memory<float>(elements);
  launch::group_scatter(centroids, clusters, B, H, N, C, D * int64_t(sizeof(float)), scattered, nullptr);
  wrote("group_scatter", scattered, elements);
  launch::group_scatter(centroids, clusters, B, H, N, C, 6, scattered, nullptr);
  wrote("group_scatter", scattered, B * H * N * 6 / int64_t(sizeof(float)));

  float* scores = memory<float>(B * H * C * N);
  launch::centroid_scores(centroids, k, rows.tokens, shape, BUDGETS, scores, nullptr);
  wrote("centroid_scores", scores, B * H * C * N);

  int32_t* top = memory<int32_t>(B * H * C * K);
  launch::top_keys(scores, rows.tokens, B, H, BUDGETS, top, nullptr);
  wrote("top_keys", top, B * H * C * K);

  const int64_t parts = launch::centroid_attention_parts(N);
  float *rest = memory<float>(B * H * C * D), *top_mass = memory<float>(B * H * C), *log_mass = memory<float>(B * H * C);
  launch::centroid_attention(scores, v, rows.tokens, shape, top, BUDGETS, memory<float>(B * H * parts * C * D), memory<float>(B * H * parts * C * 3), rest, top_mass,
                             log_mass, nullptr);
  wrote("centroid_attention", rest, B * H * C * D);
  wrote("top_mass", top_mass, B * H * C);
  wrote("log_mass", log_mass, B * H * C);

  const int64_t segments = launch::tail_segments(N, M), cells = B * H * C * M;
  const Cells tail{memory<float>(cells), memory<float>(cells), memory<float>(cells * D), memory<float>(cells * D)};
  launch::tail(scores, k, v, rows.tokens, shape, key_groups, 1, top, BUDGETS, memory<float>(B * H * segments * C * 2 * D), memory<float>(B * H * segments * C * 3), tail,
               nullptr);
  wrote("tail", tail.keys, cells * D);
  wrote("tail_values", tail.values, cells * D);
  wrote("tail_mass", tail.log_mass, cells);
  wrote("tail_spread", tail.spread, cells);

  float* query_mass = memory<float>(B * H * N);
  launch::full_attention(q, k, v, rows.tokens, shape, SCALE, out, query_mass, nullptr);
  launch::clear_padding(rows.tokens, shape, out, query_mass, nullptr);
  wrote("full_attention", static_cast<const T*>(out.base), elements);
  wrote("query_mass", query_mass, B * H * N);

  launch::exact_attention(q, k, v, rows.tokens, shape, groups, top, top_mass, BUDGETS, SCALE, {rest, log_mass, query_mass}, out, nullptr);
  wrote("exact_attention", static_cast<const T*>(out.base), elements);
  wrote("exact_mass", query_mass, B * H * N);

  launch::refined_attention(q, k, v, rows.tokens, shape, groups, {centroids, scores, tail, key_clusters, top, 3, SCALE}, BUDGETS, out, query_mass, nullptr);
  wrote("refined_attention", static_cast<const T*>(out.base), elements);
  wrote("refined_mass", query_mass, B * H * N);

  const Vectors grad_k = random_vectors<T>(H / GROUP, rows.mask), grad_v = random_vectors<T>(H / GROUP, rows.mask);
  const auto wrote_gradients = [&] {
    wrote("grad_q", static_cast<const T*>(out.base), elements);
    wrote("grad_k", static_cast<const T*>(grad_k.base), elements / GROUP);
    wrote("grad_v", static_cast<const T*>(grad_v.base), elements / GROUP);
  };
  const Incoming in{random_vectors<T>(H, rows.mask), q, k, v, rows.tokens, shape, SCALE};
  float* statistics = memory<float>(B * H * N * 3);
  launch::row_statistics(in, all_tokens(N), statistics, nullptr);
  launch::query_gradients(in, all_tokens(N), statistics, nullptr, nullptr, out, nullptr);
  launch::key_gradients(in, statistics, grad_k, grad_v, nullptr);
  wrote_gradients();

  int32_t *keys = memory<int32_t>(B * H * C * K), *counts = memory<int32_t>(B * H * C);
  launch::list_top_keys(top, rows.tokens, B, H, C, K, keys, counts, nullptr);
  const Lists lists{groups, keys, counts, C, K};
  launch::row_statistics(in, lists, statistics, nullptr);
  const Budgets all{C, K, M, 1, {{0, C, K, M, SAMPLE}}};
  float *weights = memory<float>(B * H * C * N), *products = memory<float>(B * H * C * N), *mean_grad = memory<float>(B * H * C * D), *mass = memory<float>(B * H * C);
  launch::group_mean(in.grad, rows.tokens, groups, B, H, D, C, 1, mean_grad, nullptr);
  launch::centroid_scores(centroids, k, rows.tokens, shape, all, weights, nullptr);
  launch::centroid_scores(mean_grad, v, rows.tokens, shape, all, products, nullptr);
  launch::centroid_gradients(rows.tokens, lists, B, H, statistics, weights, products, mass, nullptr);
  float* means = memory<float>(B * H * C * D);
  launch::mean_gradients(products, k, rows.tokens, shape, groups, C, memory<float>(B * H * launch::mean_gradient_parts(N) * C * D), means, nullptr);
  launch::query_gradients(in, lists, statistics, mass, means, out, nullptr);
  float *slots_k = memory<float>(B * H * C * K * D), *slots_v = memory<float>(B * H * C * K * D);
  launch::listed_key_gradients(in, lists, statistics, mass, slots_k, slots_v, nullptr);
  launch::clustered_key_gradients({products, weights, centroids, mean_grad, slots_k, slots_v}, rows.tokens, shape, lists, grad_k, grad_v, nullptr);
  wrote_gradients();

  const int64_t clustered = B * H * C, W = 3, width = 2 * W + 1;
  const CellGradients cell_grads{memory<float>(cells), memory<float>(cells), memory<float>(cells), memory<float>(cells * D), memory<float>(cells * D)};
  launch::centroid_scores(centroids, k, rows.tokens, shape, BUDGETS, scores, nullptr);
  RefinedBackward refined{in, BUDGETS, W, width, clusters, key_clusters, top, groups, key_groups, centroids, scores, tail, memory<float>(B * H * N * width),
                          memory<float>(B * H * N * width), memory<float>(B * H * N * width), memory<QueryTotals>(B * H * N), memory<float>(elements),
                          memory<float>(clustered * K * D), memory<float>(clustered * K * D), cell_grads, memory<float>(elements), memory<float>(elements),
                          memory<float>(clustered * D * refined_mean_parts(N)), memory<float>(clustered * D), out, grad_k, grad_v};
  launch::refined_band_backward(refined, nullptr);
  launch::refined_queries_backward(refined, nullptr);
  launch::refined_clusters_backward(refined, nullptr);
  launch::refined_tail_backward(refined, nullptr);
  launch::refined_keys_backward(refined, nullptr);
  launch::refined_means_backward(refined, nullptr);
  wrote_gradients();
}

float* normals(int64_t count) {
  float* x = memory<float>(count);
  for (int64_t i = 0; i < count; ++i) x[i] = normal();
  return x;
}

// Rows that lie at multiples of 16 bytes; more cells and neighbours than are attended to at a time; rows of which one number is left out.
template <class T, int64_t SIZE>
void run_aligned() {
  constexpr int64_t CELLS = 40, BAND = 6;
  const int64_t cells = B * H * C * CELLS;
  const Shape shape{B, H, N, SIZE, 1};
  const Budgets budgets{C, K, CELLS, 1, {{0, C, K, CELLS, SAMPLE}}};
  const Rows rows = list_rows(N, 4);
  const Vectors q = random_vectors<T>(H, rows.mask, N, SIZE), k = random_vectors<T>(H, rows.mask, N, SIZE), out = random_vectors<T>(H, rows.mask, N, SIZE);
  int32_t* ignored;
  float *means = memory<float>(B * H * C * SIZE), *query_mass = memory<float>(B * H * N);
  const Groups groups = group(rows, C, &ignored);
  launch::group_mean(q, rows.tokens, groups, B, H, SIZE, C, SCALE, means, nullptr);
  wrote("group_mean", means, B * H * C * SIZE);
  launch::full_attention(q, k, k, rows.tokens, shape, SCALE, out, query_mass, nullptr);
  launch::clear_padding(rows.tokens, shape, out, query_mass, nullptr);
  wrote("full_attention", static_cast<const T*>(out.base), B * H * N * SIZE);
  launch::full_attention(q, k, k, rows.tokens, {B, H, N, SIZE - 1, 1}, SCALE, out, query_mass, nullptr);
  wrote("full_attention", static_cast<const T*>(out.base), B * H * N * SIZE);

  const Vectors grad_k = random_vectors<T>(H, rows.mask, N, SIZE), grad_v = random_vectors<T>(H, rows.mask, N, SIZE);
  const Incoming in{random_vectors<T>(H, rows.mask, N, SIZE), q, k, k, rows.tokens, shape, SCALE};
  float* statistics = memory<float>(B * H * N * 3);
  launch::row_statistics(in, all_tokens(N), statistics, nullptr);
  launch::query_gradients(in, all_tokens(N), statistics, nullptr, nullptr, out, nullptr);
  launch::key_gradients(in, statistics, grad_k, grad_v, nullptr);
  wrote("grad_q", static_cast<const T*>(out.base), B * H * N * SIZE);
  wrote("grad_k", static_cast<const T*>(grad_k.base), B * H * N * SIZE);
  wrote("grad_v", static_cast<const T*>(grad_v.base), B * H * N * SIZE);

  int32_t *key_clusters, *top = memory<int32_t>(B * H * C * K);
  const float* scores = normals(B * H * C * N);
  launch::top_keys(scores, rows.tokens, B, H, budgets, top, nullptr);
  const int64_t parts = launch::centroid_attention_parts(N);
  float *rest = memory<float>(B * H * C * SIZE), *top_mass = memory<float>(B * H * C), *log_mass = memory<float>(B * H * C);
  launch::centroid_attention(scores, k, rows.tokens, shape, top, budgets, memory<float>(B * H * parts * C * SIZE), memory<float>(B * H * parts * C * 3), rest, top_mass,
                             log_mass, nullptr);
  wrote("centroid_attention", rest, B * H * C * SIZE);
  launch::exact_attention(q, k, k, rows.tokens, shape, groups, top, top_mass, budgets, SCALE, {rest, log_mass, query_mass}, out, nullptr);
  wrote("exact_attention", static_cast<const T*>(out.base), B * H * N * SIZE);
  group(rows, CELLS, &key_clusters);
  const Cells tail{normals(cells), normals(cells), normals(cells * SIZE), normals(cells * SIZE)};
  launch::refined_attention(q, k, k, rows.tokens, shape, groups, {means, scores, tail, key_clusters, top, BAND, SCALE}, budgets, out, query_mass, nullptr);
  wrote("refined_attention", static_cast<const T*>(out.base), B * H * N * SIZE);
  wrote("refined_mass", query_mass, B * H * N);
}

// Short 16-bit rows, aligned and not, with more centroids than are split at once.
void cluster_short_rows(int64_t D) {
  constexpr int64_t TOKENS = 300, CLUSTERS = 120;
  const Rows rows = list_rows(TOKENS, 4);
  const Vectors x = random_vectors<bfloat16>(H, rows.mask, TOKENS, D);
  const launch::RowClusters side{x, H, CLUSTERS, false, memory<float>(B * H * CLUSTERS * D), memory<float>(B * H * CLUSTERS),
                                 memory<int32_t>(B * H * launch::cluster_rows_memory(TOKENS, CLUSTERS, SAMPLE)), memory<int32_t>(B * H * TOKENS), 1};
  launch::cluster_rows(&side, 1, rows.tokens, {CLUSTERS, K, M, 1, {{0, CLUSTERS, K, M, SAMPLE}}}, B, D, 2, nullptr);
  wrote("cluster_rows", side.assignment, B * H * TOKENS);
  wrote("row_centroids", side.centroids, B * H * CLUSTERS * D);
}

// Heads of at most 64 numbers, in rows at multiples of 16 bytes: what such rows allow, with more clusters than are compared at a time.
template <class T, int64_t TOKENS>
void run_short_heads() {
  constexpr int64_t SIZE = 24, CLUSTERS = 40, CELLS = 5;
  const int64_t cells = B * H * CLUSTERS * CELLS;
  const Shape shape{B, H, TOKENS, SIZE, 1};
  const Budgets budgets{CLUSTERS, K, CELLS, 1, {{0, CLUSTERS, K, CELLS, SAMPLE}}};
  const Rows rows = list_rows(TOKENS, 4);
  const Vectors q = random_vectors<T>(H, rows.mask, TOKENS, SIZE), out = random_vectors<T>(H, rows.mask, TOKENS, SIZE);
  int32_t *ignored, *key_clusters, *top = memory<int32_t>(B * H * CLUSTERS * K);

  uint64_t* codes = memory<uint64_t>(B * H * TOKENS * WORDS);
  launch::hash_vectors(q, normals(P * SIZE), rows.tokens, B, H, SIZE, P, codes, nullptr);
  wrote("hash_vectors", codes, B * H * TOKENS * WORDS);
  const launch::RowClusters side{q, H, CLUSTERS, false, memory<float>(B * H * CLUSTERS * SIZE), memory<float>(B * H * CLUSTERS),
                                 memory<int32_t>(B * H * launch::cluster_rows_memory(TOKENS, CLUSTERS, SAMPLE)), memory<int32_t>(B * H * TOKENS), 1};
  launch::cluster_rows(&side, 1, rows.tokens, budgets, B, SIZE, 3, nullptr);
  wrote("cluster_rows", side.assignment, B * H * TOKENS);
  wrote("row_centroids", side.centroids, B * H * CLUSTERS * SIZE);

  const Groups groups = group(rows, CLUSTERS, &ignored);
  float *means = normals(B * H * CLUSTERS * SIZE), *scores = memory<float>(B * H * CLUSTERS * TOKENS), *query_mass = memory<float>(B * H * TOKENS);
  launch::centroid_scores(means, q, rows.tokens, shape, budgets, scores, nullptr);
  wrote("centroid_scores", scores, B * H * CLUSTERS * TOKENS);
  launch::top_keys(scores, rows.tokens, B, H, budgets, top, nullptr);
  launch::exact_attention(q, q, q, rows.tokens, shape, groups, top, normals(B * H * CLUSTERS), budgets, SCALE, {}, out, nullptr);
  wrote("exact_attention", static_cast<const T*>(out.base), B * H * TOKENS * SIZE);
  group(rows, CELLS, &key_clusters);
  const Cells tail{normals(cells), normals(cells), normals(cells * SIZE), normals(cells * SIZE)};
  launch::refined_attention(q, q, q, rows.tokens, shape, groups, {means, scores, tail, key_clusters, top, 2, SCALE}, budgets, out, query_mass, nullptr);
  wrote("refined_attention", static_cast<const T*>(out.base), B * H * TOKENS * SIZE);
}

// Hashed K-means by one block for a head or, of more tokens, by several: clusters whose counters every block has, whose counters fit in shared memory, and more.
void run_many_codes(int64_t TOKENS) {
  const Rows rows = list_rows(TOKENS, 9);
  uint64_t* codes = memory<uint64_t>(B * H * TOKENS * WORDS);
  for (int64_t i = 0; i < B * H * TOKENS * WORDS; ++i) codes[i] = uint64_t(numbers()) << 32 | numbers();
  for (const int64_t clusters : {FEW, int64_t(50), MANY}) {
    int32_t* assignment = memory<int32_t>(B * H * TOKENS);
    uint64_t* centroids = memory<uint64_t>(B * H * clusters * WORDS);
    int32_t* counters = zeros<int32_t>(launch::cluster_codes_memory(B, H, P, clusters));
    launch::cluster_codes(codes, rows.tokens, B, H, P, clusters, 3, counters, assignment, centroids, nullptr);
    wrote("cluster_codes", assignment, B * H * TOKENS);
    wrote("code_centroids", centroids, B * H * clusters * WORDS);
  }
}

// Clusters of keys that take several segments, rows at multiples of 16 bytes, and lists of top keys that are searched: every fourth valid token.
void run_long_tail() {
  constexpr int64_t TOKENS = 300, CLUSTERS = 2, LISTED = 270, SIZE = 72;
  const Rows rows = list_rows(TOKENS, 9);
  const Shape shape{B, H, TOKENS, SIZE, 1};
  const Budgets budgets{C, LISTED, CLUSTERS, 1, {{0, C, LISTED, CLUSTERS, SAMPLE}}};
  const Vectors k = random_vectors<bfloat16>(H, rows.mask, TOKENS, SIZE);
  int32_t *ignored, *top = memory<int32_t>(B * H * C * LISTED);
  for (int64_t i = 0; i < B * H * C * LISTED; ++i) {
    const int64_t b = i / (H * C * LISTED), rank = i % LISTED * 4;
    if (rank < rows.tokens.counts[b]) top[i] = rows.tokens.positions[b * TOKENS + rank];
  }
  float* scores = memory<float>(B * H * C * TOKENS);
  for (int64_t i = 0; i < B * H * C * TOKENS; ++i) scores[i] = normal();
  const int64_t segments = launch::tail_segments(TOKENS, CLUSTERS), cells = B * H * C * CLUSTERS;
  const Cells tail{memory<float>(cells), memory<float>(cells), memory<float>(cells * SIZE), memory<float>(cells * SIZE)};
  launch::tail(scores, k, k, rows.tokens, shape, group(rows, CLUSTERS, &ignored), 1, top, budgets, memory<float>(B * H * segments * C * 2 * SIZE),
               memory<float>(B * H * segments * C * 3), tail, nullptr);
  wrote("tail", tail.keys, cells * SIZE);
  wrote("tail_values", tail.values, cells * SIZE);
  wrote("tail_mass", tail.log_mass, cells);
  wrote("tail_spread", tail.spread, cells);
}

// Parts of several whole tiles without a mask, whose scores are read four at once, and a list of top keys that is searched.
void run_long_parts() {
  constexpr int64_t TOKENS = 8192, LISTED = 80, SIZE = 64;
  const Tokens tokens{nullptr, nullptr, nullptr, TOKENS, 0, INT64_MAX};
  const Shape shape{B, 1, TOKENS, SIZE, 1};
  const Budgets budgets{C, LISTED, 1, 1, {{0, C, LISTED, 1, SAMPLE}}};
  bool* valid = memory<bool>(B * TOKENS);
  std::fill(valid, valid + B * TOKENS, true);
  const Vectors v = random_vectors<bfloat16>(1, valid, TOKENS, SIZE);
  int32_t* top = memory<int32_t>(B * C * LISTED);
  for (int64_t i = 0; i < B * C * LISTED; ++i) top[i] = int32_t(300 + i % LISTED);
  float* scores = memory<float>(B * C * TOKENS);
  for (int64_t i = 0; i < B * C * TOKENS; ++i) scores[i] = normal();
  const int64_t parts = launch::centroid_attention_parts(TOKENS);
  float *rest = memory<float>(B * C * SIZE), *top_mass = memory<float>(B * C), *log_mass = memory<float>(B * C);
  launch::centroid_attention(scores, v, tokens, shape, top, budgets, memory<float>(B * parts * C * SIZE), memory<float>(B * parts * C * 3), rest, top_mass,
                             log_mass, nullptr);
  wrote("centroid_attention", rest, B * C * SIZE);
  wrote("top_mass", top_mass, B * C);
  wrote("log_mass", log_mass, B * C);
}

// The top keys of one row.
void run_top_keys(const std::vector<float>& numbers_of_row, int32_t topk) {
  const int64_t tokens = int64_t(numbers_of_row.size());
  float* scores = memory<float>(tokens);
  std::copy(numbers_of_row.begin(), numbers_of_row.end(), scores);
  int32_t* top = memory<int32_t>(topk);
  launch::top_keys(scores, {nullptr, nullptr, nullptr, tokens, 0, INT64_MAX}, 1, 1, {1, topk, 1, 1, {{0, 1, topk, 1, 0}}}, top, nullptr);
  wrote("top_keys", top, topk);
}

// All keys; then of more than shared memory holds: those above a bound, too many of them, and none but the top keys.
void run_top_keys_of_rows() {
  constexpr int32_t TOKENS = 8300, SAMPLED = 1100;
  run_top_keys({3, 1, 2}, 3);
  std::vector<float> row(TOKENS);
  for (float& score : row) score = normal();
  run_top_keys(row, 40);
  run_top_keys(std::vector<float>(TOKENS, 1), 40);
  for (int32_t s = 0; s < SAMPLED; ++s) row[size_t(s / WARP * (TOKENS / WARP) / (4096 / WARP) * WARP + s % WARP)] = 1000;
  run_top_keys(row, SAMPLED);
}

}  // namespace

// Which orders, as digits; all of them if nothing is said. A file of what is expected, or nothing; a file for the values. PLANTED_BATCH: rows of the first stages.
int main(int count, char** arguments) {
  use_device(0);
  const char* const batch = std::getenv("PLANTED_BATCH");
  if (count > 2 && *arguments[2]) expected.open(arguments[2]);
  if (count > 3) values.open(arguments[3], std::ios::binary);
  for (const char order : std::string(count > 1 ? arguments[1] : "01234")) {
    host_cuda::order = host_cuda::Order(order - '0');
    numbers.seed(7);
    B = batch ? std::atoi(batch) : 2;
    H = 2;
    run<float>();
    run<bfloat16>();
    B = H = 1;  // what follows differs in its rows: other heads would only take time
    run_aligned<bfloat16, 72>();
    run_aligned<bfloat16, 136>();
    run_short_heads<float, N>();
    run_short_heads<bfloat16, N>();
    run_short_heads<bfloat16, N - 1>();
    for (const int64_t D : {24, 22}) cluster_short_rows(D);
    run_many_codes(300);
    run_many_codes(90);
    run_long_tail();
    run_long_parts();
    run_top_keys_of_rows();
    arrays.clear();
  }
  return last_error() ? 1 : 0;
}
