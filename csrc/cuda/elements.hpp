// How one warp reads and writes one block: 16 bytes at a time where the elements lie so, else one by one, and what a
// pack of elements is as numbers.
//
// Lane t of a warp owns strip t / 8 of a block, and there bytes 16·(t % 8) to +15 of each row: one load of the warp is
// four whole lines of 128 bytes.
#pragma once

#include "lanes.hpp"
#include "table.hpp"

namespace fused_penalties {
namespace cuda {

// How many rows of a block are asked for before the first is used, where there are not enough registers for more: in
// what also writes, in what is not read 16 bytes at a time, and under the wide rule.
constexpr int kFewRows = 4;

// n elements as they lie in memory, as words of 32 bits, which is what a register holds.
template <class Element, int n>
struct alignas(16) Pack {
    uint32_t words[n * int(sizeof(Element)) / 4];
};

// Bytes of shared memory in which one lane puts together what it reads or writes element by element. It cannot do that
// in registers, which have no addresses.
constexpr int kStage = 32;

// The elements of one block, in the weights or in the target.
template <class Element>
class Elements {
public:
    FUSED_PENALTIES_DEVICE Elements(const Place& place, const Axis* axes, uint64_t first, int n)
        : place_(place), axes_(axes), first_(first), n_(n), data_(place.data + first * sizeof(Element)) {}

    FUSED_PENALTIES_DEVICE int size() const { return n_; }
    // True if they can be accessed 16 bytes at a time.
    FUSED_PENALTIES_DEVICE bool aligned() const { return place_.aligned; }
    FUSED_PENALTIES_DEVICE bool contiguous() const { return place_.rank == 0; }

    // Reads n elements, all before the end: 16 bytes at a time, or, of contiguous ones that lie otherwise, one by one.
    // All are asked for before the first is used.
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

    // Reads n elements wherever they lie, in a loop, which takes longer. Past the end they are zero, and `scatter`
    // writes nothing there.
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

// How many lanes of the tree each lane of the warp has: one for each element in 16 bytes.
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
FUSED_PENALTIES_DEVICE void each_left_over(int n, bool contiguous, const Visit& visit) {
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

}  // namespace cuda
}  // namespace fused_penalties
