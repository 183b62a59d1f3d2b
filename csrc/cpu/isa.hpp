// The instruction sets that may be compiled in, one table of kernels each.
#pragma once

#include "../span.hpp"

namespace fused_penalties {

extern const Kernels kScalar;
extern const Kernels kBaseline;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;

// The table of the file that says this, whose templates and functions all are its own.
#define FUSED_PENALTIES_KERNELS(name) \
    {name, {block_sums<Float16>, block_sums<BFloat16>, block_sums<Float32>, block_sums<Float64>}, read}

}  // namespace fused_penalties
