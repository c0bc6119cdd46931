#include "refined_attention.h"

#include "attend.h"
#include "segments.h"
#include "top_list.h"

namespace {

// So many neighbours of a query at a time; so many threads to a pair without tensor cores; most top keys that are kept in shared memory.
constexpr int NEIGHBOURS = 9, LANES = 8, SHORT_LIST = 256;

// What a query block shares of its cluster's cells, the virtual keys: logits x . K_cm + (ln Z_cm - mean . K_cm) + min(1, |x - mean|^2 spread_cm / 2).
struct SharedCells {
  float *shift, *mass, *spread;  // (KEYS): of one tile, -mean . K, ln Z, and the spread
  float *half, *own;             // (QUERIES): |x - mean|^2 / 2, and (x - mean) . middle
  float *mean, *middle;          // (SIZE): the cluster's, and the mean of the cells' keys; zeros behind D
  // All of a logit but ln Z, whose product is with the key less the middle.
  CUDA_OPS_DEVICE float logit(float product, int r, int j) const { return product + (own[r] + shift[j] + lesser(half[r] * spread[j], 1)); }
};

struct CellRows {
  const float *keys, *values, *log_mass, *spread;  // (M, D), (M): of one cluster
  int D;
  int64_t count;
};

// For the FMA units.
struct VectorCells : CellRows {
  SharedCells shared;
  CUDA_OPS_DEVICE float key(int64_t j, int64_t d) const { return keys[j * D + d]; }
  CUDA_OPS_DEVICE float value(int64_t j, int64_t d) const { return values[j * D + d]; }
  CUDA_OPS_DEVICE void prepare(int64_t j0) const {
    const int lane = device::thread() % WARP;
    for (int j = device::thread() / WARP; j < KEYS; j += device::threads() / WARP) {
      const bool here = j0 + j < count;
      float product = 0;
      for (int64_t d = lane; d < D && here; d += WARP) product = device::fma(shared.mean[d], key(j0 + j, d), product);
      product = warp_sum(product);
      if (lane == 0 && here) {
        shared.shift[j] = -product;
        shared.mass[j] = log_mass[j0 + j];
        shared.spread[j] = spread[j0 + j];
      }
    }
  }
  CUDA_OPS_DEVICE float logit(float product, int r, int j) const { return shared.logit(product, r, j) + shared.mass[j]; }
};

// The neighbours of the queries of a block, NEIGHBOURS of each at a time.
struct Neighbours : OwnKeys {  // position, exact, counted: (QUERIES, NEIGHBOURS)
  int32_t* cell;               // (QUERIES, NEIGHBOURS): the key's cluster, -1 where the tail has not counted it
};

// For the tensor cores. A key is two 16-bit numbers, relative to the mean of the keys, and all of its logit is computed from what they add up to: with one number it would
// be 0.4 off where scores are 200.
template <class T, class Attention>
struct MatrixCells : CellRows {
  SharedCells shared;
  Neighbours near;
  float* kept;  // (QUERIES, TILE): logits without ln Z, of which the neighbours in a cell take theirs
  static constexpr int PARTS = 2, TILE = Attention::KEYS_OF_TILE / PARTS, KEPT = TILE + 1;

  CUDA_OPS_DEVICE void read_eight(const float* row, int d, float (&to)[8]) const {
    if (row && d + 8 <= D && uintptr_t(row + d) % 16 == 0) {
      const Quad low = *reinterpret_cast<const Quad*>(row + d), high = *reinterpret_cast<const Quad*>(row + d + 4);
      for (int i = 0; i < 8; ++i) to[i] = i < 4 ? low.at[i] : high.at[i - 4];
    } else {
      for (int i = 0; i < 8; ++i) to[i] = row && d + i < D ? row[d + i] : 0;
    }
  }
  CUDA_OPS_DEVICE static void store_eight(const float (&from)[8], T* to) {
    Quad eight;
    for (int i = 0; i < 4; ++i) eight.at[i] = device::float_of(pair(from[2 * i], from[2 * i + 1], T()));
    *reinterpret_cast<Quad*>(to) = eight;
  }
  // First parts of the keys to rows from 0 on, second parts to rows from TILE on.
  template <int SIZE, int STRIDE, int THREADS>
  CUDA_OPS_DEVICE void load(int j0, int rows, T* to_keys, T* to_values) const {
    constexpr int LANES_OF_A_KEY = SIZE / 8;
    CUDA_OPS_UNROLL(1)
    for (int e = device::thread(); e < rows * LANES_OF_A_KEY; e += device::threads()) {
      const int j = e / LANES_OF_A_KEY, d = e % LANES_OF_A_KEY * 8;
      const bool here = j0 + j < count;
      float numbers[8], rest[8], product = 0;
      read_eight(here ? values + (j0 + j) * D : nullptr, d, numbers);
      store_eight(numbers, to_values + j * STRIDE + d);
      read_eight(here ? keys + (j0 + j) * D : nullptr, d, numbers);
      for (int i = 0; i < 8; ++i) {
        numbers[i] = here ? numbers[i] - shared.middle[d + i] : 0;
        T stored;
        narrow(numbers[i], stored);
        rest[i] = numbers[i] - widen(stored);
      }
      store_eight(numbers, to_keys + j * STRIDE + d);
      store_eight(rest, to_keys + (j + TILE) * STRIDE + d);
      for (int i = 0; i < 8; ++i) {
        T first, second;
        narrow(numbers[i], first);
        narrow(rest[i], second);
        product = device::fma(shared.mean[d + i], widen(first) + widen(second), product);
      }
      for (int lanes = LANES_OF_A_KEY / 2; lanes; lanes /= 2) product += device::shuffle_xor(product, lanes);
      if (d == 0 && here) {
        shared.shift[j] = -product;
        shared.mass[j] = log_mass[j0 + j];
        shared.spread[j] = spread[j0 + j];
      }
    }
  }
  CUDA_OPS_DEVICE float logit(float product, int r, int j) const {
    const float without_mass = shared.logit(product, r, j);
    if (Attention::leads()) kept[r * KEPT + j] = without_mass;
    return without_mass + shared.mass[j];
  }
  // A team reads what it kept of its 16 queries.
  CUDA_OPS_DEVICE void after(int j0) const {
    constexpr int THREADS_OF_TEAM = Attention::TEAM * WARP;
    Attention::team_barrier();
    const int r = device::thread() / THREADS_OF_TEAM * 16 + device::thread() % 16;
    for (int w = device::thread() % THREADS_OF_TEAM / 16; w < near.width; w += THREADS_OF_TEAM / 16) {
      const int j = near.cell[r * NEIGHBOURS + w] - j0;
      if (j >= 0 && j < TILE) near.counted[r * NEIGHBOURS + w] += kept[r * KEPT + j];
    }
  }
};

// Of `left` neighbours. nvcc 13.0 would take it for a multiple of three in a loop over the rest, and unroll what runs so many times by three without a remainder.
CUDA_OPS_DEVICE int neighbours_at_once(int left) {
  int number = smaller(NEIGHBOURS, left);
  device::forget(number);
  return number;
}

// What neighbours of a query need of its cluster.
struct Listing {
  const int32_t* top_keys;  // `top` of them
  int top;
  const float* scores;            // (N)
  const int32_t* key_assignment;  // (N)
  const int32_t* index;           // (QUERIES): of the queries among the valid tokens
  Tokens tokens;
  int b, n, cells, count;  // `count` queries

  // The token `offset` valid tokens from query r, or -1.
  CUDA_OPS_DEVICE int32_t neighbour(int r, int offset) const {
    const int j = r < count ? index[r] + offset : -1;
    return j >= 0 && j < n ? int32_t(position_of(tokens, b, j)) : -1;
  }
  // The cell of a token, or -1.
  CUDA_OPS_DEVICE int32_t cell(int32_t position) const {
    const int32_t m = position < 0 ? -1 : key_assignment[position];
    return m < cells ? m : -1;
  }
};

// Names the neighbours of the 16 queries of each team, without top keys. Their counted logits begin as the score of their key, to which their cell adds.
template <class Attention>
CUDA_OPS_DEVICE void name_neighbours(const Listing& listing, int first, const Neighbours& near) {
  constexpr int THREADS_OF_TEAM = Attention::TEAM * WARP, THREADS_OF_QUERY = THREADS_OF_TEAM / 16, SHARE = (NEIGHBOURS + THREADS_OF_QUERY - 1) / THREADS_OF_QUERY;
  const int r = device::thread() / THREADS_OF_TEAM * 16 + device::thread() % 16, begin = device::thread() % THREADS_OF_TEAM / 16 * SHARE;
  int32_t position[SHARE], cell[SHARE];
  float score[SHARE];
  CUDA_OPS_UNROLL(SHARE)
  for (int i = 0; i < SHARE; ++i) position[i] = begin + i < near.width ? listing.neighbour(r, first + begin + i) : -1;
  CUDA_OPS_UNROLL(SHARE)
  for (int i = 0; i < SHARE; ++i) {
    cell[i] = listing.cell(position[i]);
    score[i] = position[i] < 0 ? -infinity() : listing.scores[position[i]];
  }
  int slot = -1;  // of the top keys, which ascend as the neighbours do
  CUDA_OPS_UNROLL(SHARE)
  for (int i = 0; i < SHARE; ++i) {
    if (position[i] >= 0) {
      if (slot < 0) slot = int(slot_from<int64_t>(listing.top_keys, listing.top, position[i]));
      while (slot < listing.top && listing.top_keys[slot] < position[i]) ++slot;
    }
    const bool on_top = position[i] >= 0 && slot < listing.top && listing.top_keys[slot] == position[i];
    const int place = r * NEIGHBOURS + begin + i;
    if (begin + i >= near.width) continue;
    near.position[place] = on_top ? -1 : position[i];
    near.cell[place] = on_top ? -1 : cell[i];
    near.counted[place] = on_top || cell[i] < 0 ? -infinity() : score[i];
  }
  Attention::team_barrier();
}

// The same without tensor cores, with both logits.
template <int QUERIES, class T>
CUDA_OPS_DEVICE void neighbour_logits(const QueryRows<T>& queries, const ListedKeys<T>& top, const VectorCells& cells, const Listing& listing, int first,
                                      const Neighbours& near) {
  const int lane = device::thread() % LANES;
  CUDA_OPS_UNROLL(1)
  for (int p0 = 0; p0 < QUERIES * near.width; p0 += device::threads() / LANES) {
    const int pair = p0 + device::thread() / LANES, r = pair / near.width, w = pair % near.width;
    int32_t position = pair < QUERIES * near.width ? listing.neighbour(r, first + w) : -1;
    if (position >= 0 && holds(listing.top_keys, listing.top, position)) position = -1;
    const int32_t m = listing.cell(position);
    float exact = 0, share = 0;
    for (int64_t d = lane; d < queries.D && position >= 0; d += LANES) {
      const float x = queries.at(r, d);
      exact = device::fma(x, top.k.at(queries.b, top.h, position, d), exact);
      if (m >= 0) share = device::fma(x - cells.shared.mean[d], cells.key(m, d), share);
    }
    for (int lanes = LANES / 2; lanes; lanes /= 2) {
      exact += device::shuffle_xor(exact, lanes);
      share += device::shuffle_xor(share, lanes);
    }
    if (lane == 0 && pair < QUERIES * near.width) {
      const int place = r * NEIGHBOURS + w;
      near.position[place] = position;
      near.exact[place] = position >= 0 ? exact : -infinity();
      near.counted[place] = m >= 0 ? listing.scores[position] + (share + lesser(cells.shared.half[r] * cells.spread[m], 1)) : -infinity();
    }
  }
  device::barrier();
}

// Takes the neighbours into the running softmax.
template <int QUERIES>
CUDA_OPS_DEVICE void weigh_neighbours(const Running& running, const Neighbours& near) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < QUERIES; r += device::threads() / WARP) {
    const int place = r * NEIGHBOURS + lane;
    const bool here = lane < near.width && near.position[place] >= 0;
    const float exact = here ? near.exact[place] : -infinity(), counted = here ? near.counted[place] : -infinity();
    const float most = warp_largest(larger(larger(exact, counted), running.largest[r]));
    const float weight = here ? numerator(exact, most) - numerator(counted, most) : 0, sum = warp_sum(weight);
    if (lane < near.width) near.exact[place] = weight;
    device::warp_barrier();  // every lane has read the largest
    if (lane == 0) running.take(r, most, sum);
  }
  device::barrier();
}

// |x - mean|^2 / 2 of each query, for the FMA units.
template <int QUERIES, class T>
CUDA_OPS_DEVICE void find_squares(const QueryRows<T>& queries, const SharedCells& shared) {
  const int lane = device::thread() % WARP;
  for (int r = device::thread() / WARP; r < QUERIES; r += device::threads() / WARP) {
    float square = 0;
    for (int64_t d = lane; d < queries.D && r < queries.count; d += WARP) {
      const float away = queries.at(r, d) - shared.mean[d];
      square = device::fma(away, away, square);
    }
    square = warp_sum(square);
    if (lane == 0) {
      shared.half[r] = square / 2;
      shared.own[r] = 0;
    }
  }
}

// The mean of the cells' keys, of which each thread adds some; `memory` has a place for every thread and number.
template <int SIZE, int THREADS>
CUDA_OPS_DEVICE void find_middle(const CellRows& cells, float* memory, float* middle) {
  constexpr int PARTS = THREADS * 4 / SIZE;
  static_assert(THREADS * 4 % SIZE == 0);
  const int t = device::thread(), d = t % (SIZE / 4) * 4;
  Quad sum{};
  for (int i = 0; i < 4; ++i) {
    if (d + i >= cells.D) continue;
    CUDA_OPS_UNROLL(4)
    for (int64_t m = t / (SIZE / 4); m < cells.count; m += PARTS) sum.at[i] += cells.keys[m * cells.D + d + i];
  }
  reinterpret_cast<Quad*>(memory)[t] = sum;
  device::barrier();
  for (int at = t; at < SIZE; at += THREADS) {
    float all = 0;
    for (int part = 0; part < PARTS; ++part) all += memory[part * SIZE + at];
    middle[at] = at < cells.D ? all / float(cells.count) : 0;
  }
  device::barrier();
}

// For a multiprocessor at least: the registers do for three blocks of the smallest heads.
template <class T, int SIZE>
constexpr int BLOCKS = ON_TENSOR_CORES<T> && SIZE <= 64 ? 3 : 1;

// Blocks are (batch row, head, QUERIES members of a cluster).
template <class T, int SIZE>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS((AttentionOf<T, SIZE>::THREADS), (BLOCKS<T, SIZE>))
attend_refined(Heads<T> q, Heads<T> k, Heads<T> v, Tokens tokens, Shape shape, cuda_ops::Groups groups, cuda_ops::Refined refined, Budgets budgets, int32_t segments,
               Output<T> out, float* log_mass) {
  using Attention = AttentionOf<T, SIZE>;
  constexpr int QUERIES = Attention::QUERIES;
  CUDA_OPS_SHARED(Quad, memory, Attention::QUADS);
  CUDA_OPS_SHARED(int32_t, index, QUERIES);
  CUDA_OPS_SHARED(int32_t, position, QUERIES);
  CUDA_OPS_SHARED(int32_t, short_list, SHORT_LIST);
  CUDA_OPS_SHARED(float, half, QUERIES);
  CUDA_OPS_SHARED(float, own_product, QUERIES);
  CUDA_OPS_SHARED(float, mean, SIZE);
  CUDA_OPS_SHARED(float, middle, SIZE);
  CUDA_OPS_SHARED(float, shift, KEYS);
  CUDA_OPS_SHARED(float, mass, KEYS);
  CUDA_OPS_SHARED(float, spread, KEYS);
  CUDA_OPS_SHARED(int32_t, near_position, QUERIES * NEIGHBOURS);
  CUDA_OPS_SHARED(int32_t, near_cell, QUERIES * NEIGHBOURS);
  CUDA_OPS_SHARED(float, near_exact, QUERIES * NEIGHBOURS);
  CUDA_OPS_SHARED(float, near_counted, QUERIES * NEIGHBOURS);
  const int32_t head = int32_t(device::block()) / segments, b = head / int32_t(shape.H), h = head % int32_t(shape.H), C = int32_t(budgets.C);
  const int64_t N = tokens.N, D = shape.D, M = budgets.M;
  const int32_t* first = groups.first + int64_t(head) * (C + 1);
  const Segment own = find_segment(first, C, QUERIES, int32_t(device::block()) % segments);
  if (own.cluster < 0) return;
  const int t = device::thread(), n = int(count_of(tokens, b));
  const int64_t cluster = int64_t(head) * C + own.cluster;
  const int32_t begin = first[own.cluster] + own.rank, count = smaller(QUERIES, first[own.cluster + 1] - begin);
  if (t < count) {
    index[t] = groups.order[head * N + begin + t];
    position[t] = int32_t(position_of(tokens, b, index[t]));
  }
  for (int d = t; d < SIZE; d += Attention::THREADS) mean[d] = d < D ? refined.means[cluster * D + d] : 0;
  const cuda_ops::Cells& cells = refined.cells;
  const SharedCells shared{shift, mass, spread, half, own_product, mean, middle};
  const CellRows rows{cells.keys + cluster * M * D,   cells.values + cluster * M * D, cells.log_mass + cluster * M,
                      cells.spread + cluster * M, int(D),                          step_of(budgets, n).key_clusters};
  const int32_t* list = refined.top_keys + cluster * budgets.K;
  const int listed = named_keys(list, int(budgets.K), N);
  for (int j = t; j < listed && listed <= SHORT_LIST; j += Attention::THREADS) short_list[j] = list[j];
  Attention attention(memory);
  device::barrier();
  const QueryRows<T> queries{q, b, h, D, count, position, refined.scale};
  const ListedKeys<T> top{k, v, b, h / shape.group, D, listed, list};
  const Listing listing{listed <= SHORT_LIST ? short_list : list, listed, refined.scores + cluster * N, refined.key_assignment + head * N, index, tokens,
                        b, n, int(rows.count), count};
  const int band = int(smaller(refined.band, int64_t(n))), width = band ? 2 * band + 1 : 0;
  Neighbours near{{near_position, near_exact, near_counted, neighbours_at_once(width), NEIGHBOURS}, near_cell};
  attention.start(queries);
  if constexpr (ON_TENSOR_CORES<T>) {
    attention.add(queries, top);
    attention.receive();
    find_middle<SIZE, Attention::THREADS>(rows, attention.memory(), middle);
    attention.moments(refined.scale, mean, middle, half, own_product);
    CUDA_OPS_UNROLL(1)
    for (int w0 = 0; w0 == 0 || w0 < width; w0 += NEIGHBOURS) {  // a wide band takes the logits of the cells several times
      near.width = neighbours_at_once(width - w0);
      name_neighbours<Attention>(listing, w0 - band, near);
      attention.add(queries, MatrixCells<T, Attention>{rows, shared, near, attention.memory()}, w0 == 0);
      if (near.width) attention.add_own(queries, k, v, top.h, near);
    }
  } else {
    find_squares<QUERIES>(queries, shared);
    const VectorCells tail{rows, shared};
    attention.add(queries, top);
    attention.add(queries, tail);
    CUDA_OPS_UNROLL(1)
    for (int w0 = 0; w0 < width; w0 += NEIGHBOURS) {
      near.width = neighbours_at_once(width - w0);
      neighbour_logits<QUERIES>(queries, top, tail, listing, w0 - band, near);
      weigh_neighbours<QUERIES>(attention.running(), near);
      attention.add_own(v, b, top.h, D, near.width, NEIGHBOURS, near_position, near_exact);
    }
  }
  attention.close();
  write_rows(attention, out, queries, Averages());
  attention.each_total(count, [&](int r, float largest, float total) { log_mass[head * N + position[r]] = largest + device::logarithm(total); });
}

}  // namespace

namespace cuda_ops::launch {

void refined_attention(const Vectors& q, const Vectors& k, const Vectors& v, const Tokens& tokens, const Shape& shape, const Groups& groups, const Refined& refined,
                       const Budgets& budgets, const Vectors& out, float* log_mass, Stream stream) {
  if (!shape.B || !shape.H || !tokens.N) return;
  with_type(q.type, [&](auto type) {
    with_size(shape.D, [&](auto size) {
      using T = decltype(type);
      constexpr int SIZE = decltype(size)::value;
      using Attention = AttentionOf<T, SIZE>;
      const int64_t segments = (tokens.N + Attention::QUERIES - 1) / Attention::QUERIES + budgets.C, blocks = shape.B * shape.H * segments;
      const Heads<T> queries(q), keys(k), values(v);
      CUDA_OPS_LAUNCH((attend_refined<T, SIZE>), blocks, Attention::THREADS, stream, queries, keys, values, tokens, shape, groups, refined, budgets, int32_t(segments), Output<T>(out),
                      log_mass);
    });
  });
}

}  // namespace cuda_ops::launch
