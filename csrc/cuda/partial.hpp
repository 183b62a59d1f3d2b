// The sums of blocks brought together in integers, so that no schedule changes a bit: a warp adds up what it reads of
// one buffer, and the warps of a block of threads add theirs to the workspace.
#pragma once

#include "arguments.hpp"
#include "elements.hpp"

namespace fused_penalties {
namespace cuda {

FUSED_PENALTIES_DEVICE void clear(int64_t* row) {
    each_lane([&](int lane) {
        for (int k = lane; k < kBothLimbs; k += kLanes) row[k] = 0;
    });
    barrier();
}

// What a warp needs in shared memory.
struct WarpMemory {
    int64_t row[kBothLimbs];  // limbs of what the warp has summed, but not yet added to the workspace
    int64_t slot;             // of the buffer that was summed; -1: there is none, or it needs none
    alignas(16) unsigned char stage[kLanes * kStage];
};

FUSED_PENALTIES_DEVICE int64_t* row_of(const Workspace& workspace, int64_t slot) {
    return workspace.limbs + (1 + slot) * kBothLimbs;
}

// The sums of what a warp reads of one buffer, until it comes to another. The last buffer's stay in shared memory.
class Partial {
public:
    FUSED_PENALTIES_DEVICE Partial(const Workspace& workspace, WarpMemory& memory)
        : workspace_(workspace), memory_(memory) {
        each_lane([&](int lane) {
            if (lane == 0) memory.slot = -1;
        });
        clear(memory.row);
    }

    // What is added from now on is this buffer's.
    FUSED_PENALTIES_DEVICE void begin(uint32_t i, const Buffer& buffer) {
        i_ = i;
        if (buffer.slot == memory_.slot) return;
        if (memory_.slot >= 0) flush();
        barrier();
        each_lane([&](int lane) {
            if (lane == 0) memory_.slot = buffer.slot;
        });
        barrier();
    }

    FUSED_PENALTIES_DEVICE void add(const PerLane<double>& sums) {
        each_lane([&](int lane) {
            if (lane % 16 != 0) return;
            if (memory_.slot < 0) {
                (lane == 0 ? workspace_.singles[i_].abs : workspace_.singles[i_].square) = sums[lane];
            } else {
                limbs::deposit(memory_.row + lane / 16 * kLimbs, sums[lane]);
            }
        });
    }

private:
    FUSED_PENALTIES_DEVICE void flush() {
        barrier();
        int64_t* to = row_of(workspace_, memory_.slot);
        each_lane([&](int lane) {
            for (int k = lane; k < kBothLimbs; k += kLanes) {
                if (memory_.row[k] == 0) continue;
                atomic_add(to + k, memory_.row[k]);
                memory_.row[k] = 0;
            }
        });
    }

    const Workspace& workspace_;
    WarpMemory& memory_;
    uint32_t i_ = 0;
};

// When all warps of a block of threads are done: adds what they still have in shared memory to the workspace. Warps
// that ended with the same buffer, as most do in large ones, add their rows first, so that there are fewer atomics: the
// first of them does it.
template <class Memory>
FUSED_PENALTIES_DEVICE void bring_together(const Workspace& workspace, const Memory* memory, uint32_t warps,
                                           uint32_t warp) {
    const int64_t slot = memory[warp].slot;
    bool first = slot >= 0;
    for (uint32_t other = 0; other < warp; ++other) first = first && memory[other].slot != slot;
    if (!first) return;
    each_lane([&](int lane) {
        for (int k = lane; k < kBothLimbs; k += kLanes) {
            int64_t sum = 0;
            for (uint32_t other = warp; other < warps; ++other)
                if (memory[other].slot == slot) sum += memory[other].row[k];
            if (sum != 0) atomic_add(row_of(workspace, slot) + k, sum);
        }
    });
}

}  // namespace cuda
}  // namespace fused_penalties
