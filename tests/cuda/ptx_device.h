// What the instructions of PTX do that ptx_translation.py knows, on the threads of host_cuda.h. Registers start as NaN, as integers neither a small number nor an
// address; a predicate starts true.
//
// What it reports, besides what host_cuda.h does: accesses that are not at a multiple of their size, or not inside an array of shared memory; a collective whose mask
// lacks a lane; a division by zero. The order of threads must be `shuffled`: a thread that waits for another block reads in a loop, which no other order ever leaves.
#pragma once
#include <array>
#include <limits>
#include <type_traits>

#include "device.h"

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using pred = bool;

template <class T>
constexpr T POISON = T(0xffffdeadffffdead);
template <>
constexpr f32 POISON<f32> = std::numeric_limits<f32>::quiet_NaN();
constexpr u32 EVERY_LANE = 0xffffffff;

// Memory. Shared addresses are offsets in the block's pool; all others are the host's.
enum class Space { generic, global, shared, local, param };

inline u32 shared_array(const char* name, const char* file, int line, size_t bytes) {
  return u32(static_cast<char*>(host_cuda::shared(name, file, line, bytes)) - host_cuda::pool);
}
inline bool lies_in_an_array(u64 address, size_t bytes) {
  for (const host_cuda::Site& site : host_cuda::now->sites)
    if (address >= site.offset && address + bytes <= site.offset + site.bytes) return true;
  return false;
}
template <Space space>
char* access(u64 address, size_t bytes, const char* file, int line) {
  if (address % bytes) host_cuda::fail("an access is not at a multiple of its size", file, line);
  if (space != Space::shared) return reinterpret_cast<char*>(address);
  if (!lies_in_an_array(address, bytes)) host_cuda::fail("an access outside the arrays of shared memory", file, line);
  return host_cuda::pool + address;
}
// T is a number or a std::array of some.
template <Space space, class T>
T load(u64 address, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  T x;
  std::memcpy(&x, access<space>(address, sizeof x, file, line), sizeof x);
  return x;
}
template <Space space, class T>
void store(u64 address, const T& x, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  std::memcpy(access<space>(address, sizeof x, file, line), &x, sizeof x);
}
template <Space space>
u32 add_there(u64 address, u32 x, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return u32(device::add(reinterpret_cast<s32*>(access<space>(address, sizeof x, file, line)), s32(x)));
}
// A volatile read is one of many that wait for another block.
inline void let_others_go_on() { host_cuda::wait(host_cuda::State::ready); }
inline void copy_sixteen(u64 shared, u64 global, u32 bytes, int line = __builtin_LINE()) {
  if (bytes != 0 && bytes != 16) host_cuda::fail("a copy of 16 bytes has 0 or 16 to read", "", line);
  host_cuda::send(host_cuda::pool + shared, reinterpret_cast<const void*>(global), bytes == 16, line);
}

// Collectives.
inline u32 lane() { return u32(host_cuda::current % host_cuda::LANES); }
inline const u32* exchange(u32 x, u32 mask, const char* file, int line) {
  if (mask != EVERY_LANE) host_cuda::fail("a collective without all lanes", file, line);
  return host_cuda::exchange(x, line);
}
inline u32 ballot(bool here, u32 mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const u32* votes = exchange(here, mask, file, line);
  u32 word = 0;
  for (int i = 0; i < host_cuda::LANES; ++i) word |= votes[i] << i;
  return word;
}
inline u32 match(u32 x, u32 mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const u32* given = exchange(x, mask, file, line);
  u32 word = 0;
  for (int i = 0; i < host_cuda::LANES; ++i) word |= u32(given[i] == x) << i;
  return word;
}
// `within` is 31: the whole warp is one segment.
inline u32 shuffle(u32 x, u32 from, u32 within, u32 mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (within != 31) host_cuda::fail("a shuffle within a part of the warp", file, line);
  return exchange(x, mask, file, line)[from % host_cuda::LANES];
}
// nvcc may write one barrier of the source in several places, where threads of a block meet all the same.
inline void barrier() { host_cuda::barrier(0); }

// Numbers.
template <class T>
T product(T x, T y) {
  return T(1u * x * y);  // not as int, which short numbers would become
}
template <class T>
T high_product(T x, T y) {
  using Whole = std::conditional_t<sizeof(T) == 4, s64, __int128>;
  return T(Whole(x) * Whole(y) >> 8 * sizeof(T));
}
template <class T>
T divisor(T x, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (x == 0) host_cuda::fail("a division by zero", file, line);
  return x;
}
// A shift by more than there is leaves nothing but the sign.
template <class T>
T shifted_left(T x, u32 bits) {
  return bits < 8 * sizeof(T) ? T(x << bits) : T(0);
}
template <class T>
T shifted_right(T x, u32 bits) {
  return bits < 8 * sizeof(T) ? T(x >> bits) : T(x < 0 ? -1 : 0);
}
inline u32 funnel_left(u32 low, u32 high, u32 bits) { return u32((u64(high) << 32 | low) << bits % 32 >> 32); }
template <class T>
T ones(u32 count) {
  return count < 8 * sizeof(T) ? T((T(1) << count) - 1) : T(-1);
}
inline u32 extracted(u32 x, u32 first, u32 count) { return shifted_right(x, first & 255) & ones<u32>(count & 255); }
inline u64 inserted(u64 x, u64 into, u32 first, u32 count) {
  const u64 mask = shifted_left(ones<u64>(count & 255), first & 255);
  return (into & ~mask) | (shifted_left(x, first & 255) & mask);
}
// Each half-byte of `which` chooses a byte, of which its highest bit takes the sign alone.
inline u32 permuted(u32 low, u32 high, u32 which) {
  const u64 bytes = u64(high) << 32 | low;
  u32 word = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 choice = which >> 4 * i & 15, byte = u32(bytes >> 8 * (choice & 7)) & 255;
    word |= (choice < 8 ? byte : byte >> 7 ? 255 : 0) << 8 * i;
  }
  return word;
}
inline u32 dot_of_two(u32 halves, u32 bytes, u32 sum) { return sum + (halves & 0xffff) * (bytes & 255) + (halves >> 16) * (bytes >> 8 & 255); }
inline f32 saturated(f32 x) { return x > 0 ? x < 1 ? x : 1 : 0; }
// Towards minus infinity. The product is exact in 64 bits; their sum is rounded once more, which the numbers that nvcc's expf gives it never show.
inline f32 fma_down(f32 x, f32 y, f32 z) {
  const double sum = double(x) * double(y) + double(z);
  const f32 nearest = f32(sum);
  return double(nearest) > sum ? std::nextafter(nearest, -infinity()) : nearest;
}

}  // namespace ptx
