// Who works on what. The blocks of all buffers form one line, which is cut into chunks that warps take in turn. Here a
// warp finds which blocks are its own, and which buffer each is of.
#pragma once

#include "arguments.hpp"
#include "lanes.hpp"

namespace fused_penalties {
namespace cuda {

// The first buffer, from `low` on, that ends after `block`; there must be one. In each step of the search every lane
// looks at one place.
FUSED_PENALTIES_DEVICE uint32_t buffer_of(const Table& table, uint32_t low, uint64_t block) {
    uint32_t high = table.n - 1;
    while (low < high) {
        const uint32_t step = (high - low + kLanes - 1) / kLanes;
        PerLane<bool> before;
        each_lane([&](int lane) {
            const uint64_t at = low + uint64_t(lane + 1) * step - 1;
            before[lane] = at < high && table.ends[at] <= block;
        });
        const uint64_t first = low + uint64_t(count_ones(ballot(before))) * step;
        low = uint32_t(first < high ? first : high);
        high = uint32_t(first + step - 1 < high ? first + step - 1 : high);
    }
    return low;
}

// Calls visit(i, buffer, first, end) for the runs of blocks of one buffer that this warp takes.
template <class Visit>
FUSED_PENALTIES_DEVICE void sweep(const Table& table, const Range& range, uint32_t warp, uint32_t warps,
                                  const Visit& visit) {
    const uint64_t blocks = range.end - range.first, size = blocks / range.chunks, larger = blocks % range.chunks;
    for (uint64_t chunk = warp; chunk < range.chunks; chunk += warps) {
        const uint64_t block = range.first + chunk * size + (chunk < larger ? chunk : larger);
        const uint64_t end = block + size + (chunk < larger);
        uint32_t i = 0;
        for (uint64_t at = block; at < end;) {
            i = buffer_of(table, i, at);
            const uint64_t begin = i ? table.ends[i - 1] : 0;
            const uint64_t stop = end < table.ends[i] ? end : table.ends[i];
            const Buffer buffer = table.buffers[i];  // a copy: else every block would read it again
            visit(i, buffer, at - begin, stop - begin);
            at = stop;
        }
    }
}

// Calls visit(first, n) for each of the blocks [begin, end) of a buffer: its first element, and how many there are.
template <class Visit>
FUSED_PENALTIES_DEVICE void each_block(const Buffer& buffer, uint64_t begin, uint64_t end, const Visit& visit) {
    const uint64_t each = uint64_t(block_elements(buffer.weights.dtype));
    for (uint64_t first = begin * each; first < end * each; first += each) {
        const uint64_t left = buffer.count - first;
        visit(first, int(left < each ? left : each));
    }
}

}  // namespace cuda
}  // namespace fused_penalties
