// The changes of ../changes.hpp in one block: the gradient, which is added in the same read that takes the block's
// sums, and those that make each element of one other: the stored gradient of a weight, the rest of what was there.
#pragma once

#include "../changes.hpp"
#include "tree.hpp"

namespace fused_penalties {
namespace cuda {

// Both sums of one block of weights, and in the same read its gradient, which is added to `grads` unless they are
// `idle`: both factors are zero, or there are none.
template <class Type, class Target>
FUSED_PENALTIES_DEVICE PerLane<double> differentiate(const Elements<typename Type::Element>& weights,
                                                     const Elements<typename Target::Element>& grads, Factors factors,
                                                     bool idle, unsigned char* stage, bool& wide) {
    using Real = canon::Compute<Type>;
    constexpr int own = kOwn<Type>;
    using Weights = Pack<typename Type::Element, own>;
    using Grads = Pack<typename Target::Element, own>;
    constexpr int together = sizeof(Grads) > sizeof(Weights) ? kFewRows / 2 : kFewRows;
    const Real x = Real(factors.x), y = Real(factors.y);
    const int n = weights.size();
    PerLane<Accumulators<Type>> accumulators;
    each_lane([&](int lane) { accumulators[lane].clear(); });
    const auto change = [&](int lane, const Weights& w, Grads& g) {
        const auto weight = unpack<Type>(w);
        auto grad = unpack<Target>(g);
        accumulators[lane].add(weight);
        const auto add_terms = [&](Real l1, Real l2) FUSED_PENALTIES_INLINE {
            FUSED_PENALTIES_UNROLLED
            for (int k = 0; k < own; ++k) grad.at[k] = canon::gradient(weight.at[k], Real(grad.at[k]), l1, l2);
        };
        // Which factors are zero is asked here once. `not_zero` keeps the formula from asking again for every element.
        if (y == 0) {
            add_terms(x, 0);
        } else if (x == 0) {
            add_terms(0, not_zero(y));
        } else {
            add_terms(not_zero(x), not_zero(y));
        }
        g = repack<Target>(grad);
    };
    const auto change_rows = [&](auto is_aligned) FUSED_PENALTIES_INLINE {
        constexpr bool aligned = decltype(is_aligned)::value;
        const int rows = rows_of<Type>(n);
        FUSED_PENALTIES_ROLLED
        for (int row = 0; row < rows; row += together) {
            each_lane([&](int lane) {
                Weights w[together];
                Grads g[together];
                FUSED_PENALTIES_UNROLLED
                for (int r = 0; r < together; ++r) {
                    const int first = first_of<Type>(row + r, lane);
                    w[r] = first + own <= n ? weights.template read<own, aligned>(first) : Weights{};
                    g[r] = first + own <= n && !idle ? grads.template read<own, aligned>(first) : Grads{};
                }
                FUSED_PENALTIES_UNROLLED
                for (int r = 0; r < together; ++r) {
                    const int first = first_of<Type>(row + r, lane);
                    in_order();
                    change(lane, w[r], g[r]);
                    if (first + own <= n && !idle) grads.template write<aligned>(first, g[r]);
                }
            });
        }
    };
    const bool contiguous = weights.contiguous() && grads.contiguous();
    if (weights.aligned() && grads.aligned()) {
        change_rows(std::true_type{});
    } else if (contiguous) {
        change_rows(std::false_type{});
    }
    each_left_over<Type>(n, contiguous, [&](int lane, int first) {
        unsigned char* mine = stage + lane * kStage;
        const Weights w = weights.template gather<own>(first, mine);
        Grads g = idle ? Grads{} : grads.template gather<own>(first, mine);
        change(lane, w, g);
        if (!idle) grads.scatter(first, g, mine);
    });
    if constexpr (std::is_same<Type, canon::BFloat16>::value) wide = needs_wide_lanes(accumulators);
    return fold<Type>(accumulators);
}

// Makes every element of one block from that of another, or of the same.
template <class Type, class Target, class Change>
FUSED_PENALTIES_DEVICE void replace(const Elements<typename Type::Element>& from,
                                    const Elements<typename Target::Element>& to, unsigned char* stage,
                                    const Change& change) {
    constexpr int own = kOwn<Type>;
    using Packed = Pack<typename Type::Element, own>;
    const int n = from.size();
    const auto changed = [&](const Packed& pack) {
        const auto values = unpack<Type>(pack);
        Values<Target, own> results;
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < own; ++k) results.at[k] = change(values.at[k]);
        return repack<Target>(results);
    };
    const auto replace_rows = [&](auto is_aligned) FUSED_PENALTIES_INLINE {
        constexpr bool aligned = decltype(is_aligned)::value;
        const int rows = rows_of<Type>(n);
        FUSED_PENALTIES_ROLLED
        for (int row = 0; row < rows; row += kFewRows) {
            each_lane([&](int lane) {
                Packed packs[kFewRows];
                read_rows<Type, aligned>(from, row, lane, packs);
                FUSED_PENALTIES_UNROLLED
                for (int r = 0; r < kFewRows; ++r) {
                    const int first = first_of<Type>(row + r, lane);
                    if (first + own <= n) to.template write<aligned>(first, changed(packs[r]));
                }
            });
        }
    };
    const bool contiguous = from.contiguous() && to.contiguous();
    if (from.aligned() && to.aligned()) {
        replace_rows(std::true_type{});
    } else if (contiguous) {
        replace_rows(std::false_type{});
    }
    each_left_over<Type>(n, contiguous, [&](int lane, int first) {
        unsigned char* mine = stage + lane * kStage;
        to.scatter(first, changed(from.template gather<own>(first, mine)), mine);
    });
}

// The gradient of one block, in the place of `grads`.
template <class Type, class Target>
FUSED_PENALTIES_DEVICE void store_gradient(const Elements<typename Type::Element>& weights,
                                           const Elements<typename Target::Element>& grads, Factors factors,
                                           unsigned char* stage) {
    using Real = canon::Compute<Type>;
    const Real x = Real(factors.x), y = Real(factors.y);
    if (x == 0 && y == 0) {  // then there is no need to read weights
        replace<Type, Target>(weights, grads, stage, [](Real) { return Real(0); });
    } else {
        replace<Type, Target>(weights, grads, stage, [&](Real w) { return canon::stored_gradient(w, x, y); });
    }
}

}  // namespace cuda
}  // namespace fused_penalties
