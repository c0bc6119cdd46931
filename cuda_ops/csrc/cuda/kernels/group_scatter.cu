#include "group_scatter.h"

namespace {

constexpr int THREADS = 256, TOKENS = 64;
struct alignas(16) Sixteen {
  uint32_t words[4];
};

// A block writes TOKENS rows of one head, in units as large as the rows allow.
template <class Unit>
CUDA_OPS_KERNEL scatter_rows(const Unit* values, const int32_t* assignment, int64_t N, int64_t C, int64_t units, Unit* out) {
  const int64_t tiles = (N + TOKENS - 1) / TOKENS, head = device::block() / tiles, first = device::block() % tiles * TOKENS;
  const int64_t rows = smaller<int64_t>(TOKENS, N - first);
  assignment += head * N + first;
  out += (head * N + first) * units;
  for (int64_t e = device::thread(); e < rows * units; e += THREADS) {
    const int64_t c = assignment[e / units];
    out[e] = c >= 0 && c < C ? values[(head * C + c) * units + e % units] : Unit{};
  }
}

template <class Unit>
bool scatter(const void* values, const int32_t* assignment, int64_t heads, int64_t N, int64_t C, int64_t row_bytes, void* out, Stream stream) {
  constexpr int64_t bytes = sizeof(Unit);
  if (row_bytes % bytes || uintptr_t(values) % bytes || uintptr_t(out) % bytes) return false;
  CUDA_OPS_LAUNCH(scatter_rows<Unit>, heads * ((N + TOKENS - 1) / TOKENS), THREADS, stream, static_cast<const Unit*>(values), assignment, N, C, row_bytes / bytes,
                  static_cast<Unit*>(out));
  return true;
}

}  // namespace

namespace cuda_ops::launch {

void group_scatter(const void* values, const int32_t* assignment, int64_t B, int64_t H, int64_t N, int64_t C, int64_t row_bytes, void* out, Stream stream) {
  if (B * H * N * row_bytes == 0) return;
  if (scatter<Sixteen>(values, assignment, B * H, N, C, row_bytes, out, stream)) return;
  if (scatter<uint32_t>(values, assignment, B * H, N, C, row_bytes, out, stream)) return;
  scatter<uint16_t>(values, assignment, B * H, N, C, row_bytes, out, stream);
}

}  // namespace cuda_ops::launch
