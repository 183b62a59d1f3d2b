// What one warp does: the tree of canon.hpp with one warp to a block, the changes of changes.hpp, and the sums of
// blocks brought together in integers, so that no schedule changes a bit.
//
// Lane t of a warp owns strip t / 8 of a block, and there bytes 16·(t % 8) to +15 of each row: one load of the warp is
// four whole lines of 128 bytes.
#pragma once

#include "arguments.hpp"
#include "lanes.hpp"

namespace fused_penalties {
namespace cuda {

// What benchmarks may choose: how many rows of a block are asked for before the first is summed, 8 or 16, and whether
// the gradient asks for the next block's memory before it works on this one.
#if !defined(FUSED_PENALTIES_GPU_ROWS)
#define FUSED_PENALTIES_GPU_ROWS 16
#endif
#if !defined(FUSED_PENALTIES_GPU_GRADIENT_PREFETCH)
#define FUSED_PENALTIES_GPU_GRADIENT_PREFETCH 0
#endif
constexpr int kSumRows = FUSED_PENALTIES_GPU_ROWS;
constexpr bool kGradientPrefetch = FUSED_PENALTIES_GPU_GRADIENT_PREFETCH != 0;
static_assert(kRows % kSumRows == 0, "rows past the last would be another strip's");
// The same where there are not enough registers for more: in what also writes, in what is not read 16 bytes at a time,
// and under the wide rule.
constexpr int kFewRows = 4;

// ---- one block

// n elements as they lie in memory, in words: registers have no smaller parts.
template <class Element, int n>
struct alignas(16) Pack {
    uint32_t words[n * int(sizeof(Element)) / 4];
};

// Room for what one lane reads or writes at a time, in shared memory: elements that cannot be accessed 16 bytes at a
// time are put together there, since registers have no addresses.
constexpr int kStage = 32;

// The elements of one block in one place.
template <class Element>
class Elements {
public:
    FUSED_PENALTIES_DEVICE Elements(const Place& place, const Axis* axes, uint64_t first, int n)
        : place_(place), axes_(axes), first_(first), n_(n), data_(place.data + first * sizeof(Element)) {}

    FUSED_PENALTIES_DEVICE int size() const { return n_; }
    // True if they can be accessed 16 bytes at a time.
    FUSED_PENALTIES_DEVICE bool aligned() const { return place_.aligned; }
    FUSED_PENALTIES_DEVICE bool contiguous() const { return place_.rank == 0; }

    // Several, all of them there: 16 bytes at a time, or contiguous ones one by one, but none waits for another.
    template <int n, bool aligned>
    FUSED_PENALTIES_DEVICE Pack<Element, n> read(int i) const {
        Pack<Element, n> pack;
        if constexpr (aligned) {
            memcpy(&pack, sixteen_at(i), sizeof pack);
        } else {
            const Element* from = contiguous_at(i);
            Element parts[n];
            FUSED_PENALTIES_UNROLLED
            for (int k = 0; k < n; ++k) parts[k] = from[k];
            memcpy(&pack, parts, sizeof pack);
        }
        return pack;
    }
    template <bool aligned, int n>
    FUSED_PENALTIES_DEVICE void write(int i, const Pack<Element, n>& pack) const {
        if constexpr (aligned) {
            memcpy(sixteen_at(i), &pack, sizeof pack);
        } else {
            Element* to = contiguous_at(i);
            Element parts[n];
            memcpy(parts, &pack, sizeof pack);
            FUSED_PENALTIES_UNROLLED
            for (int k = 0; k < n; ++k) to[k] = parts[k];
        }
    }

    // The same wherever they lie, one after the other: zero past the end, and nothing written there.
    template <int n>
    FUSED_PENALTIES_DEVICE Pack<Element, n> gather(int i, unsigned char* stage) const {
        static_assert(n * int(sizeof(Element)) <= kStage, "a lane has no more room");
        Pack<Element, n> pack;
        auto* elements = reinterpret_cast<Element*>(stage);
        FUSED_PENALTIES_ROLLED
        for (int k = 0; k < n; ++k) elements[k] = i + k < n_ ? *at(i + k) : Element{};
        memcpy(&pack, __builtin_assume_aligned(stage, 16), sizeof pack);
        return pack;
    }
    template <int n>
    FUSED_PENALTIES_DEVICE void scatter(int i, const Pack<Element, n>& pack, unsigned char* stage) const {
        memcpy(__builtin_assume_aligned(stage, 16), &pack, sizeof pack);
        const auto* elements = reinterpret_cast<const Element*>(stage);
        FUSED_PENALTIES_ROLLED
        for (int k = 0; k < n && i + k < n_; ++k) *at(i + k) = elements[k];
    }

private:
    FUSED_PENALTIES_DEVICE void* sixteen_at(int i) const {
        return __builtin_assume_aligned(in_device_memory(data_ + i * int(sizeof(Element))), 16);
    }

    FUSED_PENALTIES_DEVICE Element* contiguous_at(int i) const {
        return in_device_memory(reinterpret_cast<Element*>(data_) + i);
    }

    FUSED_PENALTIES_DEVICE Element* at(int i) const {
        if (place_.rank == 0) return contiguous_at(i);
        unsigned char* address = place_.data;
        uint64_t index = first_ + uint64_t(i);
        FUSED_PENALTIES_ROLLED
        for (int k = place_.rank; k-- > 0;) {
            const Axis& axis = axes_[place_.axes + uint32_t(k)];
            address += int64_t(index % uint64_t(axis.extent)) * axis.stride;
            index /= uint64_t(axis.extent);
        }
        return in_device_memory(reinterpret_cast<Element*>(address));
    }

    const Place& place_;
    const Axis* axes_;
    uint64_t first_;
    int n_;
    unsigned char* data_;  // the block's first element, with rank 0
};

// How many lanes of the tree each lane of the warp has.
template <class Type>
constexpr int kOwn = 16 / int(sizeof(typename Type::Element));

constexpr int kStripLanes = kLanes / kStrips;  // of the warp
static_assert(16 * kStripLanes == kRowBytes, "a lane has 16 bytes of a row");

// The index of the first element that a lane has in a row of its strip.
template <class Type>
FUSED_PENALTIES_DEVICE int first_of(int row, int lane) {
    return lane / kStripLanes * canon::strip_elements<Type> + row * canon::columns<Type> +
           lane % kStripLanes * kOwn<Type>;
}

// How many rows the first strip of n elements has, the last of them perhaps cut. No other has more.
template <class Type>
FUSED_PENALTIES_DEVICE int rows_of(int n) {
    return n < canon::strip_elements<Type> ? (n + canon::columns<Type> - 1) / canon::columns<Type> : kRows;
}

// Elements as numbers.
template <class Type, int n>
struct Values {
    canon::Compute<Type> at[n];
};

template <class Type, int n>
FUSED_PENALTIES_DEVICE Values<Type, n> unpack(const Pack<typename Type::Element, n>& pack) {
    Values<Type, n> values;
    if constexpr (sizeof(typename Type::Element) == 2) {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < n / 2; ++k) {
            const uint32_t word = pack.words[k];
            if constexpr (!std::is_same<Type, canon::Float16>::value) {
                static_assert(
                    std::is_same<Type, canon::BFloat16>::value || std::is_same<Type, canon::WideBFloat16>::value,
                    "elements of 16 bits that are not unpacked yet");
                values.at[2 * k] = canon::float_of_bits(word << 16);
                values.at[2 * k + 1] = canon::float_of_bits(word & 0xffff0000u);
            } else {
#if defined(__CUDA_ARCH__)
                __half2 halves;
                memcpy(&halves, &word, sizeof halves);
                const float2 pair = __half22float2(halves);
                values.at[2 * k] = pair.x;
                values.at[2 * k + 1] = pair.y;
#else
                values.at[2 * k] = canon::float_of_half(uint16_t(word));
                values.at[2 * k + 1] = canon::float_of_half(uint16_t(word >> 16));
#endif
            }
        }
    } else {
        static_assert(sizeof values == sizeof pack, "elements that are not computed in as they are");
        memcpy(values.at, pack.words, sizeof pack);
    }
    return values;
}

template <class Type, int n>
FUSED_PENALTIES_DEVICE Pack<typename Type::Element, n> repack(const Values<Type, n>& values) {
    Pack<typename Type::Element, n> pack;
    if constexpr (sizeof(typename Type::Element) == 2) {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < n / 2; ++k) {
            const uint16_t low = Type::write(values.at[2 * k]), high = Type::write(values.at[2 * k + 1]);
            pack.words[k] = low | uint32_t(high) << 16;
        }
    } else {
        static_assert(sizeof values == sizeof pack, "elements that are not computed in as they are");
        memcpy(pack.words, values.at, sizeof pack);
    }
    return pack;
}

// One lane's share of the tree's lanes, over the rows.
template <class Type>
struct Share {
    Lane<typename Type::Real> lane[kOwn<Type>];
    float largest;  // magnitude, for bfloat16; fmaxf skips NaN: a block with one sums to NaN under either rule

    FUSED_PENALTIES_DEVICE void clear() {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < kOwn<Type>; ++k) lane[k] = {0, 0};
        largest = 0;
    }

    // canon::accumulate. Where the square is exact, fusing it with the sum changes nothing but the time.
    FUSED_PENALTIES_DEVICE void add(const Values<Type, kOwn<Type>>& values) {
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < kOwn<Type>; ++k) {
            const typename Type::Real x = values.at[k];
            lane[k].a = canon::add(lane[k].a, magnitude(x));
            lane[k].s = Type::exact_squares ? fused(x, x, lane[k].s) : canon::add(lane[k].s, canon::multiply(x, x));
            if constexpr (std::is_same<Type, canon::BFloat16>::value) largest = fmaxf(largest, magnitude(x));
        }
    }
};

template <int n>
struct Doubles {
    double at[n];
};

// Sends half of `count` values to the partner in exchange for its other half, and adds: half as many values.
template <int count, int n>
FUSED_PENALTIES_DEVICE void halve(PerLane<Doubles<n>>& values, int mask) {
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

// Folds the shares as canon::tree folds its lanes: across the warp, then within a lane. Lanes below 16 get the sum
// of magnitudes, the others that of squares.
//
// The plain butterfly would carry every value through every step. Here each step halves the number of values
// instead, as long as there are several: first the lower lanes keep the magnitudes and the upper ones the
// squares, then the bits of the lane's number say which of its values it keeps. Values are widened after the first
// step, when there are half as many.
template <class Type>
FUSED_PENALTIES_DEVICE PerLane<double> fold(const PerLane<Share<Type>>& shares) {
    constexpr int own = kOwn<Type>;
    static_assert(own <= 8, "more of them need another step");
    PerLane<Doubles<own>> values;
    FUSED_PENALTIES_UNROLLED
    for (int k = 0; k < own; ++k) {
        PerLane<typename Type::Real> kept, given;
        each_lane([&](int lane) {
            const auto& share = shares[lane].lane[k];
            const bool upper = (lane & 16) != 0;
            kept[lane] = upper ? share.s : share.a;
            given[lane] = upper ? share.a : share.s;
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

// canon::needs_wide_lanes of the largest of all lanes, by vote: that takes fewer steps than to find it.
template <class Type>
FUSED_PENALTIES_DEVICE bool needs_wide_lanes(const PerLane<Share<Type>>& shares) {
    PerLane<bool> nonzero, narrow, too_large;
    each_lane([&](int lane) {
        const uint32_t largest = canon::bits_of_float(shares[lane].largest);
        nonzero[lane] = largest != 0;
        narrow[lane] = largest >= canon::kLeastNarrow << 16;
        too_large[lane] = largest >= canon::kLeastTooLarge << 16;
    });
    return ballot(nonzero) != 0 && (ballot(narrow) == 0 || ballot(too_large) != 0);
}

// What a lane has in each of several rows; zero where not all of it is there.
template <class Type, bool aligned, class Element, int together>
FUSED_PENALTIES_DEVICE void read_rows(const Elements<Element>& elements, int row, int lane,
                                      Pack<Element, kOwn<Type>> (&packs)[together]) {
    constexpr int own = kOwn<Type>;
    const int n = elements.size();
    if (n == canon::block_elements<Type>) {  // as most blocks; then no load has to ask
        FUSED_PENALTIES_UNROLLED
        for (int r = 0; r < together; ++r)
            packs[r] = elements.template read<own, aligned>(first_of<Type>(row + r, lane));
    } else {
        FUSED_PENALTIES_UNROLLED
        for (int r = 0; r < together; ++r) {
            const int first = first_of<Type>(row + r, lane);
            packs[r] = first + own <= n ? elements.template read<own, aligned>(first) : Pack<Element, own>{};
        }
    }
}

// Calls visit(lane, first) for what is not read several rows at a time: kOwn elements from `first` on, of which some
// may be missing. Where elements are contiguous, that is only what is cut by the end of the block.
template <class Type, class Visit>
FUSED_PENALTIES_DEVICE void each_partial(int n, bool contiguous, const Visit& visit) {
    constexpr int own = kOwn<Type>;
    const int cut = n % own == 0 ? kRows : n % canon::strip_elements<Type> / canon::columns<Type>;
    const int end = contiguous ? (cut < kRows ? cut + 1 : kRows) : rows_of<Type>(n);
    FUSED_PENALTIES_ROLLED
    for (int row = contiguous ? cut : 0; row < end; ++row) {
        each_lane([&](int lane) {
            const int first = first_of<Type>(row, lane);
            if (first < n && (!contiguous || first + own > n)) visit(lane, first);
        });
    }
}

template <class Type, bool aligned, int together>
FUSED_PENALTIES_DEVICE void add_rows(const Elements<typename Type::Element>& elements, PerLane<Share<Type>>& shares) {
    const int rows = rows_of<Type>(elements.size());
    FUSED_PENALTIES_ROLLED
    for (int row = 0; row < rows; row += together) {
        each_lane([&](int lane) {
            Pack<typename Type::Element, kOwn<Type>> packs[together];
            read_rows<Type, aligned>(elements, row, lane, packs);
            in_order();
            FUSED_PENALTIES_UNROLLED
            for (int r = 0; r < together; ++r) shares[lane].add(unpack<Type>(packs[r]));
        });
    }
}

// Both sums of one block. `wide` tells whether a bfloat16 block has to be summed by the wide rule instead.
template <class Type>
FUSED_PENALTIES_DEVICE PerLane<double> tree(const Elements<typename Type::Element>& elements, unsigned char* stage,
                                            bool& wide) {
    // Where sums need much room, few rows.
    constexpr int together = std::is_same<Type, canon::WideBFloat16>::value ? kFewRows : kSumRows;
    PerLane<Share<Type>> shares;
    each_lane([&](int lane) { shares[lane].clear(); });
    if (elements.aligned()) {
        add_rows<Type, true, together>(elements, shares);
    } else if (elements.contiguous()) {
        add_rows<Type, false, kFewRows>(elements, shares);
    }
    each_partial<Type>(elements.size(), elements.contiguous(), [&](int lane, int first) {
        shares[lane].add(unpack<Type>(elements.template gather<kOwn<Type>>(first, stage + lane * kStage)));
    });
    if constexpr (std::is_same<Type, canon::BFloat16>::value) wide = needs_wide_lanes(shares);
    return fold<Type>(shares);
}

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
    PerLane<Share<Type>> shares;
    each_lane([&](int lane) { shares[lane].clear(); });
    const auto change = [&](int lane, const Weights& w, Grads& g) {
        const auto weight = unpack<Type>(w);
        auto grad = unpack<Target>(g);
        shares[lane].add(weight);
        const auto add_terms = [&](Real l1, Real l2) FUSED_PENALTIES_INLINE {
            FUSED_PENALTIES_UNROLLED
            for (int k = 0; k < own; ++k) grad.at[k] = canon::gradient(weight.at[k], Real(grad.at[k]), l1, l2);
        };
        // Asked once, and not again for every element.
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
    each_partial<Type>(n, contiguous, [&](int lane, int first) {
        unsigned char* mine = stage + lane * kStage;
        const Weights w = weights.template gather<own>(first, mine);
        Grads g = idle ? Grads{} : grads.template gather<own>(first, mine);
        change(lane, w, g);
        if (!idle) grads.scatter(first, g, mine);
    });
    if constexpr (std::is_same<Type, canon::BFloat16>::value) wide = needs_wide_lanes(shares);
    return fold<Type>(shares);
}

// Replaces every element of one block.
template <class Type, class Change>
FUSED_PENALTIES_DEVICE void replace(const Elements<typename Type::Element>& elements, unsigned char* stage,
                                    const Change& change) {
    constexpr int own = kOwn<Type>;
    using Packed = Pack<typename Type::Element, own>;
    const int n = elements.size();
    const auto changed = [&](const Packed& pack) {
        auto values = unpack<Type>(pack);
        FUSED_PENALTIES_UNROLLED
        for (int k = 0; k < own; ++k) values.at[k] = change(values.at[k]);
        return repack<Type>(values);
    };
    const auto replace_rows = [&](auto is_aligned) FUSED_PENALTIES_INLINE {
        constexpr bool aligned = decltype(is_aligned)::value;
        const int rows = rows_of<Type>(n);
        FUSED_PENALTIES_ROLLED
        for (int row = 0; row < rows; row += kFewRows) {
            each_lane([&](int lane) {
                Packed packs[kFewRows];
                read_rows<Type, aligned>(elements, row, lane, packs);
                FUSED_PENALTIES_UNROLLED
                for (int r = 0; r < kFewRows; ++r) {
                    const int first = first_of<Type>(row + r, lane);
                    if (first + own <= n) elements.template write<aligned>(first, changed(packs[r]));
                }
            });
        }
    };
    if (elements.aligned()) {
        replace_rows(std::true_type{});
    } else if (elements.contiguous()) {
        replace_rows(std::false_type{});
    }
    each_partial<Type>(n, elements.contiguous(), [&](int lane, int first) {
        unsigned char* mine = stage + lane * kStage;
        elements.scatter(first, changed(elements.template gather<own>(first, mine)), mine);
    });
}

// ---- many blocks

// The first buffer, from `low` on, that ends after `block`. One of them must. Each step asks at 32 places at once.
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
            const Buffer buffer = table.buffers[i];  // a copy: in every block it would be looked up again
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

FUSED_PENALTIES_DEVICE void clear(int64_t* row) {
    each_lane([&](int lane) {
        for (int k = lane; k < kRow; k += kLanes) row[k] = 0;
    });
    barrier();
}

// What a warp needs in shared memory.
struct Shared {
    int64_t row[kRow];  // limbs of what the warp has summed, but not yet added to the workspace
    int64_t slot;       // of the buffer that was summed; -1: there is none, or it needs none
    alignas(16) unsigned char stage[kLanes * kStage];
};

FUSED_PENALTIES_DEVICE int64_t* row_of(const Workspace& workspace, int64_t slot) {
    return workspace.limbs + (1 + slot) * kRow;
}

// The sums of what a warp reads of one buffer, until it comes to another. The last buffer's stay in shared memory.
class Partial {
public:
    FUSED_PENALTIES_DEVICE Partial(const Workspace& workspace, Shared& shared)
        : workspace_(workspace), shared_(shared) {
        each_lane([&](int lane) {
            if (lane == 0) shared.slot = -1;
        });
        clear(shared.row);
    }

    // What is added from now on is this buffer's.
    FUSED_PENALTIES_DEVICE void begin(uint32_t i, const Buffer& buffer) {
        i_ = i;
        if (buffer.slot == shared_.slot) return;
        if (shared_.slot >= 0) flush();
        barrier();
        each_lane([&](int lane) {
            if (lane == 0) shared_.slot = buffer.slot;
        });
        barrier();
    }

    FUSED_PENALTIES_DEVICE void add(const PerLane<double>& sums) {
        each_lane([&](int lane) {
            if (lane % 16 != 0) return;
            if (shared_.slot < 0) {
                (lane == 0 ? workspace_.singles[i_].abs : workspace_.singles[i_].square) = sums[lane];
            } else {
                limbs::deposit(shared_.row + lane / 16 * kLimbs, sums[lane]);
            }
        });
    }

private:
    FUSED_PENALTIES_DEVICE void flush() {
        barrier();
        int64_t* to = row_of(workspace_, shared_.slot);
        each_lane([&](int lane) {
            for (int k = lane; k < kRow; k += kLanes) {
                if (shared_.row[k] == 0) continue;
                atomic_add(to + k, shared_.row[k]);
                shared_.row[k] = 0;
            }
        });
    }

    const Workspace& workspace_;
    Shared& shared_;
    uint32_t i_ = 0;
};

// When all warps of a block of threads are done: adds what they still have in shared memory to the workspace. Warps
// that ended with the same buffer, as most do in large ones, add their rows first, so that there are fewer atomics: the
// first of them does it.
FUSED_PENALTIES_DEVICE void bring_together(const Workspace& workspace, const Shared* shared, uint32_t warps,
                                           uint32_t warp) {
    const int64_t slot = shared[warp].slot;
    bool first = slot >= 0;
    for (uint32_t other = 0; other < warp; ++other) first = first && shared[other].slot != slot;
    if (!first) return;
    each_lane([&](int lane) {
        for (int k = lane; k < kRow; k += kLanes) {
            int64_t sum = 0;
            for (uint32_t other = warp; other < warps; ++other)
                if (shared[other].slot == slot) sum += shared[other].row[k];
            if (sum != 0) atomic_add(row_of(workspace, slot) + k, sum);
        }
    });
}

FUSED_PENALTIES_DEVICE bool penalized(const Coefficients& coefficients, uint32_t i) {
    return coefficients.l1[i] != 0 || coefficients.l2[i] != 0;
}

// The wide rule for a block of bfloat16.
FUSED_PENALTIES_DEVICE PerLane<double> wide_tree(const Table& table, const Buffer& buffer, uint64_t first, int n,
                                                 unsigned char* stage) {
    bool wide;
    return tree<canon::WideBFloat16>(Elements<uint16_t>(buffer.weights, table.axes, first, n), stage, wide);
}

// The sums of all blocks of the range, into the workspace; `bring_together` has to follow.
FUSED_PENALTIES_DEVICE void sum(const SumArguments& arguments, Shared& shared, uint32_t warp, uint32_t warps) {
    const Table& table = arguments.table;
    Partial partial(arguments.workspace, shared);
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              if (arguments.coefficients.l1 && !penalized(arguments.coefficients, i)) return;
              partial.begin(i, buffer);
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  PerLane<double> sums;
                  bool wide = false;
                  with_type(buffer.weights.dtype, [&](auto type) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      const Elements<typename Type::Element> elements(buffer.weights, table.axes, first, n);
                      sums = tree<Type>(elements, shared.stage, wide);
                  });
                  partial.add(wide ? wide_tree(table, buffer, first, n, shared.stage) : sums);
              });
          });
}

// Asks for elements [first, end) of a buffer, if they are contiguous, to be brought to the GPU's second cache.
FUSED_PENALTIES_DEVICE void prefetch_elements(const Place& place, uint64_t first, uint64_t end) {
    constexpr uint64_t kSector = 32;  // the least that is brought
    if (place.rank != 0) return;
    const unsigned char* from = place.data + first * uint64_t(itemsize(place.dtype));
    const uint64_t bytes = (end - first) * uint64_t(itemsize(place.dtype));
    each_lane([&](int lane) {
        for (uint64_t at = uint64_t(lane) * kSector; at < bytes; at += kLanes * kSector) prefetch(from + at);
    });
}

// The gradient, and the sums in the same read; `bring_together` has to follow.
FUSED_PENALTIES_DEVICE void gradient(const GradientArguments& arguments, Shared& shared, uint32_t warp,
                                     uint32_t warps) {
    const Table& table = arguments.table;
    Partial partial(arguments.workspace, shared);
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              const double l1 = arguments.coefficients.l1[i], l2 = arguments.coefficients.l2[i];
              if (l1 == 0 && l2 == 0) return;
              const Factors factors = canon::factors_of(ChangeKind::gradient, l1, l2, arguments.upstream);
              const DType dtype = buffer.weights.dtype;
              const bool idle = !buffer.target.data || canon::is_idle(ChangeKind::gradient, dtype, factors);
              if (idle && !arguments.sum) return;
              partial.begin(i, buffer);
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  if constexpr (kGradientPrefetch) {
                      const uint64_t each = uint64_t(block_elements(dtype)), next = first + each;
                      if (next < end * each) {
                          const uint64_t stop = next + each < buffer.count ? next + each : buffer.count;
                          prefetch_elements(buffer.weights, next, stop);
                          if (!idle) prefetch_elements(buffer.target, next, stop);
                      }
                  }
                  PerLane<double> sums;
                  bool wide = false;
                  const auto run = [&](auto type, auto target) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      using Target = decltype(target);
                      const Elements<typename Type::Element> weights(buffer.weights, table.axes, first, n);
                      const Elements<typename Target::Element> grads(buffer.target, table.axes, first, n);
                      sums = differentiate<Type, Target>(weights, grads, factors, idle, shared.stage, wide);
                  };
                  with_type(dtype, [&](auto type) FUSED_PENALTIES_INLINE {
                      if constexpr (canon::is_narrow<decltype(type)>)
                          if (buffer.target.dtype == DType::float32) return run(type, canon::Float32{});
                      run(type, type);
                  });
                  if (!arguments.sum) return;
                  partial.add(wide ? wide_tree(table, buffer, first, n, shared.stage) : sums);
              });
          });
}

// A change of the targets alone.
FUSED_PENALTIES_DEVICE void update(const UpdateArguments& arguments, unsigned char* stage, uint32_t warp,
                                   uint32_t warps) {
    const Table& table = arguments.table;
    const ChangeKind kind = arguments.kind;
    const double number = arguments.there ? *arguments.there : arguments.number;
    if (kind == ChangeKind::clip && number == 1) return;
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              double l1 = 0, l2 = 0;
              if (arguments.coefficients.l1) {
                  l1 = arguments.coefficients.l1[i];
                  l2 = arguments.coefficients.l2[i];
                  if (l1 == 0 && l2 == 0) return;
              }
              const Factors factors = canon::factors_of(kind, l1, l2, number);
              if (canon::is_idle(kind, buffer.weights.dtype, factors)) return;
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  with_type(buffer.weights.dtype, [&](auto type) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      using Real = canon::Compute<Type>;
                      const Real x = Real(factors.x), y = Real(factors.y);
                      const Elements<typename Type::Element> elements(buffer.target, table.axes, first, n);
                      switch (kind) {
                          case ChangeKind::gradient: return;  // has a kernel of its own
                          case ChangeKind::proximal:
                              return replace<Type>(elements, stage, [&](Real w) { return canon::proximal(w, x, y); });
                          case ChangeKind::decay:
                          case ChangeKind::clip:
                              return replace<Type>(elements, stage, [&](Real w) { return canon::scale(w, x); });
                      }
                  });
              });
          });
}

// ---- from limbs to numbers

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

// NumPy's conversion of a float64, with the one NaN.
FUSED_PENALTIES_DEVICE float narrow(double value) { return value == value ? float(value) : float(NAN); }

FUSED_PENALTIES_DEVICE void write_penalty(void* to, uint64_t i, bool wide, double value) {
    if (wide) {
        static_cast<double*>(to)[i] = canon::quiet(value);
    } else {
        static_cast<float*>(to)[i] = narrow(value);
    }
}

// Turns the workspace into each buffer's results, and leaves it zero. `row` and `total` are the warp's own, and what is
// about all buffers is left in `total`; `finish_totals` has to follow.
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
            int64_t* from = workspace.limbs + (1 + buffer.slot) * kRow;
            each_lane([&](int lane) {
                for (int k = lane; k < kRow; k += kLanes) {
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
                for (int k = lane; k < kRow; k += kLanes) {
                    arguments.limbs[i * kRow + uint64_t(k)] = row[k];
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
            write_penalty(arguments.values, i, arguments.wide, as_it_is ? term : double(narrow(term)));
        });
        barrier();
    }
}

// When all warps of a block of threads are done, one of them brings their totals together. The last block of threads to
// come here finds the workspace's complete, and turns them into results. `row` is the warp's own.
FUSED_PENALTIES_DEVICE void finish_totals(const FinishArguments& arguments, const int64_t (*totals)[kRow],
                                          uint32_t warps, int64_t* row, uint32_t blocks) {
    const Workspace& workspace = arguments.workspace;
    each_lane([&](int lane) {
        for (int k = lane; k < kRow; k += kLanes) {
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
        for (int k = lane; k < kRow; k += kLanes) {
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
