#include "cluster_rows.h"

#include "reduce.h"
#include "scan.h"
#include "split_product.h"

namespace {

using cuda_ops::Budgets;

constexpr int64_t MOST_SHARED_CLUSTERS = 1024;
constexpr int CLUSTERS = 32, COLUMNS = 32, WARP_ROWS = 16;
constexpr int STRIDE = COLUMNS / 4 + 1;  // in quads; one more, so that rows at the same place of the piece lie in different banks
template <int THREADS>
constexpr int TILE_ROWS = THREADS / WARP * WARP_ROWS;

// How a warp shares its rows of a tile with the centroids: eight lanes have the same four rows. Neighbours where products are written out; of 16-bit numbers as the
// tensor cores have them, every fourth lane.
constexpr int CLUSTER_LANES = 8, ROW_LANES = WARP / CLUSTER_LANES, OWN_ROWS = WARP_ROWS / ROW_LANES;
template <class T>
constexpr int NEXT_LANE = sizeof(T) == 2 ? ROW_LANES : 1;

template <class T>
struct Side {
  Heads<T> x;
  int64_t heads, C, copies, memory_size;
  bool keys;
  float *centroids, *half_norms;
  int32_t *memory, *assignment;
};

template <class T>
CUDA_OPS_DEVICE int64_t clusters_of(const Side<T>& side, const Step& step) {
  return smaller<int64_t>(side.keys ? step.key_clusters : step.clusters, side.C);
}

CUDA_OPS_DEVICE int64_t sample_size(int64_t n, int64_t C, int64_t sample) { return smaller(n, sample > 4 * C ? sample : 4 * C); }

// A thread's rows of a tile, and whether it is the one of several that hands on what was found for it.
template <class T>
CUDA_OPS_DEVICE int own_row(int r) {
  const int lane = device::thread() % WARP, first = device::thread() / WARP * WARP_ROWS;
  return first + (sizeof(T) == 2 ? r / 2 * 8 + column_of_d(r % 2) : lane / CLUSTER_LANES + r * ROW_LANES);
}
template <class T>
CUDA_OPS_DEVICE bool hands_on(int r) { return device::thread() % WARP / NEXT_LANE<T> % CLUSTER_LANES == r; }

template <class T, int THREADS>
using Product = SplitProduct<T, TILE_ROWS<THREADS>, CLUSTERS>;
// Of shared memory, for the products.
template <class T, int THREADS>
constexpr int QUADS = sizeof(T) == 2 ? Product<T, THREADS>::QUADS : (TILE_ROWS<THREADS> + CLUSTERS) * STRIDE;

// The centroid nearest to each row of a tile of TILE_ROWS<THREADS>: the largest x.c - |c|^2 / 2, the lowest centroid where several are (and where no score is a
// number). `position` gives the token of a row, or -1; norms are read behind a barrier. Equal centroids tie: a product, one chain of fused additions in the order of
// d or what the tensor cores make of 16-bit numbers, depends on its row and its centroid alone.
template <int THREADS, class T, class Position>
CUDA_OPS_DEVICE void find_nearest(const T* x, int64_t token, int64_t element, int rows, const Position& position, const float* centroids, const float* half_norms,
                                  int C, int D, Quad* memory, int32_t nearest[OWN_ROWS]) {
  float best[OWN_ROWS];
  for (int r = 0; r < OWN_ROWS; ++r) {
    best[r] = -infinity();
    nearest[r] = 0;
  }
  const auto compare = [&](int r, int cluster, float score) {
    if (cluster < C && score > best[r]) {
      best[r] = score;
      nearest[r] = cluster;
    }
  };
  for (int c0 = 0; c0 < C; c0 += CLUSTERS) {
    if constexpr (sizeof(T) == 2) {
      const auto row = [=](int i) {
        const int64_t from = position(i);
        return from >= 0 ? x + from * token : nullptr;
      };
      const auto centroid = [=](int c) { return c0 + c < C ? centroids + (c0 + c) * D : nullptr; };
      typename Product<T, THREADS>::Sums sums;
      Product<T, THREADS>::multiply(rows, row, element, centroid, D, memory, sums);
      CUDA_OPS_UNROLL(2)
      for (int set = 0; set < CLUSTERS / SET; ++set)
        for (int side = 0; side < 2; ++side) {
          const int cluster = c0 + set * SET + row_of_d(2 * side);
          const float half_norm = cluster < C ? half_norms[cluster] : 0;
          for (int r = 0; r < OWN_ROWS; ++r) compare(r, cluster, sums[set].of(r / 2, 2 * side + r % 2) - half_norm);
        }
    } else {
      constexpr int OWN_CLUSTERS = CLUSTERS / CLUSTER_LANES;
      const int t = device::thread(), own_cluster = t % CLUSTER_LANES;
      const bool busy = t / WARP * WARP_ROWS < rows;
      Quad *row_piece = memory, *centroid_piece = memory + TILE_ROWS<THREADS> * STRIDE;
      float sum[OWN_CLUSTERS][OWN_ROWS] = {};
      for (int d0 = 0; d0 < D; d0 += COLUMNS) {
        float *to_row = row_piece->at, *to_centroid = centroid_piece->at;
        const int column = t % COLUMNS;
        const bool inside = d0 + column < D;
        CUDA_OPS_UNROLL(4)
        for (int i = t / COLUMNS; i < TILE_ROWS<THREADS>; i += THREADS / COLUMNS) {
          const int64_t from = i < rows ? position(i) : -1;
          to_row[i * (4 * STRIDE) + column] = inside && from >= 0 ? widen(x[from * token + (d0 + column) * element]) : 0;
        }
        for (int c = t / COLUMNS; c < CLUSTERS; c += THREADS / COLUMNS)
          to_centroid[c * (4 * STRIDE) + column] = inside && c0 + c < C ? centroids[(c0 + c) * D + d0 + column] : 0;
        device::barrier();
        CUDA_OPS_UNROLL(1)
        for (int quad = 0; quad < COLUMNS / 4 && busy; ++quad) {
          Quad row[OWN_ROWS];
          for (int r = 0; r < OWN_ROWS; ++r) row[r] = row_piece[own_row<T>(r) * STRIDE + quad];
          for (int c = 0; c < OWN_CLUSTERS; ++c) {
            const Quad centroid = centroid_piece[(own_cluster + c * CLUSTER_LANES) * STRIDE + quad];
            for (int r = 0; r < OWN_ROWS; ++r)
              for (int d = 0; d < 4; ++d) sum[c][r] = device::fma(row[r].at[d], centroid.at[d], sum[c][r]);
          }
        }
        device::barrier();
      }
      for (int c = 0; c < OWN_CLUSTERS; ++c) {
        const int cluster = c0 + own_cluster + c * CLUSTER_LANES;
        const float half_norm = cluster < C ? half_norms[cluster] : 0;
        for (int r = 0; r < OWN_ROWS; ++r) compare(r, cluster, sum[c][r] - half_norm);
      }
    }
  }
  for (int lanes = NEXT_LANE<T>; lanes < NEXT_LANE<T> * CLUSTER_LANES; lanes *= 2)
    for (int r = 0; r < OWN_ROWS; ++r) {
      const float score = device::shuffle_xor(best[r], lanes);
      const int32_t cluster = device::shuffle_xor(nearest[r], lanes);
      if (score > best[r] || (score == best[r] && cluster < nearest[r])) {
        best[r] = score;
        nearest[r] = cluster;
      }
    }
}

// The nearest of the centroids that come in sets of split vectors, to each of a warp's 16-bit rows of no more than a piece.
template <class T>
struct NearestOfSets {
  static constexpr int OWN = LANE_ROWS<T>;
  float best[OWN];
  int32_t nearest[OWN];

  CUDA_OPS_DEVICE NearestOfSets() {
    for (int r = 0; r < OWN; ++r) {
      best[r] = -infinity();
      nearest[r] = 0;
    }
  }

  // Centroids c0 … of `sets` sets; `norms` are half their squares, infinite where there is none: that is never the nearest.
  CUDA_OPS_DEVICE void add(const SplitRows<T, OWN_TILES<T>>& rows, const Eight* memory, const float* norms, int c0, int sets, int D) {
    CUDA_OPS_UNROLL(1)
    for (int set = 0; set < sets; ++set) {
      SplitSums<OWN_TILES<T>> sums;
      sums.clear();
      rows.multiply(memory + set * SET_EIGHTS, D, sums);
      CUDA_OPS_UNROLL(2)
      for (int next = 0; next < 2; ++next) {
        const int own = set * SET + row_of_d(2 * next), cluster = c0 + own;
        const float half_norm = norms[own];
        CUDA_OPS_UNROLL(OWN)
        for (int r = 0; r < OWN; ++r) {
          const float score = sums.of(r / 2, 2 * next + r % 2) - half_norm;
          if (score > best[r]) {
            best[r] = score;
            nearest[r] = cluster;
          }
        }
      }
    }
  }

  // That of handed_row(), with what the lanes of the same rows have found; the lowest where several are.
  CUDA_OPS_DEVICE int32_t of_handed_row() {
    gather_rows<T>([&](int r, int other, bool upper, int lanes) {
      const float score = device::shuffle_xor(upper ? best[r] : best[other], lanes), own_score = upper ? best[other] : best[r];
      const int32_t cluster = device::shuffle_xor(upper ? nearest[r] : nearest[other], lanes), own_cluster = upper ? nearest[other] : nearest[r];
      const bool nearer = score > own_score || (score == own_score && cluster < own_cluster);
      best[r] = nearer ? score : own_score;
      nearest[r] = nearer ? cluster : own_cluster;
    });
    return nearest[0];
  }
};

// Centroids c0 … of `sets` sets as split vectors, and half their squares.
template <int THREADS>
CUDA_OPS_DEVICE void split_centroids(const float* centroids, const float* half_norms, int c0, int sets, int C, int D, Eight* memory, float* norms) {
  split_vectors<THREADS>(sets, [=](int c) { return c0 + c < C ? centroids + (c0 + c) * D : nullptr; }, 0, D, memory);
  const int t = device::thread();
  if (t < sets * SET) norms[t] = c0 + t < C ? half_norms[c0 + t] : infinity();
}

// order[] = the sampled positions, by their cluster and within it as they were; the members of cluster c end before ends[c], where those of c + 1 begin.
// `assigned` is read behind a barrier.
template <int THREADS>
CUDA_OPS_DEVICE void list_members(const int32_t* assigned, const int32_t* positions, int S, int C, int32_t* sums, int32_t* ends, int32_t* order) {
  const int t = device::thread();
  for (int c = t; c < C; c += THREADS) ends[c] = 0;
  device::barrier();
  for (int j = t; j < S; j += THREADS) device::add(&ends[assigned[j]], 1);
  device::barrier();
  int32_t smaller_clusters = 0;
  for (int c0 = 0; c0 < C; c0 += THREADS) {
    int32_t total;
    const int32_t before = sum_before(c0 + t < C ? ends[c0 + t] : 0, sums, total);
    if (c0 + t < C) ends[c0 + t] = smaller_clusters + before;
    smaller_clusters += total;
  }
  device::barrier();
  // one warp, for a member's place is behind those of all before it
  for (int j0 = 0; j0 < S && t < WARP; j0 += WARP) {
    const int32_t place = take_place(j0 + t < S ? assigned[j0 + t] : -1, ends);
    if (j0 + t < S) order[place] = positions[j0 + t];
  }
  device::barrier();
}

// centroid = the mean of `size` rows, row i at position(i), summed in their order, and half_norm = |centroid|^2 / 2; by one warp.
template <class T, class Position>
CUDA_OPS_DEVICE void place_centroid(const T* x, int64_t token, int64_t element, int32_t size, const Position& position, int D, float* centroid, float* half_norm) {
  constexpr int OWN_COLUMNS = 2, AT_ONCE = 8;
  const int lane = device::thread() % WARP;
  float squares = 0;
  for (int d0 = 0; d0 < D; d0 += OWN_COLUMNS * WARP) {
    float sum[OWN_COLUMNS] = {};
    for (int32_t i0 = 0; i0 < size; i0 += AT_ONCE) {
      T numbers[AT_ONCE][OWN_COLUMNS];
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i)
        for (int own = 0; own < OWN_COLUMNS; ++own) {
          const int d = d0 + own * WARP + lane;
          numbers[i][own] = i0 + i < size && d < D ? x[position(i0 + i) * token + d * element] : T{};
        }
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i)
        for (int own = 0; own < OWN_COLUMNS; ++own) sum[own] += widen(numbers[i][own]);
    }
    for (int own = 0; own < OWN_COLUMNS; ++own) {
      const int d = d0 + own * WARP + lane;
      const float mean = sum[own] / float(size);
      if (d < D) centroid[d] = mean;
      squares = device::fma(mean, mean, squares);
    }
  }
  squares = warp_sum(squares);
  if (lane == 0) *half_norm = squares / 2;
}

constexpr int SAMPLE_THREADS = 512;
// The lists of a sample of so many tokens are in shared memory, those of a larger one in global memory.
template <class T>
constexpr int MOST_SHARED_ROWS = sizeof(T) == 2 ? 1024 : 256;

// One head and its sample.
template <class T>
struct Sample {
  const T* x;
  int64_t token, element, b, n;
  int C, S, D;
  float *centroids, *half_norms;
  int32_t *assigned, *order, *positions, *ends;

  CUDA_OPS_DEVICE Sample(const Side<T>& side, int64_t head, const Tokens& tokens, const Budgets& budgets, int D, int32_t* shared_rows, int32_t* shared_ends)
      : token(side.x.token), element(side.x.element), b(head / side.heads), n(count_of(tokens, b)), D(D) {
    const Step step = step_of(budgets, n);
    C = int(clusters_of(side, step));
    S = int(sample_size(n, C, step.sample));
    x = side.x.base + side.x.offset(b, head % side.heads, 0, 0);
    centroids = side.centroids + head * side.C * D;
    half_norms = side.half_norms + head * side.C;
    int32_t* own_memory = side.memory + head * side.memory_size;
    assigned = S <= MOST_SHARED_ROWS<T> ? shared_rows : own_memory;
    order = assigned + S;
    positions = order + S;
    ends = C <= MOST_SHARED_CLUSTERS ? shared_ends : own_memory + 3 * S;
  }
  CUDA_OPS_DEVICE int64_t start(const Tokens& tokens, int c) const { return position_of(tokens, b, int64_t(c) * n / C); }
  CUDA_OPS_DEVICE int32_t begin(int c) const { return c ? ends[c - 1] : 0; }
  CUDA_OPS_DEVICE void list_positions(const Tokens& tokens) const {
    for (int j = device::thread(); j < S; j += device::threads()) positions[j] = int32_t(position_of(tokens, b, int64_t(j) * n / S));
  }
};

// A block for each head: the starts, then the rounds on its sample.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(SAMPLE_THREADS) sample_centroids(Side<T> first, Side<T> second, int64_t first_blocks, Tokens tokens, Budgets budgets, int D,
                                                                int64_t rounds) {
  constexpr int THREADS = SAMPLE_THREADS;
  CUDA_OPS_SHARED(Quad, memory, (QUADS<T, THREADS>));
  CUDA_OPS_SHARED(int32_t, shared_rows, 3 * MOST_SHARED_ROWS<T>);
  CUDA_OPS_SHARED(int32_t, shared_ends, MOST_SHARED_CLUSTERS);
  CUDA_OPS_SHARED(int32_t, sums, THREADS / WARP);
  const bool is_first = device::block() < first_blocks;
  const Side<T> side = is_first ? first : second;
  const Sample<T> own(side, device::block() - (is_first ? 0 : first_blocks), tokens, budgets, D, shared_rows, shared_ends);
  if (own.n == 0) return;
  const int warp = device::thread() / WARP;
  for (int c = warp; c < own.C; c += THREADS / WARP) {
    const int64_t start = own.start(tokens, c);
    place_centroid(own.x, own.token, own.element, 1, [=](int32_t) { return start; }, D, own.centroids + c * D, own.half_norms + c);
  }
  if (rounds) own.list_positions(tokens);
  device::barrier();
  for (int64_t round = 0; round < rounds; ++round) {
    for (int j0 = 0; j0 < own.S; j0 += TILE_ROWS<THREADS>) {
      int32_t nearest[OWN_ROWS];
      const int rows = smaller(TILE_ROWS<THREADS>, own.S - j0);
      const auto position = [=](int i) { return int64_t(own.positions[j0 + i]); };
      find_nearest<THREADS>(own.x, own.token, own.element, rows, position, own.centroids, own.half_norms, own.C, D, memory, nearest);
      for (int r = 0; r < OWN_ROWS; ++r)
        if (hands_on<T>(r) && own_row<T>(r) < rows) own.assigned[j0 + own_row<T>(r)] = nearest[r];
    }
    list_members<THREADS>(own.assigned, own.positions, own.S, own.C, sums, own.ends, own.order);
    for (int c = warp; c < own.C; c += THREADS / WARP) {
      const int32_t begin = own.begin(c), size = own.ends[c] - begin;
      const auto member = [=](int32_t i) { return int64_t(own.order[begin + i]); };
      // one without members stays
      if (size) place_centroid(own.x, own.token, own.element, size, member, D, own.centroids + c * D, own.half_norms + c);
    }
    device::barrier();
  }
}

// The same for 16-bit rows of no more columns than a piece. A warp keeps its rows in registers while the centroids come in sets.
constexpr int SPLIT_THREADS = 256, SAMPLE_SETS = 4;

template <class T>
CUDA_OPS_DEVICE void assign_sample(const Sample<T>& own, Eight* memory, float* norms) {
  constexpr int ROWS = 8 * OWN_TILES<T>, AT_ONCE = SAMPLE_SETS * SET;
  CUDA_OPS_UNROLL(1)
  for (int j0 = 0; j0 < own.S; j0 += SPLIT_THREADS / WARP * ROWS) {
    const int first = j0 + device::thread() / WARP * ROWS, j = first + handed_row<T>();
    SplitRows<T, OWN_TILES<T>> rows;
    if (first < own.S) rows.load([&](int r) { return first + r < own.S ? own.x + own.positions[first + r] * own.token : nullptr; }, own.element, 0, own.D);
    NearestOfSets<T> nearest;
    CUDA_OPS_UNROLL(1)
    for (int c0 = 0; c0 < own.C; c0 += AT_ONCE) {
      const int sets = (smaller(AT_ONCE, own.C - c0) + SET - 1) / SET;
      if (j0 == 0 || own.C > AT_ONCE) {
        device::barrier();  // the centroids are there, and the sets before are not needed any more
        split_centroids<SPLIT_THREADS>(own.centroids, own.half_norms, c0, sets, own.C, own.D, memory, norms);
        device::barrier();
      }
      if (first < own.S) nearest.add(rows, memory, norms, c0, sets, own.D);
    }
    const int32_t cluster = nearest.of_handed_row();
    if (j < own.S && hands_row_on<T>()) own.assigned[j] = cluster;
  }
}

// centroid c = the mean of size_of(c) rows, row i at positions_of(c)(i), summed in their order, and its half_norm; by eight lanes. One without rows stays.
template <class T, class Size, class Positions>
CUDA_OPS_DEVICE void place_centroids(const Sample<T>& own, const Size& size_of, const Positions& positions_of) {
  constexpr int LANES = PIECE / 8, AT_ONCE = 8;
  const int d = device::thread() % LANES * 8, D = own.D;
  const bool eights = own.element == 1 && own.token % 8 == 0 && D % 8 == 0 && uintptr_t(own.x) % 16 == 0;
  CUDA_OPS_UNROLL(1)
  for (int c0 = 0; c0 < own.C; c0 += SPLIT_THREADS / LANES) {
    const int c = c0 + device::thread() / LANES, size = c < own.C ? size_of(c) : 0;
    const auto position = positions_of(c < own.C ? c : 0);
    float sum[8] = {};
    const auto add = [&](const Eight& row) {
      for (int i = 0; i < 8; ++i) sum[i] += i % 2 ? second_of(row.pairs[i / 2], T()) : first_of(row.pairs[i / 2], T());
    };
    CUDA_OPS_UNROLL(1)
    for (int i0 = 0; i0 < size && eights && d < D; i0 += AT_ONCE) {
      Eight rows[AT_ONCE];
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i) rows[i] = i0 + i < size ? *reinterpret_cast<const Eight*>(own.x + position(i0 + i) * own.token + d) : Eight{};
      CUDA_OPS_UNROLL(AT_ONCE)
      for (int i = 0; i < AT_ONCE; ++i) add(rows[i]);
    }
    CUDA_OPS_UNROLL(1)
    for (int i = 0; i < size && !eights; ++i) add(eight_of(own.x + position(i) * own.token, own.element, d, D));
    float squares = 0;
    for (int i = 0; i < 8; ++i) {
      const float mean = size ? sum[i] / float(size) : 0;
      if (size && d + i < D) own.centroids[c * D + d + i] = mean;
      squares = device::fma(mean, mean, squares);
    }
    squares = warp_sum<LANES>(squares);
    if (size && d == 0) own.half_norms[c] = squares / 2;
  }
}

template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(SPLIT_THREADS) sample_split(Side<T> first, Side<T> second, int64_t first_blocks, Tokens tokens, Budgets budgets, int D, int64_t rounds) {
  CUDA_OPS_SHARED(Eight, memory, SAMPLE_SETS * SET_EIGHTS);
  CUDA_OPS_SHARED(float, norms, SAMPLE_SETS * SET);
  CUDA_OPS_SHARED(int32_t, shared_rows, 3 * MOST_SHARED_ROWS<T>);
  CUDA_OPS_SHARED(int32_t, shared_ends, MOST_SHARED_CLUSTERS);
  CUDA_OPS_SHARED(int32_t, sums, SPLIT_THREADS / WARP);
  const bool is_first = device::block() < first_blocks;
  const Side<T> side = is_first ? first : second;
  const Sample<T> own(side, device::block() - (is_first ? 0 : first_blocks), tokens, budgets, D, shared_rows, shared_ends);
  if (own.n == 0) return;
  const auto start = [&](int c) {
    const int64_t token = own.start(tokens, c);
    return [=](int) { return token; };
  };
  const auto members = [&](int c) {
    const int32_t* listed = own.order + own.begin(c);
    return [=](int i) { return int64_t(listed[i]); };
  };
  place_centroids(own, [](int) { return 1; }, start);
  if (rounds) own.list_positions(tokens);
  device::barrier();
  CUDA_OPS_UNROLL(1)
  for (int64_t round = 0; round < rounds; ++round) {
    assign_sample(own, memory, norms);
    list_members<SPLIT_THREADS>(own.assigned, own.positions, own.S, own.C, sums, own.ends, own.order);
    place_centroids(own, [&](int c) { return own.ends[c] - own.begin(c); }, members);
  }
}

constexpr int ASSIGN_THREADS = 128;

// A block for each tile of tokens of a head.
template <class T>
CUDA_OPS_KERNEL CUDA_OPS_BLOCK(ASSIGN_THREADS) assign_tokens(Side<T> first, Side<T> second, int64_t first_blocks, Tokens tokens, Budgets budgets, int D) {
  constexpr int THREADS = ASSIGN_THREADS, ROWS = TILE_ROWS<THREADS>;
  CUDA_OPS_SHARED(Quad, memory, (QUADS<T, THREADS>));
  CUDA_OPS_SHARED(uint32_t, valid, ROWS / WARP);
  const bool is_first = device::block() < first_blocks;
  const Side<T> side = is_first ? first : second;
  const int64_t N = tokens.N, tiles = (N + ROWS - 1) / ROWS, block = device::block() - (is_first ? 0 : first_blocks);
  const int64_t head = block / tiles, i0 = block % tiles * ROWS, b = head / side.heads;
  const int C = int(clusters_of(side, step_of(budgets, count_of(tokens, b))));
  const int t = device::thread(), rows = int(smaller<int64_t>(ROWS, N - i0));
  const uint32_t votes = device::ballot(t < rows && index_of(tokens, b, i0 + t) >= 0);
  if (t < ROWS && t % WARP == 0) valid[t / WARP] = votes;
  device::barrier();
  const auto position = [=](int i) { return valid[i / WARP] >> i % WARP & 1 ? i0 + i : -1; };
  uint32_t any = 0;
  for (int w = 0; w < ROWS / WARP; ++w) any |= valid[w];
  int32_t nearest[OWN_ROWS] = {};
  // a tile of padding has nothing to find
  if (any)
    find_nearest<THREADS>(side.x.base + side.x.offset(b, head % side.heads, 0, 0), side.x.token, side.x.element, rows, position, side.centroids + head * side.C * D,
                          side.half_norms + head * side.C, C, D, memory, nearest);
  for (int r = 0; r < OWN_ROWS; ++r) {
    const int row = own_row<T>(r);
    if (!hands_on<T>(r) || row >= rows) continue;
    const int32_t cluster = position(row) >= 0 ? nearest[r] : -1;
    for (int64_t copy = 0; copy < side.copies; ++copy) side.assignment[(head * side.copies + copy) * N + i0 + row] = cluster;
  }
}

// The same for 16-bit rows of no more columns than a piece. A block splits MOST centroids at once: where there are no more, once for `each` tiles of a head, and no
// warp waits for another one between the tiles. Of each tile a warp keeps its rows.
template <class T>
constexpr int SPLIT_ROWS = ASSIGN_THREADS / WARP * 8 * OWN_TILES<T>;
constexpr int FEW_CLUSTERS = 2 * SET, MANY_CLUSTERS = 7 * SET;
template <class T, int MOST>
CUDA_OPS_KERNEL CUDA_OPS_BLOCKS(ASSIGN_THREADS, 4) assign_split(Side<T> first, Side<T> second, int64_t first_blocks, Tokens tokens, Budgets budgets, int D,
                                                                 int64_t each) {
  constexpr int ROWS = 8 * OWN_TILES<T>;
  CUDA_OPS_SHARED(Eight, memory, MOST / SET * SET_EIGHTS);
  CUDA_OPS_SHARED(float, norms, MOST);
  const bool is_first = device::block() < first_blocks;
  const Side<T> side = is_first ? first : second;
  const int64_t N = tokens.N, tiles = (N + SPLIT_ROWS<T> - 1) / SPLIT_ROWS<T>, head_blocks = (tiles + each - 1) / each;
  const int64_t block = device::block() - (is_first ? 0 : first_blocks), head = block / head_blocks, b = head / side.heads;
  const int64_t begin = block % head_blocks * each, end = smaller(tiles, begin + each), n = count_of(tokens, b);
  const int C = n ? int(clusters_of(side, step_of(budgets, n))) : 0;  // without tokens no centroid was placed
  const int t = device::thread(), lane = t % WARP;
  const T* start = side.x.base + side.x.offset(b, head % side.heads, 0, 0);
  CUDA_OPS_UNROLL(1)
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t i0 = tile * SPLIT_ROWS<T> + t / WARP * ROWS, i = i0 + handed_row<T>();
    const uint32_t valid = device::ballot(lane < ROWS && i0 + lane < N && index_of(tokens, b, i0 + lane) >= 0);
    SplitRows<T, OWN_TILES<T>> rows;
    if (valid) rows.load([=](int r) { return valid >> r & 1 ? start + (i0 + r) * side.x.token : nullptr; }, side.x.element, 0, D);
    NearestOfSets<T> nearest;
    CUDA_OPS_UNROLL(1)
    for (int c0 = 0; c0 < C; c0 += MOST) {
      const int sets = (smaller(MOST, C - c0) + SET - 1) / SET;
      if (C > MOST) device::barrier();  // the sets before are not needed any more
      if (tile == begin || C > MOST) {
        split_centroids<ASSIGN_THREADS>(side.centroids + head * side.C * D, side.half_norms + head * side.C, c0, sets, C, D, memory, norms);
        device::barrier();
      }
      if (valid) nearest.add(rows, memory, norms, c0, sets, D);
    }
    const int32_t found = nearest.of_handed_row();
    if (i >= N || !hands_row_on<T>()) continue;
    const int32_t cluster = valid >> handed_row<T>() & 1 ? found : -1;
    for (int64_t copy = 0; copy < side.copies; ++copy) side.assignment[(head * side.copies + copy) * N + i] = cluster;
  }
}

template <class T>
Side<T> side_of(const cuda_ops::launch::RowClusters& side, int64_t memory_size) {
  return {Heads<T>(side.x), side.heads, side.C, side.copies, memory_size, side.keys, side.centroids, side.half_norms, side.memory, side.assignment};
}

}  // namespace

namespace cuda_ops::launch {

int64_t cluster_rows_memory(int64_t N, int64_t C, int64_t sample) {
  const int64_t wanted = sample > 4 * C ? sample : 4 * C;
  return 3 * (N < wanted ? N : wanted) + (C > MOST_SHARED_CLUSTERS ? C : 0);
}

void cluster_rows(const RowClusters* sides, int count, const Tokens& tokens, const Budgets& budgets, int64_t B, int64_t D, int64_t rounds, Stream stream) {
  int64_t sample = 0;
  for (int s = 0; s < budgets.count; ++s) sample = budgets.steps[s].sample > sample ? budgets.steps[s].sample : sample;
  const RowClusters& first = sides[0];
  const RowClusters& second = sides[count - 1];
  const int64_t first_heads = B * first.heads, heads = first_heads + (count > 1 ? B * second.heads : 0);
  if (!heads || !tokens.N) return;
  const auto tiles = [&](int64_t rows) { return (tokens.N + rows - 1) / rows; };
  with_type(first.x.type, [&](auto type) {
    using T = decltype(type);
    const auto one = side_of<T>(first, cluster_rows_memory(tokens.N, first.C, sample)), other = side_of<T>(second, cluster_rows_memory(tokens.N, second.C, sample));
    if constexpr (sizeof(T) == 2) {
      if (D <= PIECE) {
        const int64_t each = tiles_of_block(heads * tiles(SPLIT_ROWS<T>)), of_head = (tiles(SPLIT_ROWS<T>) + each - 1) / each;
        const auto kernel = first.C <= FEW_CLUSTERS && second.C <= FEW_CLUSTERS ? assign_split<T, FEW_CLUSTERS> : assign_split<T, MANY_CLUSTERS>;
        CUDA_OPS_LAUNCH(sample_split<T>, heads, SPLIT_THREADS, stream, one, other, first_heads, tokens, budgets, int(D), rounds);
        CUDA_OPS_LAUNCH(kernel, heads * of_head, ASSIGN_THREADS, stream, one, other, first_heads * of_head, tokens, budgets, int(D), each);
        return;
      }
    }
    CUDA_OPS_LAUNCH(sample_centroids<T>, heads, SAMPLE_THREADS, stream, one, other, first_heads, tokens, budgets, int(D), rounds);
    const int64_t of_head = tiles(TILE_ROWS<ASSIGN_THREADS>);
    CUDA_OPS_LAUNCH(assign_tokens<T>, heads * of_head, ASSIGN_THREADS, stream, one, other, first_heads * of_head, tokens, budgets, int(D));
  });
}

}  // namespace cuda_ops::launch
