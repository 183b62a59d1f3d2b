#include "table.hpp"

#include <cstring>

namespace fused_penalties {
namespace cuda {
namespace {

Place place_of(const Span& span, std::vector<Axis>& axes) {
    const bool aligned = span.rank == 0 && reinterpret_cast<uintptr_t>(span.data) % 16 == 0;
    const Place place{const_cast<unsigned char*>(span.data), uint32_t(axes.size()), uint16_t(span.rank), aligned,
                      span.dtype};
    axes.insert(axes.end(), span.axes, span.axes + span.rank);
    return place;
}

}  // namespace

HostTable::HostTable(const Span* weights, const Span* targets, size_t n, bool one_by_one)
    : ends_(n), one_by_one_(one_by_one) {
    std::vector<Buffer> buffers(n);
    std::vector<Axis> axes;
    uint64_t end = 0;
    for (size_t i = 0; i < n; ++i) {
        const Span& span = weights[i];
        const uint64_t blocks = blocks_of(span.dtype, span.count);
        ends_[i] = end += blocks;
        memset(static_cast<void*>(&buffers[i]), 0, sizeof buffers[i]);  // padding too: tables are compared as bytes
        buffers[i].weights = place_of(span, axes);
        buffers[i].target = targets ? place_of(targets[i], axes) : buffers[i].weights;
        buffers[i].count = span.count;
        buffers[i].slot = blocks > 1 ? slots_++ : -1;
    }
    const auto append = [this](const void* from, size_t size) {
        const auto* data = static_cast<const unsigned char*>(from);
        bytes_.insert(bytes_.end(), data, data + size);
    };
    append(ends_.data(), n * sizeof ends_[0]);
    append(buffers.data(), n * sizeof buffers[0]);
    append(axes.data(), axes.size() * sizeof axes[0]);
}

Table HostTable::at(const void* device) const {
    const auto* ends = static_cast<const uint64_t*>(device);
    const size_t n = ends_.size();
    const auto* buffers = reinterpret_cast<const Buffer*>(ends + n);
    return {ends, buffers, reinterpret_cast<const Axis*>(buffers + n), uint32_t(n)};
}

}  // namespace cuda
}  // namespace fused_penalties
