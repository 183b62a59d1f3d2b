// One read of many buffers: the work is cut by blocks, not by buffers, and shared between threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../exact.hpp"
#include "../span.hpp"

namespace fused_penalties {

// Where the results of n buffers go. `total` gets the exact sums over all of them.
struct SweepResult {
    double* abs;     // n, or null
    double* square;  // n, or null
    int64_t* limbs;  // n x 2 x kLimbs, canonical, or null
    ExactSums* total;
};

// Reads each span once with at most `threads` threads (0: as many as OpenMP would take).
void sweep(const Span* spans, size_t n, int threads, const Kernels& kernels, const SweepResult& result);

// The same walk over the bytes of contiguous spans with no arithmetic: what a benchmark takes for the limit.
uint64_t read(const Span* spans, size_t n, int threads, const Kernels& kernels);

// The number of threads that a call takes unless it says otherwise: 1 in a child process after fork().
int default_threads();

}  // namespace fused_penalties
