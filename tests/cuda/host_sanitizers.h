// What host_cuda.h tells AddressSanitizer and ThreadSanitizer, where it is compiled with one of them: which stack is in use, who waited for whom, which shared memory
// nobody asked for. Nothing without them.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace host_cuda::sanitizers {

#ifdef __SANITIZE_ADDRESS__
// A fiber's stack, or the scheduler's, which is known once a fiber was changed to.
struct Place {
  void* fake = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
};
inline void prepare(Place& place, char* stack, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(stack, bytes);
  place = {nullptr, stack, bytes};
}
inline void leave(Place& from, const Place& to, bool for_ever) { __sanitizer_start_switch_fiber(for_ever ? nullptr : &from.fake, to.bottom, to.bytes); }
inline void arrive(const Place& here) { __sanitizer_finish_switch_fiber(here.fake, nullptr, nullptr); }
inline void begin(Place& scheduler) { __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.bytes); }
inline void forbid(const void* from, size_t bytes) { ASAN_POISON_MEMORY_REGION(from, bytes); }
inline void allow(const void* from, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(from, bytes); }
constexpr bool GUARDS_ARE_POISONED = true;
#else
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
constexpr bool GUARDS_ARE_POISONED = false;
#endif

#ifdef __SANITIZE_THREAD__
struct Place {
  void* thread = nullptr;
};
inline void prepare(Place& place, char*, size_t) {
  if (!place.thread) place.thread = __tsan_create_fiber(0);
}
// Inlined, or the end of this function would count as one of the fiber that is changed to.
__attribute__((always_inline)) inline void leave(Place& from, const Place& to, bool) {
  if (!from.thread) from.thread = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
}
inline void arrive(const Place&) {}
inline void begin(Place&) {}
inline void release(void* object) { __tsan_release(object); }
inline void acquire(void* object) { __tsan_acquire(object); }
// What the host's own code reads and writes is no matter of the kernel.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
// Blocks that follow each other run as different threads, and nothing orders them: what one writes and the next reads is a race.
constexpr int SETS = 2;
#else
inline void release(void*) {}
inline void acquire(void*) {}
struct Unseen {
  Unseen() {}
};
constexpr int SETS = 1;
#endif

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
struct Place {};
inline void prepare(Place&, char*, size_t) {}
inline void leave(Place&, const Place&, bool) {}
inline void arrive(const Place&) {}
inline void begin(Place&) {}
#endif

}  // namespace host_cuda::sanitizers
