// The only contract between the binding and the kernels: what a buffer is, and what a kernel does with one.
#pragma once

#include <cstdint>

#include "element.hpp"

namespace fused_penalties {

enum class DType : uint8_t { float16, bfloat16, float32, float64 };

FUSED_PENALTIES_HD constexpr int itemsize(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}
FUSED_PENALTIES_HD constexpr int block_elements(DType dtype) { return kBlockBytes / itemsize(dtype); }

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

// One instruction set's kernels, indexed by DType where they depend on one. `data` need not be aligned.
struct Kernels {
    const char* name;
    // The sums of each block of `count` > 0 contiguous elements; the last block may be short.
    void (*block_sums[4])(const void* data, uint64_t count, BlockSums* out);
    // The formulas of element.hpp over `count` contiguous elements, by the dtype of the weights; gradients are of
    // the same dtype [0], or float32 though the weights have 16 bits [1].
    void (*add_gradient[4][2])(const void* weights, void* grads, uint64_t count, Factors factors);
    void (*proximal[4])(void* weights, uint64_t count, Factors factors);
    void (*scale[4])(void* weights, uint64_t count, Factors factors);
    // Reads `bytes` bytes and does next to nothing with them: the limit that benchmarks compare with.
    uint64_t (*read)(const void* data, uint64_t bytes);
    // Reads both and writes the second: the limit for gradients.
    void (*exchange)(const void* weights, void* grads, uint64_t bytes);
};

}  // namespace fused_penalties
