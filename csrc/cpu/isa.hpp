// The instruction sets that may be compiled in, one table of kernels each.
#pragma once

#include "../span.hpp"

namespace fused_penalties {

extern const Kernels kScalar;
extern const Kernels kBaseline;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;

// The table of the file that says this, whose functions and element types all are its own.
#define FUSED_PENALTIES_KERNELS(name)                                                       \
    {name,                                                                                  \
     {block_sums<Float16>, block_sums<BFloat16>, block_sums<Float32>, block_sums<Float64>}, \
     {{add_gradient<Halves, Halves>, add_gradient<Halves, Floats32>},                       \
      {add_gradient<Bfloats, Bfloats>, add_gradient<Bfloats, Floats32>},                    \
      {add_gradient<Floats32, Floats32>, nullptr},                                          \
      {add_gradient<Floats64, Floats64>, nullptr}},                                         \
     {proximal<Halves>, proximal<Bfloats>, proximal<Floats32>, proximal<Floats64>},         \
     {scale<Halves>, scale<Bfloats>, scale<Floats32>, scale<Floats64>},                     \
     read,                                                                                  \
     exchange}

}  // namespace fused_penalties
