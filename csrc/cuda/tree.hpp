// The two sums of one block: the tree of canon.hpp, with one warp to a block. Each lane of the warp adds up several
// lanes of the tree; then they are folded across the warp.
#pragma once

#include "elements.hpp"

namespace fused_penalties {
namespace cuda {

// What benchmarks may choose: how many rows of a block are asked for before the first is summed, 8 or 16.
#if !defined(FUSED_PENALTIES_GPU_ROWS)
#define FUSED_PENALTIES_GPU_ROWS 16
#endif
constexpr int kSumRows = FUSED_PENALTIES_GPU_ROWS;
static_assert(kRows % kSumRows == 0, "rows past the last would be another strip's");

// What one lane of the warp adds up while it walks the rows: the accumulators of those lanes of the tree that it has.
template <class Type, bool kLargest = false>
struct Accumulators {
    Lane<typename Type::Real> of[kOwn<Type>];
    // The largest magnitude, for bfloat16, and where it is asked for. Without NaN, which a block's sums tell.
    canon::Compute<Type> largest;

    FUSED_PENALTIES_DEVICE void clear() {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < kOwn<Type>; ++k) of[k] = {0, 0};
        largest = 0;
    }

    // canon::accumulate. Where the square is exact, fusing it with the sum changes nothing but the time.
    FUSED_PENALTIES_DEVICE void add(const Values<Type, kOwn<Type>>& values) {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < kOwn<Type>; ++k) {
            const typename Type::Real x = values.at[k];
            of[k].a = canon::add(of[k].a, magnitude(x));
            of[k].s = Type::exact_squares ? fused(x, x, of[k].s) : canon::add(of[k].s, canon::multiply(x, x));
            if constexpr (kLargest || std::is_same<Type, canon::BFloat16>::value)
                largest = larger(largest, magnitude(values.at[k]));
        }
    }
};

// The values that one lane still has while lanes are folded.
template <int n>
struct PartlyFolded {
    double at[n];
};

// Sends half of `count` values to the partner in exchange for its other half, and adds: half as many values.
template <int count, int n>
FUSED_PENALTIES_DEVICE void halve(PerLane<PartlyFolded<n>>& values, int mask) {
    FUSED_PENALTIES_UNROLLED
    for (int i = 0; i < count / 2; ++i) {
        PerLane<double> kept, given;
        each_lane([&](int lane) {
            const double low = values[lane].at[i], high = values[lane].at[i + count / 2];
            const bool upper = (lane & mask) != 0;
            kept[lane] = upper ? high : low;
            given[lane] = upper ? low : high;
        });
        const PerLane<double> received = partner(given, mask);
        each_lane([&](int lane) { values[lane].at[i] = canon::add(kept[lane], received[lane]); });
    }
}

FUSED_PENALTIES_DEVICE void add_partner(PerLane<double>& values, int mask) {
    const PerLane<double> other = partner(values, mask);
    each_lane([&](int lane) { values[lane] = canon::add(values[lane], other[lane]); });
}

// Folds the accumulators as canon::tree folds its lanes: across the warp, then within a lane. Lanes below 16 get the
// sum of magnitudes, the others that of squares.
//
// The plain butterfly would carry every value through every step. Here each step halves the number of values
// instead, as long as there are several: first the lower lanes keep the magnitudes and the upper ones the
// squares, then the bits of the lane's number say which of its values it keeps. Values are widened after the first
// step, when there are half as many.
template <class Type, bool kLargest>
FUSED_PENALTIES_DEVICE PerLane<double> fold(const PerLane<Accumulators<Type, kLargest>>& accumulators) {
    constexpr int own = kOwn<Type>;
    static_assert(own <= 8, "more of them need another step");
    PerLane<PartlyFolded<own>> values;
    FUSED_PENALTIES_UNROLLED
    for (int k = 0; k < own; ++k) {
        PerLane<typename Type::Real> kept, given;
        each_lane([&](int lane) {
            const auto& sums = accumulators[lane].of[k];
            const bool upper = (lane & 16) != 0;
            kept[lane] = upper ? sums.s : sums.a;
            given[lane] = upper ? sums.a : sums.s;
        });
        const PerLane<typename Type::Real> received = partner(given, 16);
        each_lane([&](int lane) { values[lane].at[k] = canon::add(double(kept[lane]), double(received[lane])); });
    }
    if constexpr (own >= 2) halve<own>(values, 8);
    if constexpr (own >= 4) halve<own / 2>(values, 4);
    if constexpr (own >= 8) halve<own / 4>(values, 2);
    PerLane<double> sums;
    each_lane([&](int lane) { sums[lane] = values[lane].at[0]; });
    FUSED_PENALTIES_UNROLLED
    for (int mask = 8 / own; mask > 0; mask /= 2) add_partner(sums, mask);
    FUSED_PENALTIES_UNROLLED
    for (int mask = 8; mask > 8 / own; mask /= 2) add_partner(sums, mask);
    return sums;
}

// canon::needs_wide_lanes of the largest magnitude in all lanes. The lanes vote on it, which takes fewer steps than to
// find which one is the largest.
template <class Type, bool kLargest>
FUSED_PENALTIES_DEVICE bool needs_wide_lanes(const PerLane<Accumulators<Type, kLargest>>& accumulators) {
    PerLane<bool> nonzero, narrow, too_large;
    each_lane([&](int lane) {
        const uint32_t largest = canon::bits_of_float(accumulators[lane].largest);
        nonzero[lane] = largest != 0;
        narrow[lane] = largest >= canon::kLeastNarrow << 16;
        too_large[lane] = largest >= canon::kLeastTooLarge << 16;
    });
    return ballot(nonzero) != 0 && (ballot(narrow) == 0 || ballot(too_large) != 0);
}

template <class Type, bool aligned, int together, bool kLargest>
FUSED_PENALTIES_DEVICE void add_rows(const Elements<typename Type::Element>& elements,
                                     PerLane<Accumulators<Type, kLargest>>& accumulators) {
    const int rows = rows_of<Type>(elements.size());
    FUSED_PENALTIES_ROLLED
    for (int row = 0; row < rows; row += together) {
        each_lane([&](int lane) {
            Pack<typename Type::Element, kOwn<Type>> packs[together];
            read_rows<Type, aligned>(elements, row, lane, packs);
            in_order();
            FUSED_PENALTIES_UNROLLED
            for (int r = 0; r < together; ++r) accumulators[lane].add(unpack<Type>(packs[r]));
        });
    }
}

// What every lane adds up of one block.
template <class Type, bool kLargest>
FUSED_PENALTIES_DEVICE void accumulate(const Elements<typename Type::Element>& elements, unsigned char* stage,
                                       PerLane<Accumulators<Type, kLargest>>& accumulators) {
    // The wide rule's accumulators need so many registers that only few rows fit beside them; bfloat16, which has the
    // most others, and the largest magnitudes leave no room for 16.
    constexpr bool wide = std::is_same<Type, canon::WideBFloat16>::value;
    constexpr int together = wide ? kFewRows : kLargest && std::is_same<Type, canon::BFloat16>::value ? 8 : kSumRows;
    each_lane([&](int lane) { accumulators[lane].clear(); });
    if (elements.aligned()) {
        add_rows<Type, true, together>(elements, accumulators);
    } else if (elements.contiguous()) {
        add_rows<Type, false, kFewRows>(elements, accumulators);
    }
    each_left_over<Type>(elements.size(), elements.contiguous(), [&](int lane, int first) {
        accumulators[lane].add(unpack<Type>(elements.template gather<kOwn<Type>>(first, stage + lane * kStage)));
    });
}

// Both sums of one block. `wide` tells whether a bfloat16 block has to be summed by the wide rule instead.
template <class Type, bool kLargest>
FUSED_PENALTIES_DEVICE PerLane<double> sums_of(const PerLane<Accumulators<Type, kLargest>>& accumulators, bool& wide) {
    if constexpr (std::is_same<Type, canon::BFloat16>::value) wide = needs_wide_lanes(accumulators);
    return fold<Type>(accumulators);
}

template <class Type>
FUSED_PENALTIES_DEVICE PerLane<double> tree(const Elements<typename Type::Element>& elements, unsigned char* stage,
                                            bool& wide) {
    PerLane<Accumulators<Type>> accumulators;
    accumulate(elements, stage, accumulators);
    return sums_of(accumulators, wide);
}

}  // namespace cuda
}  // namespace fused_penalties
