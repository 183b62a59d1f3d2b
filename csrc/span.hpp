// The only contract between the binding and the kernels: what a buffer is, and what a kernel does with one.
#pragma once

#include <cstdint>

#include "changes.hpp"

namespace fused_penalties {

constexpr int kMaxRank = 64;  // NumPy's

struct Axis {
    int64_t extent;
    int64_t stride;  // in bytes
};

// One buffer. Its elements are read in the order of its axes, outermost first; with no axes they are contiguous.
struct Span {
    const unsigned char* data;
    uint64_t count;  // elements
    const Axis* axes;
    int rank;
    DType dtype;
    bool swapped;  // the other byte order
};

// One instruction set's kernels. What they are given need not be aligned.
struct Kernels {
    // Of one dtype, that of the weights.
    struct OfDType {
        // The sums of each block of `count` > 0 contiguous elements; the last block may be short.
        void (*block_sums)(const void* data, uint64_t count, BlockSums* out);
        // The same for one block of `count` > 0 elements, and returns the bits of the largest magnitude in it.
        uint64_t (*sums_and_largest)(const void* data, int count, BlockSums* out);
        // What is done to gradients of one dtype.
        struct ToGrads {
            // The formula of changes.hpp over `count` contiguous elements.
            void (*add)(const void* weights, void* grads, uint64_t count, Factors factors);
            // The same for one block of `count` > 0 elements, in the read in which its sums are taken.
            BlockSums (*sum_and_add)(const void* weights, void* grads, int count, Factors factors);
            // stored_gradient over `count` contiguous elements. What the gradients hold is not used.
            void (*store)(const void* weights, void* grads, uint64_t count, Factors factors);
        };
        ToGrads own, to_float32;  // of the weights' dtype; of float32, though the weights are narrower
        // The other formulas.
        void (*proximal)(void* weights, uint64_t count, Factors factors);
        void (*scale)(void* weights, uint64_t count, Factors factors);
    };

    const char* name;
    OfDType of[kDTypes];

    const OfDType& operator[](DType dtype) const { return of[int(dtype)]; }
};

}  // namespace fused_penalties
