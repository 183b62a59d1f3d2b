// Many buffers as a kernel sees them: one stretch of device memory that is uploaded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../span.hpp"

namespace fused_penalties {
namespace cuda {

// Where elements lie. With rank 0 they are contiguous; else they are found as a Span's are, through axes.
struct Place {
    unsigned char* data;  // null: nowhere
    uint32_t axes;        // the first of `rank` in the table's
    uint16_t rank;
    bool aligned;  // contiguous, and every block of them at a multiple of 16 bytes
    DType dtype;
};

struct Buffer {
    Place weights;
    Place target;  // what a change writes: the gradient, or the weights themselves
    uint64_t count;
    int64_t slot;  // its row of accumulators; -1: it has at most one block and needs none
};

// What the kernels are given: pointers into device memory.
struct Table {
    const uint64_t* ends;  // the blocks of all buffers in one line: where each buffer's end
    const Buffer* buffers;
    const Axis* axes;
    uint32_t n;
};

// A table before it is uploaded, and what the host has to know about it.
class HostTable {
public:
    // `targets` are in step with `weights`, or null, which means that the weights are the targets. With `one_by_one`
    // a change finishes each buffer before it begins the next: needed where buffers have memory in common, which
    // two warps could else change at once.
    HostTable(const Span* weights, const Span* targets, size_t n, bool one_by_one);

    const std::vector<unsigned char>& bytes() const { return bytes_; }
    size_t buffers() const { return ends_.size(); }
    uint64_t blocks() const { return ends_.empty() ? 0 : ends_.back(); }
    uint64_t begin(size_t i) const { return i ? ends_[i - 1] : 0; }
    uint64_t end(size_t i) const { return ends_[i]; }
    int64_t slots() const { return slots_; }
    bool one_by_one() const { return one_by_one_; }
    // The table where its bytes were uploaded to.
    Table at(const void* device) const;

private:
    std::vector<unsigned char> bytes_;
    std::vector<uint64_t> ends_;
    int64_t slots_ = 0;
    bool one_by_one_;
};

}  // namespace cuda
}  // namespace fused_penalties
