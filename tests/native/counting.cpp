// Lets a Python that runs under valgrind --tool=callgrind say what is to be counted; build/counted_calls.py loads it.
#include <valgrind/callgrind.h>

extern "C" {
void start() { CALLGRIND_START_INSTRUMENTATION; }
void zero() { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
}
