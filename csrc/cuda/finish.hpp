// The last kernel of a call: the integers of the workspace are rounded to numbers, once, and become results; the
// workspace is left zero for the next call.
#pragma once

#include "../changes.hpp"
#include "partial.hpp"

namespace fused_penalties {
namespace cuda {

// The digits of one of a row's two sums that may differ from zero.
struct Window {
    int first, last;
};

FUSED_PENALTIES_DEVICE Window window_of(const int64_t* limbs) {
    Window window{kDigits, 0};
    for (int from = 0; from < kDigits; from += kLanes) {
        PerLane<bool> nonzero;
        each_lane([&](int lane) { nonzero[lane] = from + lane < kDigits && limbs[from + lane] != 0; });
        const uint32_t bits = ballot(nonzero);
        if (bits == 0) continue;
        if (window.last == 0) window.first = from + 31 - leading_zeros(bits & (0 - bits));
        window.last = from + 32 - leading_zeros(bits);
    }
    return window;
}

// Moves the carries of both sums of a row in shared memory, and rounds: lane 0 the one of magnitudes, lane 16 the
// one of squares.
FUSED_PENALTIES_DEVICE PerLane<double> round_row(int64_t* row) {
    const Window abs = window_of(row), square = window_of(row + kLimbs);
    barrier();
    PerLane<double> sums;
    each_lane([&](int lane) {
        sums[lane] = 0;
        if (lane % 16 != 0) return;
        const Window window = lane == 0 ? abs : square;
        int64_t* limbs = row + lane / 16 * kLimbs;
        const int last = limbs::carry(limbs, window.first, window.last);
        sums[lane] = limbs::rounded(limbs, window.first, last);
    });
    barrier();
    return sums;
}

// Rounds to nearest, as NumPy converts; each NaN becomes the one quiet NaN.
FUSED_PENALTIES_DEVICE float float_of_double(double value) { return value == value ? float(value) : float(NAN); }

FUSED_PENALTIES_DEVICE void write_penalty(void* to, uint64_t i, bool wide, double value) {
    if (wide) {
        static_cast<double*>(to)[i] = canon::quiet(value);
    } else {
        static_cast<float*>(to)[i] = float_of_double(value);
    }
}

// Turns the workspace into each buffer's results, and leaves it zero. `row` and `total` are the warp's own; what the
// warp's buffers add to the results over all buffers is left in `total`. `finish_totals` has to follow.
FUSED_PENALTIES_DEVICE void finish(const FinishArguments& arguments, int64_t* row, int64_t* total, uint32_t warp,
                                   uint32_t warps) {
    const Table& table = arguments.table;
    const Workspace& workspace = arguments.workspace;
    const bool penalty = arguments.value || arguments.values;
    clear(total);
    clear(row);
    for (uint64_t i = warp; i < table.n; i += warps) {
        const Buffer& buffer = table.buffers[i];
        PerLane<double> sums;
        each_lane([&](int lane) { sums[lane] = 0; });
        if (buffer.slot >= 0) {
            int64_t* from = workspace.limbs + (1 + buffer.slot) * kBothLimbs;
            each_lane([&](int lane) {
                for (int k = lane; k < kBothLimbs; k += kLanes) {
                    row[k] = from[k];
                    if (row[k] == 0) continue;
                    from[k] = 0;
                    if (!penalty) total[k] += row[k];
                }
            });
            barrier();
            sums = round_row(row);
        } else if (buffer.count > 0) {
            const BlockSums single = workspace.singles[i];
            each_lane([&](int lane) {
                if (lane % 16 != 0) return;
                sums[lane] = canon::quiet(lane == 0 ? single.abs : single.square);
                if (!penalty) limbs::deposit(total + lane / 16 * kLimbs, sums[lane]);
                if (arguments.limbs) limbs::deposit(row + lane / 16 * kLimbs, sums[lane]);
            });
            barrier();
        }
        if (arguments.limbs) {
            each_lane([&](int lane) {
                for (int k = lane; k < kBothLimbs; k += kLanes) {
                    arguments.limbs[i * kBothLimbs + uint64_t(k)] = row[k];
                    row[k] = 0;
                }
            });
            barrier();
        }
        const PerLane<double> squares = partner(sums, 16);
        each_lane([&](int lane) {
            if (lane != 0) return;
            if (arguments.abs) {
                arguments.abs[i] = sums[lane];
                arguments.square[i] = squares[lane];
            }
            if (!penalty) return;
            const double l1 = arguments.coefficients.l1[i], l2 = arguments.coefficients.l2[i];
            const double term = canon::term(l1, l2, sums[lane], squares[lane]);
            limbs::deposit(total, term);
            if (!arguments.values) return;
            // A buffer's own penalty is rounded as if it were alone.
            const bool as_it_is = computed_in_double(buffer.weights.dtype);
            write_penalty(arguments.values, i, arguments.wide, as_it_is ? term : double(float_of_double(term)));
        });
        barrier();
    }
}

// When all warps of a block of threads are done, one of them brings their totals together. The last block of threads to
// come here finds the workspace's complete, and turns them into results. `row` is the warp's own.
FUSED_PENALTIES_DEVICE void finish_totals(const FinishArguments& arguments, const int64_t (*totals)[kBothLimbs],
                                          uint32_t warps, int64_t* row, uint32_t blocks) {
    const Workspace& workspace = arguments.workspace;
    each_lane([&](int lane) {
        for (int k = lane; k < kBothLimbs; k += kLanes) {
            int64_t sum = 0;
            for (uint32_t warp = 0; warp < warps; ++warp) sum += totals[warp][k];
            if (sum != 0) atomic_add(workspace.limbs + k, sum);
        }
    });
    PerLane<bool> last;
    each_lane([&](int) { fence(); });
    barrier();
    each_lane([&](int lane) { last[lane] = lane == 0 && atomic_next(workspace.finished) == blocks - 1; });
    const bool others_follow = ballot(last) == 0;
    barrier();
    if (others_follow) return;
    each_lane([&](int lane) {
        fence();
        for (int k = lane; k < kBothLimbs; k += kLanes) {
            row[k] = fresh(workspace.limbs + k);
            workspace.limbs[k] = 0;
        }
    });
    barrier();
    const PerLane<double> sums = round_row(row);
    const PerLane<double> squares = partner(sums, 16);
    each_lane([&](int lane) {
        if (lane != 0) return;
        *workspace.finished = 0;
        if (arguments.value) write_penalty(arguments.value, 0, arguments.wide, sums[lane]);
        if (arguments.totals) {
            arguments.totals[0] = sums[lane];
            arguments.totals[1] = squares[lane];
        }
        if (arguments.norm) {
            const double norm = canon::quiet(sqrt(squares[lane]));
            arguments.norm[0] = norm;
            arguments.norm[1] = canon::clip_number(norm, arguments.max_norm);
        }
    });
}

}  // namespace cuda
}  // namespace fused_penalties
