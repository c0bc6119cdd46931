// The valid tokens of a slice as rows of the accumulation type: pointers into the tensor where its dtype allows, else converted, all at once or some at a time.
#pragma once
#include "math.h"
#include "scratch.h"

namespace {

template <class A>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::float32;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::float64;
}

inline float from_bfloat16(uint16_t x) { return bits_to_float(uint32_t(x) << 16); }
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 16-bit inputs are accumulated in float32.
inline int64_t widen_vectors(const uint16_t*, int64_t, double*) { return 0; }
inline int64_t narrow_vectors(const double*, int64_t, uint16_t*) { return 0; }

template <class A, class T, A (*convert)(T)>
inline void convert_row(const T* from, int64_t stride, int64_t count, A* to) {
  if (stride == 1) {
    for (int64_t d = 0; d < count; ++d) to[d] = convert(from[d]);
  } else {
    for (int64_t d = 0; d < count; ++d) to[d] = convert(from[d * stride]);
  }
}
template <class A, class T>
inline A widen(T x) {
  return A(x);
}
template <class A>
inline A widen_bfloat16(uint16_t x) {
  return A(from_bfloat16(x));
}
template <class A>
inline A widen_float16(uint16_t x) {
  return A(from_float16(x));
}

template <class A>
inline void read_row(const Slice& slice, int64_t token, int64_t count, A* to) {
  const int64_t at = token * slice.token_stride;
  switch (slice.dtype) {
    case Dtype::float32:
      return convert_row<A, float, widen<A, float>>(static_cast<const float*>(slice.base) + at, slice.element_stride, count, to);
    case Dtype::float64:
      return convert_row<A, double, widen<A, double>>(static_cast<const double*>(slice.base) + at, slice.element_stride, count, to);
    case Dtype::bfloat16:
      return convert_row<A, uint16_t, widen_bfloat16<A>>(static_cast<const uint16_t*>(slice.base) + at, slice.element_stride, count, to);
    case Dtype::float16: {
      const uint16_t* from = static_cast<const uint16_t*>(slice.base) + at;
      const int64_t done = slice.element_stride == 1 ? widen_vectors(from, count, to) : 0;
      return convert_row<A, uint16_t, widen_float16<A>>(from + done * slice.element_stride, slice.element_stride, count - done, to + done);
    }
  }
}

template <class A>
CUDA_OPS_INLINE void copy_row(const A* row, int64_t D, A* to) {
  constexpr int L = Vec<A>::lanes;
  int64_t d = 0;
  for (; d + L <= D; d += L) store(to + d, load(row + d));
  if (d < D) store_part(to + d, load_part(row + d, D - d), D - d);
}

// Bytes of an output that the cache of a core cannot hold: its rows are streamed past it.
constexpr int64_t STREAMED = int64_t(1) << 20;

template <class A>
inline void write_own_row(const Slice& slice, int64_t at, int64_t count, const A* from) {
  constexpr int L = Vec<A>::lanes;
  A* to = static_cast<A*>(slice.base) + at;
  int64_t d = 0;
  if (slice.bytes >= STREAMED && size_t(to) % sizeof(vec<A>) == 0)
    for (; d + L <= count; d += L) stream(to + d, load(from + d));
  copy_row(from + d, count - d, to + d);
}

// Outputs are contiguous along D.
template <class A>
inline void write_row(const Slice& slice, int64_t token, int64_t count, const A* from) {
  const int64_t at = token * slice.token_stride;
  switch (slice.dtype) {
    case Dtype::float32:
    case Dtype::float64:
      return write_own_row(slice, at, count, from);  // accumulated in their own type
    case Dtype::bfloat16:
      for (int64_t d = 0; d < count; ++d) static_cast<uint16_t*>(slice.base)[at + d] = to_bfloat16(float(from[d]));
      return;
    case Dtype::float16: {
      uint16_t* to = static_cast<uint16_t*>(slice.base) + at;
      for (int64_t d = narrow_vectors(from, count, to); d < count; ++d) to[d] = to_float16(float(from[d]));
      return;
    }
  }
}

inline size_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

template <class A>
struct Rows {
  const A* base;
  int64_t stride;
  const int32_t* position;  // null: row i lies at i * stride
  const A* operator[](int64_t i) const { return base + (position ? int64_t(position[i]) : i) * stride; }
};

// The valid tokens of a slice.
template <class A>
struct Tokens {
  Slice slice;
  Valid valid;
  bool side_by_side() const { return slice.element_stride == 1; }
  bool in_place() const { return slice.dtype == dtype_of<A>() && side_by_side(); }
  Rows<A> rows() const { return {static_cast<const A*>(slice.base), slice.token_stride, valid.position}; }  // if in place
  int64_t bytes(int64_t elements) const { return elements * int64_t(bytes_of(slice.dtype)); }
  const char* bytes_at(int64_t i) const { return static_cast<const char*>(slice.base) + bytes(valid.position[i] * slice.token_stride); }
};

// The same rows without the first `skipped`.
template <class A>
inline Rows<A> rows_from(const Rows<A>& rows, int64_t skipped) {
  return {rows.position ? rows.base : rows.base + skipped * rows.stride, rows.stride, rows.position ? rows.position + skipped : nullptr};
}

// How many rows before its turn one is fetched where they are taken one by one.
constexpr int64_t AHEAD = 8;

// Rows of a cluster lie scattered, and those of one head far apart, so the processor does not see them coming. A few at a time: it can wait for few.
template <class A>
CUDA_OPS_INLINE void prefetch_row(const A* row, int64_t D) {
  constexpr int64_t LINE = 64 / sizeof(A);
  for (int64_t d = 0; d < D; d += LINE) __builtin_prefetch(row + d);
}
// Lines of memory to fetch while something else is computed, a few at a time: the processor would wait for many.
// Rows of one head lie on pages of their own. At the first line of a page the processor looks for where the page is and waits, but for four of them no longer
// than for one: the first lines of four rows come before the others of these.
struct Ahead {
  static constexpr int64_t PAGES = 4;
  const void** lines;
  int64_t begin, end;  // of those to come
  // Every AHEAD_STEPS steps of an inner loop.
  CUDA_OPS_INLINE void next() {
    const int64_t last = smaller(begin + AHEAD_LINES, end);
    while (begin < last) __builtin_prefetch(lines[begin++]);
  }
  void clear() { begin = end = 0; }
  // Rows of so many bytes; row_at(i) is the first of them.
  template <class RowAt>
  void add_rows(int64_t count, int64_t bytes, const RowAt& row_at) {
    for (int64_t first = 0; first < count; first += PAGES) {
      const int64_t last = smaller(first + PAGES, count);
      for (int64_t i = first; i < last; ++i) lines[end++] = row_at(i);
      for (int64_t i = first; i < last; ++i) {
        const char* row = reinterpret_cast<const char*>(row_at(i));
        for (int64_t line = 64; line < bytes; line += 64) lines[end++] = row + line;
      }
    }
  }
  template <class A>
  void add_rows(const Rows<A>& rows, int64_t first, int64_t count, int64_t D) {
    add_rows(count, D * int64_t(sizeof(A)), [&](int64_t i) { return rows[first + i]; });
  }
  template <class A>
  void add_rows(const Tokens<A>& tokens, int64_t first, int64_t count, int64_t D) {
    if (tokens.side_by_side()) add_rows(count, tokens.bytes(D), [&](int64_t i) { return tokens.bytes_at(first + i); });
  }
  template <class Source>
  void set_rows(const Source& source, int64_t first, int64_t count, int64_t D) {
    clear();
    add_rows(source, first, count, D);
  }
};
inline Ahead nothing_ahead{nullptr, 0, 0};  // never changes

// Room for the lines of so many rows.
template <class A>
inline Ahead take_ahead(int64_t rows, int64_t D, Scratch& scratch) {
  return {take<const void*>(scratch, rows * (D * int64_t(sizeof(A)) / 64 + 1)), 0, 0};
}

// Fetches row i, which is read soon.
template <class A>
CUDA_OPS_INLINE void prefetch_token(const Tokens<A>& tokens, int64_t i, int64_t D) {
  if (tokens.side_by_side()) prefetch_row(tokens.bytes_at(i), tokens.bytes(D));
}

// Row i as (D) at `to`.
template <class A>
CUDA_OPS_INLINE void copy_token(const Rows<A>& rows, int64_t i, int64_t D, A* to) {
  copy_row(rows[i], D, to);
}
template <class A>
inline void copy_token(const Tokens<A>& tokens, int64_t i, int64_t D, A* to) {
  if (tokens.in_place()) return copy_row(tokens.rows()[i], D, to);
  read_row(tokens.slice, tokens.valid.position[i], D, to);
}

// The rows from `first` on, copied to `to`, (count, D).
template <class A>
inline Rows<A> copied_rows(const Rows<A>& rows, int64_t first, int64_t count, int64_t D, A* to) {
  for (int64_t i = 0; i < count; ++i) copy_row(rows[first + i], D, to + i * D);
  return {to, D, nullptr};
}
template <class A>
inline Rows<A> copied_rows(const Tokens<A>& tokens, int64_t first, int64_t count, int64_t D, A* to) {
  if (tokens.in_place()) return copied_rows(tokens.rows(), first, count, D, to);
  for (int64_t i = 0; i < count; ++i) copy_token(tokens, first + i, D, to + i * D);
  return {to, D, nullptr};
}

// The listed rows, copied likewise.
template <class A, template <class> class Source>
inline Rows<A> copied_list(const Source<A>& source, const int32_t* list, int64_t count, int64_t D, A* to) {
  for (int64_t i = 0; i < count; ++i) copy_token(source, list[i], D, to + i * D);
  return {to, D, nullptr};
}

// The rows from `first` on, where they lie or converted in `room`: what room_for gives for as many rows.
template <class A>
inline A* room_for(const Rows<A>&, int64_t, int64_t, Scratch&) {
  return nullptr;
}
template <class A>
inline A* room_for(const Tokens<A>& tokens, int64_t count, int64_t D, Scratch& scratch) {
  return tokens.in_place() ? nullptr : take<A>(scratch, count * D);
}
template <class A>
inline Rows<A> some_rows(const Rows<A>& rows, int64_t first, int64_t, int64_t, A*) {
  return rows_from(rows, first);
}
template <class A>
inline Rows<A> some_rows(const Tokens<A>& tokens, int64_t first, int64_t count, int64_t D, A* room) {
  return tokens.in_place() ? rows_from(tokens.rows(), first) : copied_rows(tokens, first, count, D, room);
}

// All of them at once.
template <class A>
inline Rows<A> valid_rows(const Slice& slice, const Valid& valid, int64_t D, Scratch& scratch) {
  const Tokens<A> tokens{slice, valid};
  if (tokens.in_place()) return tokens.rows();
  A* packed = take<A>(scratch, valid.n * D);
  for (int64_t i = 0; i < valid.n; ++i) {
    if (i + AHEAD < valid.n) prefetch_token(tokens, i + AHEAD, D);
    copy_token(tokens, i, D, packed + i * D);
  }
  return {packed, D, nullptr};
}

// Zeros in the output rows of the tokens that are not valid.
inline void clear_padding(const Slice& out, const Valid& valid, const Sizes& sizes) {
  const size_t element = bytes_of(out.dtype);
  int64_t i = 0;
  for (int64_t token = 0; token < sizes.N; ++token) {
    if (i < valid.n && valid.position[i] == token) {
      ++i;
      continue;
    }
    clear(static_cast<char*>(out.base) + size_t(token * out.token_stride) * element, size_t(sizes.D) * element);
  }
}

}  // namespace
