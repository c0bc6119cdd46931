// Each operator on one (batch, head): from tensors' memory to tensors' memory.
#pragma once
#include "attention.h"
#include "hamming.h"

namespace {

// Decisions live in tensors by token position; kernels work on valid indices.
inline int32_t* gather_valid(const int32_t* by_position, const Valid& valid, Scratch& scratch) {
  int32_t* compact = take<int32_t>(scratch, valid.n);
  for (int64_t i = 0; i < valid.n; ++i) compact[i] = by_position[valid.position[i]];
  return compact;
}
inline void scatter_valid(const int32_t* compact, const Valid& valid, int64_t N, int32_t* by_position) {
  for (int64_t token = 0; token < N; ++token) by_position[token] = -1;
  for (int64_t i = 0; i < valid.n; ++i) by_position[valid.position[i]] = compact[i];
}
template <class A>
inline void scatter_values(const A* compact, const Valid& valid, int64_t N, A padding, A* by_position) {
  for (int64_t token = 0; token < N; ++token) by_position[token] = padding;
  for (int64_t i = 0; i < valid.n; ++i) by_position[valid.position[i]] = compact[i];
}
inline void write_top(const int32_t* top, int64_t found, const Valid& valid, int64_t K, int32_t* positions) {
  for (int64_t j = 0; j < K; ++j) positions[j] = j < found ? valid.position[top[j]] : -1;
}

// All tokens valid: for operators whose decisions already leave the padding out.
inline Valid every_token(int64_t N, Scratch& scratch) {
  int32_t* position = take<int32_t>(scratch, N);
  for (int64_t i = 0; i < N; ++i) position[i] = int32_t(i);
  return {position, N};
}

// The entries of a row of top_keys that name a token.
inline int64_t named_keys(const int32_t* top, int64_t K, int64_t N, int32_t* named) {
  int64_t count = 0;
  for (int64_t j = 0; j < K; ++j)
    if (top[j] >= 0 && top[j] < N) named[count++] = top[j];
  return count;
}

template <class A>
void hash_vectors(const Slice& x, const Valid& valid, const Sizes& s, const void* planes, int64_t* codes, Scratch& scratch) {
  const int64_t words = words_of(s.P);
  clear(codes, size_t(s.N * words) * 8);
  uint64_t* compact = take<uint64_t>(scratch, valid.n * words);
  hash_rows(Tokens<A>{x, valid}, valid.n, static_cast<const A*>(planes), s.P, s.D, compact, static_cast<A*>(nullptr), scratch);
  for (int64_t i = 0; i < valid.n; ++i) copy(codes + valid.position[i] * words, compact + i * words, size_t(words) * 8);
}

void cluster_codes(const int64_t* codes, const Valid& valid, const Sizes& s, int64_t iterations, int32_t* assignment, int64_t* centroids, Scratch& scratch) {
  const int64_t words = words_of(s.P);
  uint64_t* compact = take<uint64_t>(scratch, valid.n * words);
  int32_t* clusters = take<int32_t>(scratch, valid.n);
  for (int64_t i = 0; i < valid.n; ++i) copy(compact + i * words, codes + valid.position[i] * words, size_t(words) * 8);
  if (valid.n)
    cluster_hamming(compact, valid.n, words, s.C, iterations, clusters, reinterpret_cast<uint64_t*>(centroids), scratch);
  else
    clear(centroids, size_t(s.C * words) * 8);
  scatter_valid(clusters, valid, s.N, assignment);
}

template <class A>
void group_mean(const Slice& x, const int32_t* assignment, const Sizes& s, double scale, void* means, Scratch& scratch) {
  const Groups groups = group_tokens(assignment, s.N, s.C, scratch);
  const Valid members{groups.order, groups.first[s.C]};
  const Rows<A> rows = valid_rows<A>(x, members, s.D, scratch);
  int32_t* index = take<int32_t>(scratch, members.n);
  for (int64_t i = 0; i < members.n; ++i) index[i] = int32_t(i);
  for (int64_t c = 0; c < s.C; ++c) mean_row(rows, index + groups.first[c], groups.size(c), A(scale), s.D, static_cast<A*>(means) + c * s.D);
}

template <class A>
void centroid_scores(const Slice& centroids, const Slice& k, const Valid& valid, const Sizes& s, void* scores, Scratch& scratch) {
  A* centers = take<A>(scratch, s.C * s.D);
  for (int64_t c = 0; c < s.C; ++c) read_row(centroids, c, s.D, centers + c * s.D);
  const A* panels = pack_panels(valid_rows<A>(k, valid, s.D, scratch), valid.n, s.D, scratch);
  const int64_t stride = panel_count<A>(valid.n) * PANEL<A>;
  A* compact = take<A>(scratch, s.C * stride);
  tile_scores(centers, s.C, panels, valid.n, s.D, compact, stride);
  for (int64_t c = 0; c < s.C; ++c) scatter_values(compact + c * stride, valid, s.N, -infinity<A>(), static_cast<A*>(scores) + c * s.N);
}

template <class A>
inline void gather_scores(const void* scores, int64_t stride, int64_t c, const Valid& valid, A* compact) {
  const A* row = static_cast<const A*>(scores) + c * stride;
  for (int64_t i = 0; i < valid.n; ++i) compact[i] = row[valid.position[i]];
}

template <class A>
void top_keys(const void* scores, int64_t score_stride, const Valid& valid, const Sizes& s, int32_t* top_keys, Scratch& scratch) {
  A* compact = take<A>(scratch, valid.n);
  int32_t* top = take<int32_t>(scratch, s.K);
  const int64_t found = smaller(s.K, valid.n);
  for (int64_t c = 0; c < s.C; ++c) {
    gather_scores(scores, score_stride, c, valid, compact);
    select_top(compact, valid.n, found, top, scratch);
    write_top(top, found, valid, s.K, top_keys + c * s.K);
  }
}

// token position -> valid index, -1 where there is none.
inline int32_t* index_of_position(const Valid& valid, int64_t N, Scratch& scratch) {
  int32_t* index = take<int32_t>(scratch, N);
  for (int64_t token = 0; token < N; ++token) index[token] = -1;
  for (int64_t i = 0; i < valid.n; ++i) index[valid.position[i]] = int32_t(i);
  return index;
}
inline int64_t valid_top(const int32_t* top, int64_t K, int64_t N, const int32_t* index, int32_t* out) {
  int64_t count = named_keys(top, K, N, out), kept = 0;
  for (int64_t j = 0; j < count; ++j)
    if (index[out[j]] >= 0) out[kept++] = index[out[j]];
  return kept;
}

template <class A>
void centroid_attention(const void* scores, int64_t score_stride, const Slice& v, const Valid& valid, const Sizes& s, const int32_t* top_keys, void* rest,
                        void* top_mass, void* log_mass, Scratch& scratch) {
  A *out = static_cast<A*>(rest), *mass = static_cast<A*>(top_mass), *log_sum = static_cast<A*>(log_mass);
  if (!valid.n) {
    clear(out, size_t(s.C * s.D) * sizeof(A));
    for (int64_t c = 0; c < s.C; ++c) {
      mass[c] = A(0);
      log_sum[c] = -infinity<A>();
    }
    return;
  }
  const int64_t stride = round_up(valid.n, Vec<A>::lanes);
  const int32_t* index = index_of_position(valid, s.N, scratch);
  const Rows<A> values = valid_rows<A>(v, valid, s.D, scratch);
  int32_t* top = take<int32_t>(scratch, s.K);
  A *weights = take<A>(scratch, s.C * stride), *total = take<A>(scratch, s.C);
  for (int64_t c = 0; c < s.C; ++c) {
    gather_scores(scores, score_stride, c, valid, weights + c * stride);
    const int64_t count = valid_top(top_keys + c * s.K, s.K, s.N, index, top);
    total[c] = centroid_numerators(weights + c * stride, valid.n, top, count, mass + c, log_sum + c);
  }
  sums_by_block(weights, stride, 1, s.C, values, valid.n, s.D, out, s.D, scratch);
  for (int64_t c = 0; c < s.C; ++c) divide_row(out + c * s.D, total[c], s.D);
}

// to = row * factor + shared, rounded twice: a sum of two stages.
template <class A>
inline void add_shared(const A* row, A factor, const A* shared, int64_t D, A* to) {
  constexpr int L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + L <= D; d += L) store(to + d, load(row + d) * set(factor) + load(shared + d));
  for (; d < D; ++d) to[d] = row[d] * factor + shared[d];
}

template <class A>
void exact_attention(const Slice& q, const Slice& k, const Slice& v, const int32_t* assignment, const int32_t* top_keys, const void* top_mass, const Sizes& s,
                     double scale, void* out, Scratch& scratch) {
  A* result = static_cast<A*>(out);
  const Groups groups = group_tokens(assignment, s.N, s.C, scratch);
  clear(result, size_t(s.N * s.D) * sizeof(A));
  int32_t *named = take<int32_t>(scratch, s.K), *index = take<int32_t>(scratch, s.K < s.N ? s.N : s.K);
  for (int64_t i = 0; i < (s.K < s.N ? s.N : s.K); ++i) index[i] = int32_t(i);
  const ScratchMark before = mark(scratch);
  for (int64_t c = 0; c < s.C; ++c, release(scratch, before)) {
    const int64_t count = named_keys(top_keys + c * s.K, s.K, s.N, named);
    const Valid members{groups.order + groups.first[c], groups.size(c)}, keys{named, count};
    if (!count || !members.n) continue;
    const KeyTile<A> tile = key_tile(valid_rows<A>(k, keys, s.D, scratch), valid_rows<A>(v, keys, s.D, scratch), index, count, s.D, scratch);
    const A mass = static_cast<const A*>(top_mass)[c];
    attend(valid_rows<A>(q, members, s.D, scratch), index, members.n, A(scale), tile, s.D, scratch, [&](int32_t i, A* row, A total, A) {
      scale_row(row, mass / total, s.D, result + members.position[i] * s.D);
    });
  }
}

// Exact attention of all valid queries over all valid keys, with the kernels of the clustered path: one cluster, all keys on top, no rest.
template <class A>
inline void attend_all(const HeadForward& head, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  const int64_t n = valid.n;
  const int32_t* all = every_token(n, scratch).position;
  const KeyTile<A> tile = key_tile(valid_rows<A>(head.k, valid, s.D, scratch), valid_rows<A>(head.v, valid, s.D, scratch), all, n, s.D, scratch);
  attend(valid_rows<A>(head.q, valid, s.D, scratch), all, n, A(head.scale), tile, s.D, scratch, [&](int32_t i, A* row, A total, A largest) {
    scale_row(row, A(1) / total, s.D, row);
    write_row(head.out, valid.position[i], s.D, row);
    log_mass[i] = largest + logarithm(total);
  });
  finish_streams();
}

// scores[c][j] = means_c . k_j.
template <class A, template <class> class Source>
inline void panel_scores(const A* means, int64_t C, const Source<A>& k, int64_t n, int64_t D, A* scores, int64_t stride, Scratch& scratch) {
  each_panel(k, n, D, static_cast<A*>(nullptr), scratch, [&](int64_t first, int64_t, const A* panel, Ahead& ahead, Scratch&) { product(means, D, C, panel, D, scores + first, stride, ahead); });
}

// The decision for every cluster from those of the clusters with members. An empty one scores 0 everywhere: its top keys are the lowest.
inline void write_all_top(const HeadForward& head, const Groups& groups, const int32_t* top, int64_t K, Scratch& scratch) {
  if (!head.top_keys) return;
  int32_t* lowest = take<int32_t>(scratch, K);
  for (int64_t j = 0; j < K; ++j) lowest[j] = int32_t(j);
  for (int64_t c = 0, filled = 0; c < head.listed_clusters; ++c) {
    const bool here = c < head.sizes.C;
    write_top(here && groups.size(c) ? top + filled++ * K : lowest, here ? K : 0, head.valid, head.listed_keys, head.top_keys + c * head.listed_keys);
  }
}

template <class A>
inline void clustered_rows(const HeadForward& head, A* log_mass, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  const Tokens<A> k{head.k, valid}, v{head.v, valid};
  const int64_t n = valid.n, words = words_of(s.P), D = s.D, K = smaller(s.K, n);
  uint64_t *codes = take<uint64_t>(scratch, n * words), *centroids = take<uint64_t>(scratch, s.C * words);
  int32_t* assignment = take<int32_t>(scratch, n);
  A* dense = take<A>(scratch, n * D);
  hash_rows(Tokens<A>{head.q, valid}, n, static_cast<const A*>(head.planes), s.P, D, codes, dense, scratch);
  const Rows<A> q{dense, D, nullptr};
  cluster_hamming(codes, n, words, s.C, head.iterations, assignment, centroids, scratch);
  scatter_valid(assignment, valid, s.N, head.assignment);

  // From here on only the clusters that have members; an empty one would score 0 everywhere: its top keys are the lowest.
  const Groups groups = group_tokens(assignment, n, s.C, scratch);
  int32_t* cluster = take<int32_t>(scratch, smaller(s.C, n));
  const int64_t C = filled_clusters(groups, s.C, cluster);
  const A* means = cluster_means(q, groups, cluster, C, A(head.scale), D, scratch);
  const int64_t stride = score_stride<A>(n);
  A *weights = take<A>(scratch, C * stride), *total = take<A>(scratch, C), *mass = take<A>(scratch, C), *log_sum = take<A>(scratch, C);
  panel_scores(means, C, k, n, D, weights, stride, scratch);
  int32_t* top = take<int32_t>(scratch, C * K);
  each(C, scratch, [&](int64_t c, Scratch& own) {
    select_top(weights + c * stride, n, K, top + c * K, own);
    total[c] = centroid_numerators(weights + c * stride, n, top + c * K, K, mass + c, log_sum + c);
  });
  A* rest = take<A>(scratch, C * D);
  const Parts parts(C, scratch.shared ? SUM_ROWS : C);
  each(parts.number, scratch, [&](int64_t part, Scratch& own) {
    const int64_t c = parts.begin(part);
    sums_by_block(weights + c * stride, stride, 1, parts.begin(part + 1) - c, v, n, D, rest + c * D, D, own);
  });
  for (int64_t c = 0; c < C; ++c) divide_row(rest + c * D, total[c], D);

  write_all_top(head, groups, top, K, scratch);
  each(C, scratch, [&](int64_t c, Scratch& own) {
    const int32_t* members = groups.order + groups.first[cluster[c]];
    const int64_t count = groups.size(cluster[c]);
    const A* shared = rest + c * D;
    for (int64_t i = 0; i < count; ++i) log_mass[members[i]] = log_sum[c];
    if (!K) {
      for (int64_t i = 0; i < count; ++i) write_row(head.out, valid.position[members[i]], D, shared);
      return finish_streams();
    }
    const KeyTile<A> tile = compact_tile(k, v, top + c * K, K, D, own);
    attend(q, members, count, A(head.scale), tile, D, own, [&](int32_t i, A* row, A sum, A) {
      add_shared(row, mass[c] / sum, shared, D, row);
      write_row(head.out, valid.position[i], D, row);
    });
    finish_streams();
  });
}

// One fused forward: decisions of -1 where there are none, zeros on padding, and `rows` for the rows that are clustered.
template <class A, void (*rows)(const HeadForward&, A*, Scratch&)>
void fused(const HeadForward& head, Scratch& scratch) {
  const Sizes& s = head.sizes;
  const Valid& valid = head.valid;
  clear_padding(head.out, valid, s);
  if (head.exact || !valid.n) {
    for (int64_t i = 0; head.assignment && i < s.N; ++i) head.assignment[i] = -1;
    for (int64_t i = 0; head.key_assignment && i < s.N; ++i) head.key_assignment[i] = -1;
    for (int64_t i = 0; head.top_keys && i < head.listed_clusters * head.listed_keys; ++i) head.top_keys[i] = -1;
  }
  A* log_mass = take<A>(scratch, valid.n);
  if (valid.n) (head.exact ? attend_all<A> : rows)(head, log_mass, scratch);
  scatter_values(log_mass, valid, s.N, -infinity<A>(), static_cast<A*>(head.log_mass));
}

}  // namespace
