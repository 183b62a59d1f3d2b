// The largest magnitudes brought together: each lane keeps that of what it reads of a buffer, and a warp gives its own
// to an atomic maximum of integers, whose order says nothing.
#pragma once

#include <cstring>

#include "arguments.hpp"
#include "partial.hpp"
#include "tree.hpp"

namespace fused_penalties {
namespace cuda {

// What a warp needs in shared memory, with a place for every lane: beside a block's sums there is no register left.
struct LargestMemory : WarpMemory {
    uint32_t buffer;  // whose is in of_buffer; -1 for none
    uint64_t of_buffer[kLanes], of_all[kLanes];
};

class Largest {
public:
    static constexpr bool kSought = true;
    using Memory = LargestMemory;

    FUSED_PENALTIES_DEVICE Largest(const LargestArguments& arguments, Memory& memory)
        : arguments_(arguments), memory_(memory) {
        each_lane([&](int lane) { memory.of_buffer[lane] = memory.of_all[lane] = 0; });
        set_buffer(kNone);
    }

    // What is taken from now on is this buffer's.
    FUSED_PENALTIES_DEVICE void begin(uint32_t i) {
        if (i == memory_.buffer) return;
        end_buffer();
        set_buffer(i);
    }

    // Takes that of a block, before its sums are folded, for which every register is needed,
    template <class Type>
    FUSED_PENALTIES_DEVICE void take(const PerLane<Accumulators<Type, true>>& block) {
        each_lane([&](int lane) {
            const double largest = block[lane].largest;
            uint64_t bits;
            memcpy(&bits, &largest, sizeof bits);
            if (bits > memory_.of_buffer[lane]) memory_.of_buffer[lane] = bits;
        });
    }
    // and after: they are NaN if there is one.
    FUSED_PENALTIES_DEVICE void take_nan(const PerLane<double>& sums) {
        each_lane([&](int lane) {
            if (sums[lane] != sums[lane]) memory_.of_buffer[lane] = limbs::kNaN;
        });
    }

    // When all is taken.
    FUSED_PENALTIES_DEVICE void end() {
        end_buffer();
        write(memory_.of_all, arguments_.table.n);
    }

private:
    static constexpr uint32_t kNone = uint32_t(-1);

    FUSED_PENALTIES_DEVICE void set_buffer(uint32_t i) {
        barrier();
        each_lane([&](int lane) {
            if (lane == 0) memory_.buffer = i;
        });
        barrier();
    }

    FUSED_PENALTIES_DEVICE void end_buffer() {
        if (memory_.buffer == kNone) return;
        each_lane([&](int lane) {
            if (memory_.of_buffer[lane] > memory_.of_all[lane]) memory_.of_all[lane] = memory_.of_buffer[lane];
        });
        write(memory_.of_buffer, memory_.buffer);
        each_lane([&](int lane) { memory_.of_buffer[lane] = 0; });
    }

    FUSED_PENALTIES_DEVICE void write(const uint64_t (&lanes)[kLanes], uint32_t i) {
        PerLane<uint64_t> largest;
        each_lane([&](int lane) { largest[lane] = lanes[lane]; });
        FUSED_PENALTIES_UNROLLED
        for (int mask = kLanes / 2; mask > 0; mask /= 2) {
            const PerLane<uint64_t> other = partner(largest, mask);
            each_lane([&](int lane) {
                if (other[lane] > largest[lane]) largest[lane] = other[lane];
            });
        }
        each_lane([&](int lane) {
            if (lane == 0) atomic_max(arguments_.largest + i, largest[lane]);
        });
    }

    const LargestArguments& arguments_;
    Memory& memory_;
};

// In its place where nobody asks.
class NoLargest {
public:
    static constexpr bool kSought = false;
    using Memory = WarpMemory;

    FUSED_PENALTIES_DEVICE NoLargest(const SumArguments&, Memory&) {}
    FUSED_PENALTIES_DEVICE void begin(uint32_t) {}
    template <class Type>
    FUSED_PENALTIES_DEVICE void take(const PerLane<Accumulators<Type>>&) {}
    FUSED_PENALTIES_DEVICE void take_nan(const PerLane<double>&) {}
    FUSED_PENALTIES_DEVICE void end() {}
};

// What a sum with such arguments goes with.
template <class Arguments>
using LargestFor = std::conditional_t<std::is_same<Arguments, LargestArguments>::value, Largest, NoLargest>;

}  // namespace cuda
}  // namespace fused_penalties
