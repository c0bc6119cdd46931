// What callgrind counts, and under which name: nothing before the first begin_count, then each time from there to end_count.
#include <valgrind/callgrind.h>

extern "C" void begin_count() {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

extern "C" void end_count(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
