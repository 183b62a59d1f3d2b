// What kernels are given.
#pragma once

#include "../exact.hpp"
#include "table.hpp"

namespace fused_penalties {
namespace cuda {

// A row of limbs: those of the abs sum, then those of the square sum.
constexpr int kBothLimbs = 2 * kLimbs;

// What a call's kernels leave to its last one, `finish`. It is zero before the first call, and `finish` leaves it zero
// for the next, but for `singles`, of which a call uses only what it wrote itself.
struct Workspace {
    int64_t* limbs;      // (1 + slots) x kBothLimbs: the totals, then the accumulators of the buffers that have one
    BlockSums* singles;  // n: the sums of the buffers that have one block
    uint32_t* finished;  // how many blocks of threads are done
};

// Part of the line of all blocks, cut into chunks whose sizes differ by one block at most. Of w warps
// number k takes the chunks k, k + w, k + 2w and so on, so that at any time all of them read in one neighbourhood.
struct Range {
    uint64_t first, end, chunks;
};

// Each buffer's l1 and l2. A buffer for which both are zero is not read.
struct Coefficients {
    const double *l1, *l2;
};

struct SumArguments {
    Table table;
    Range range;
    Workspace workspace;
    Coefficients coefficients;  // or null: every buffer is read
};

// The same, and the largest magnitudes, as the bits of float64: each buffer's, then the one over all. They are zero
// before, and there is no more to them: `finish` has no part in it.
struct LargestArguments : SumArguments {
    uint64_t* largest;  // n + 1
};

// The number of a change: known here, or read by the kernel, so that nobody waits for what computes it.
struct Number {
    double known;
    const void* on_device;  // where it lies in device memory, or null
    bool wide;              // there it is float64, else float32
};

struct GradientArguments {
    Table table;
    Range range;
    Workspace workspace;
    Coefficients coefficients;
    Number upstream;
    bool sum;  // in the same read
};

struct UpdateArguments {
    ChangeKind kind;
    Table table;
    Range range;
    Coefficients coefficients;  // or null: every buffer is changed
    Number number;
};

// Where results go; null if one is not wanted. Over all buffers either the penalty is wanted or sums, never both.
struct FinishArguments {
    Table table;
    Workspace workspace;
    Coefficients coefficients;  // for value and values
    double *abs, *square;       // n
    int64_t* limbs;             // n x kBothLimbs, canonical
    double* totals;             // 2
    double* norm;               // 2: the L2 norm over all buffers, and what to scale by to get max_norm
    double max_norm;
    void* value;   // the penalty over all buffers
    void* values;  // n: each buffer's
    bool wide;     // value and values are float64, else float32
};

}  // namespace cuda
}  // namespace fused_penalties
