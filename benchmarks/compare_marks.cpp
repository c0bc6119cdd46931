// Where callgrind counts: it is off before begin_count, and end_count writes what was counted under a name.
#include <valgrind/callgrind.h>

extern "C" void begin_count() {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

extern "C" void end_count(const char* name) {
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
}
