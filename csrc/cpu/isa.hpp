// The instruction sets that may be compiled in, one table of kernels each.
#pragma once

#include "../span.hpp"

namespace fused_penalties {

extern const Kernels kScalar;
extern const Kernels kBaseline;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;

// `Kernels::of` in the file that says FUSED_PENALTIES_KERNELS, whose functions and types all are its own: it has to
// have a type of each name in dtype.hpp's list.
#define FUSED_PENALTIES_TO_GRADS(...) \
    {differentiate<__VA_ARGS__, true>, sums_and_gradient<__VA_ARGS__>, differentiate<__VA_ARGS__, false>}
#define FUSED_PENALTIES_KERNELS_OF(dtype, Type)                                                        \
    {block_sums<Type>,                                                                                 \
     sums_and_largest<Type>,                                                                           \
     FUSED_PENALTIES_TO_GRADS(Type, Type),                                                             \
     FUSED_PENALTIES_TO_GRADS(Type, std::conditional_t<canon::is_narrow<canon::Type>, Float32, Type>), \
     proximal<Type>,                                                                                   \
     scale<Type>},
#define FUSED_PENALTIES_KERNELS {FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_KERNELS_OF)}

}  // namespace fused_penalties
