// What the torch side and the instruction-set sides share: plain data and one table of functions per instruction set.
// Nothing in here generates code, so that no inline function compiled for AVX-512 can end up in the baseline binary.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace cuda_ops::cpu {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

// The N tokens of one (batch, head) of a tensor: element (token, d) is at base + token * token_stride + d * element_stride (in elements).
struct Slice {
  void* base;
  int64_t token_stride;
  int64_t element_stride;
  Dtype dtype;
  int64_t bytes;  // of the whole tensor
};

// The n valid tokens of a batch row, ascending, as positions among its N.
struct Valid {
  const int32_t* position;
  int64_t n;
};

// A chain of memory blocks that one worker reuses from head to head. Filled by scratch.h.
struct ScratchBlock {
  ScratchBlock* next;
  size_t capacity;
  size_t used;
};
struct Scratch {
  ScratchBlock* first;
  ScratchBlock* current;
  bool shared;  // other workers are free to help with this head
};

struct Sizes {
  int64_t N, D, C, K, P, M;
};

// What a forward operator needs of one (batch, head). Unused members are null or 0.
struct HeadForward {
  Sizes sizes;
  Valid valid;
  Slice q, k, v, out;
  const void* planes;       // (P, D) in the accumulation type
  int64_t iterations;       // or rounds
  int64_t sample, band;
  double scale;
  bool exact;               // the row takes the exact path
  void* log_mass;           // (N) in the accumulation type
  int32_t* assignment;      // (N)
  int32_t* key_assignment;  // (N)
  int32_t* top_keys;        // (listed_clusters, listed_keys)
  int64_t listed_clusters, listed_keys;  // of the decisions' tensor: at least C and K, which are this row's
};

// What a backward operator needs of one (batch, key head): `group` query heads share the keys and values.
struct HeadBackward {
  Sizes sizes;
  Valid valid;
  int64_t group;
  const Slice* grad;        // per query head of the group
  const Slice* q;
  const Slice* grad_q;
  Slice k, v, grad_k, grad_v;
  double scale;
  bool exact;
  int64_t band;
  const int32_t* const* assignment;
  const int32_t* const* key_assignment;
  const int32_t* const* top_keys;
};

// The tail of one head: (C, M) and (C, M, D) in the accumulation type.
struct Cells {
  void *log_mass, *spread, *keys, *values;
};

// One operator each, on one (batch, head); every array is addressed by token position, padding included, unless said otherwise.
struct Kernels {
  const char* name;
  void (*hash_vectors)(const Slice& x, const Valid&, const Sizes&, const void* planes, int64_t* codes, Scratch&);
  void (*cluster_codes)(const int64_t* codes, const Valid&, const Sizes&, int64_t iterations, int32_t* assignment, int64_t* centroids, Scratch&);
  void (*group_mean)(const Slice& x, const int32_t* assignment, const Sizes&, double scale, void* means, Scratch&);
  void (*centroid_scores)(const Slice& centroids, const Slice& k, const Valid&, const Sizes&, void* scores, Scratch&);
  void (*top_keys)(const void* scores, int64_t score_stride, const Valid&, const Sizes&, int32_t* top_keys, Scratch&);
  void (*centroid_attention)(const void* scores, int64_t score_stride, const Slice& v, const Valid&, const Sizes&, const int32_t* top_keys, void* rest,
                             void* top_mass, void* log_mass, Scratch&);
  void (*exact_attention)(const Slice& q, const Slice& k, const Slice& v, const int32_t* assignment, const int32_t* top_keys, const void* top_mass,
                          const Sizes&, double scale, void* out, Scratch&);
  void (*cluster_rows)(const Slice& x, const Valid&, const Sizes&, int64_t rounds, int64_t sample, int32_t* assignment, Scratch&);
  void (*tail)(const void* scores, const Slice& k, const Slice& v, const int32_t* key_clusters, const int32_t* top_keys, const Sizes&, void* log_mass, void* spread,
               void* tail_keys, void* tail_values, Scratch&);
  void (*refined_attention)(const HeadForward&, const void* centroids, const void* scores, const Cells&, Scratch&);
  void (*improved_clustered)(const HeadForward&, Scratch&);   // clustered is K = 0, full_attention is exact = true
  void (*refined_clustered)(const HeadForward&, Scratch&);
  void (*improved_clustered_backward)(const HeadBackward&, Scratch&);
  void (*refined_clustered_backward)(const HeadBackward&, Scratch&);
};

// `accumulation` float32 or float64; null where the processor lacks the instruction set.
const Kernels* portable_kernels(Dtype accumulation);
#ifdef CUDA_OPS_X86
const Kernels* avx2_kernels(Dtype accumulation);
const Kernels* avx512_kernels(Dtype accumulation);
#endif
#ifdef CUDA_OPS_ARM64
const Kernels* neon_kernels(Dtype accumulation);
#endif

// Defined on the torch side.
ScratchBlock* new_block(size_t capacity);  // throws where there is no memory
void share(int64_t count, void (*task)(const void* what, int64_t i, Scratch&), const void* what);  // task(what, i) for all i below `count`, on all workers

}  // namespace cuda_ops::cpu
