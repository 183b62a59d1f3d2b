// One block: its sums, and changes of its elements.

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <string>
#include <vector>

#include "cases.hpp"
#include "cuda/changes.hpp"
#include "cuda/tree.hpp"
#include "parts.hpp"

namespace fused_penalties {
namespace {

using namespace cuda;

// Elements in memory of their own, to be found through a Place.
template <class Type>
class Placed {
public:
    using Element = typename Type::Element;
    enum Kind { aligned, beside, strided, kinds };

    // The block begins at element `first` of its buffer, of which no more is there.
    Placed(const std::vector<Element>& values, Kind kind, uint64_t first) : values_(values), first_(first) {
        const size_t n = values.size(), size = sizeof(Element);
        if (kind == strided) {
            // Rows of an odd length, walked from the last one up, every second or third element of each.
            const int64_t step = int64_t(2 + any(2)), length = int64_t(3 + any(40));
            const uint64_t row = first / uint64_t(length), rows = (first + n - 1) / uint64_t(length) - row + 1;
            const size_t pitch = size_t(step * length) * size;
            memory_.resize(rows * pitch / size);
            const int64_t rise = any(2) ? int64_t(pitch) : -int64_t(pitch);
            auto* data = bytes() + (rise < 0 ? (rows - 1) * pitch : 0);
            axes_ = {{int64_t(1) << 50, rise}, {length, step * int64_t(size)}};
            place_ = {data - int64_t(row) * rise, 0, 2, false, Type::dtype};
        } else {
            const size_t off = kind == beside ? 1 + any(16 / size - 1) : 0;
            memory_.resize(off + n);
            place_ = {bytes() + off * size - first * size, 0, 0, kind == aligned, Type::dtype};
        }
        before_ = memory_;
        for (size_t i = 0; i < n; ++i) *at(i) = values[i];
    }

    Elements<Element> block() const { return {place_, axes_.data(), first_, int(values_.size())}; }
    Element get(size_t i) { return *at(i); }
    // The elements have changed; then nothing else may have.
    bool rest_unchanged() {
        for (size_t i = 0; i < values_.size(); ++i) *at(i) = Element{};
        return memcmp(memory_.data(), before_.data(), memory_.size() * sizeof(Element)) == 0;
    }

private:
    unsigned char* bytes() { return reinterpret_cast<unsigned char*>(memory_.data()); }
    Element* at(size_t i) {
        uint64_t index = first_ + i;
        unsigned char* address = place_.data;
        if (place_.rank == 0) return reinterpret_cast<Element*>(address + index * sizeof(Element));
        address += int64_t(index % uint64_t(axes_[1].extent)) * axes_[1].stride;
        return reinterpret_cast<Element*>(address + int64_t(index / uint64_t(axes_[1].extent)) * axes_[0].stride);
    }

    std::vector<Element> values_;
    uint64_t first_;
    std::vector<Element> memory_, before_;
    std::vector<Axis> axes_;
    Place place_;
};

template <class Type>
std::string describe(size_t n, int kind, uint64_t first) {
    return "dtype " + std::to_string(int(Type::dtype)) + ", " + std::to_string(n) + " elements, kind " +
           std::to_string(kind) + ", from " + std::to_string(first);
}

template <class Type>
uint64_t any_first() {
    constexpr uint64_t block = uint64_t(canon::block_elements<Type>);
    return any(3) ? any(5) * block : (uint64_t(1) << 33) / block * block;
}

template <class Type>
void check_sums(const PerLane<double>& sums, const BlockSums& wanted, const std::string& what) {
    for (int lane = 0; lane < kLanes; ++lane)
        CHECK(same(sums[lane], lane < 16 ? wanted.abs : wanted.square), "%s, lane %d: got %a, wanted %a", what.c_str(),
              lane, sums[lane], lane < 16 ? wanted.abs : wanted.square);
}

// Under the rule that the block needs.
template <class Type, class Sum>
void check_block(const std::vector<typename Type::Element>& values, const Sum& sum, const std::string& what) {
    const BlockSums wanted = canon::block_sums<Type>(values.data(), int(values.size()));
    bool wide = false;
    const PerLane<double> sums = sum(wide);
    if (!wide) check_sums<Type>(sums, wanted, what);
    if constexpr (std::is_same<Type, canon::BFloat16>::value) {
        unsigned most = 0;
        bool nan = false;
        for (uint16_t value : values) {
            nan = nan || (value & 0x7fff) > 0x7f80;
            most = std::max(most, value & 0x7fffu);
        }
        if (!nan) CHECK(wide == canon::needs_wide_lanes(most), "%s", what.c_str());
    }
}

alignas(16) unsigned char stage[kLanes * kStage];

template <class Type>
void trees_of(size_t n) {
    const auto values = elements<Type>(n);
    for (int kind = 0; kind < Placed<Type>::kinds; ++kind) {
        const uint64_t first = any_first<Type>();
        const Placed<Type> placed(values, typename Placed<Type>::Kind(kind), first);
        const std::string what = describe<Type>(n, kind, first);
        check_block<Type>(values, [&](bool& wide) { return tree<Type>(placed.block(), stage, wide); }, what);
        if constexpr (std::is_same<Type, canon::BFloat16>::value) {
            bool wide = false;
            check_sums<Type>(tree<canon::WideBFloat16>(placed.block(), stage, wide),
                             canon::tree<canon::WideBFloat16>(values.data(), int(n)), what + ", wide");
        }
    }
}

// Every length, each with other values, and full blocks more often.
template <class Type>
void trees_of_every_length() {
    constexpr size_t block = size_t(canon::block_elements<Type>);
    for (size_t n = 1; n <= block; ++n) trees_of<Type>(n);
    for (int turn = 0; turn < 1500; ++turn) trees_of<Type>(block);
}

// Blocks of bfloat16 in which one element decides, wherever it lies.
void deciding_elements() {
    for (unsigned bits : {(77u << 7) - 1, 77u << 7, (187u << 7) - 1, 187u << 7, 1u, 0u, 0x7f80u})
        for (size_t at = 0; at < 4096; at += 1 + any(60)) {
            std::vector<uint16_t> values(at + 1 + any(4096 - at));
            for (uint16_t& value : values) value = uint16_t(bits ? any(bits) : 0);
            values[at] = uint16_t(bits | any(2) << 15);
            const Placed<canon::BFloat16> placed(values, Placed<canon::BFloat16>::Kind(any(3)), 0);
            check_block<canon::BFloat16>(
                values, [&](bool& wide) { return tree<canon::BFloat16>(placed.block(), stage, wide); },
                "decided by " + std::to_string(bits) + " at " + std::to_string(at));
        }
}

template <class Type, class Target>
void gradients_of(size_t n) {
    using Real = canon::Compute<Type>;
    using Wanted = typename Target::Element;
    const auto values = elements<Type>(n);
    const auto grads = elements<Target>(n);
    const Factors factors{any_factor(), any_factor()};
    const Real x = Real(factors.x), y = Real(factors.y);
    const int kind = int(any(3)), other = int(any(3));
    const uint64_t first = any_first<Type>();
    const bool idle = x == 0 && y == 0;
    Placed<Type> weights(values, typename Placed<Type>::Kind(kind), first);
    Placed<Target> targets(grads, typename Placed<Target>::Kind(other), first);
    const std::string what = describe<Type>(n, kind, first) + ", target " + std::to_string(int(Target::dtype)) +
                             ", kind " + std::to_string(other) + ", factors " + std::to_string(factors.x) + " and " +
                             std::to_string(factors.y);
    check_block<Type>(
        values,
        [&](bool& wide) {
            return differentiate<Type, Target>(weights.block(), targets.block(), factors, idle, stage, wide);
        },
        what);
    for (size_t i = 0; i < n; ++i) {
        const Real w = Real(Type::read(values[i])), g = Real(Target::read(grads[i]));
        const Wanted wanted = idle ? grads[i] : written<Target>(canon::gradient(w, g, x, y)), got = targets.get(i);
        CHECK(memcmp(&got, &wanted, sizeof got) == 0, "%s, element %zu", what.c_str(), i);
        const auto weight = weights.get(i);
        CHECK(memcmp(&weight, &values[i], sizeof weight) == 0, "%s, weight %zu", what.c_str(), i);
    }
    CHECK(targets.rest_unchanged() && weights.rest_unchanged(), "%s", what.c_str());
}

template <class Type, class Target>
void stored_gradients_of(size_t n) {
    using Real = canon::Compute<Type>;
    const auto values = elements<Type>(n);
    const Factors factors{any_factor(), any_factor()};
    const int kind = int(any(3)), other = int(any(3));
    const uint64_t first = any_first<Type>();
    Placed<Type> weights(values, typename Placed<Type>::Kind(kind), first);
    Placed<Target> targets(elements<Target>(n), typename Placed<Target>::Kind(other), first);
    store_gradient<Type, Target>(weights.block(), targets.block(), factors, stage);
    const std::string what = describe<Type>(n, kind, first) + ", target " + std::to_string(int(Target::dtype)) +
                             ", kind " + std::to_string(other) + ", stored, factors " + std::to_string(factors.x) +
                             " and " + std::to_string(factors.y);
    for (size_t i = 0; i < n; ++i) {
        const Real w = Real(Type::read(values[i]));
        const auto wanted = written<Target>(canon::stored_gradient(w, Real(factors.x), Real(factors.y)));
        const auto got = targets.get(i);
        CHECK(memcmp(&got, &wanted, sizeof got) == 0, "%s, element %zu", what.c_str(), i);
        const auto weight = weights.get(i);
        CHECK(memcmp(&weight, &values[i], sizeof weight) == 0, "%s, weight %zu", what.c_str(), i);
    }
    CHECK(targets.rest_unchanged() && weights.rest_unchanged(), "%s", what.c_str());
}

template <class Type>
void replaced(size_t n) {
    using Real = canon::Compute<Type>;
    const auto values = elements<Type>(n);
    const Real x = Real(any_factor()), y = Real(any_factor());
    const bool scales = any(2);
    const auto change = [&](Real w) { return scales ? canon::scale(w, x) : canon::proximal(w, x, y); };
    const int kind = int(any(3));
    const uint64_t first = any_first<Type>();
    Placed<Type> weights(values, typename Placed<Type>::Kind(kind), first);
    replace<Type, Type>(weights.block(), weights.block(), stage, change);
    const std::string what = describe<Type>(n, kind, first);
    for (size_t i = 0; i < n; ++i) {
        const auto wanted = written<Type>(change(Real(Type::read(values[i])))), got = weights.get(i);
        CHECK(memcmp(&got, &wanted, sizeof got) == 0, "%s, element %zu", what.c_str(), i);
    }
    CHECK(weights.rest_unchanged(), "%s", what.c_str());
}

template <class Type>
void changes_of() {
    constexpr size_t block = size_t(canon::block_elements<Type>), row = size_t(canon::columns<Type>);
    for (int turn = 0; turn < 400; ++turn) {
        const size_t near = any(3) == 0 ? block : row * (1 + any(64)) + 2 - any(5);
        const size_t n = std::min(any(2) ? near : 1 + any(block), block);
        gradients_of<Type, Type>(n);
        stored_gradients_of<Type, Type>(n);
        if constexpr (canon::is_narrow<Type>) {
            gradients_of<Type, canon::Float32>(n);
            stored_gradients_of<Type, canon::Float32>(n);
        }
        replaced<Type>(n);
    }
}
}  // namespace

void trees() {
    each_type([](auto type) { trees_of_every_length<decltype(type)>(); });
    deciding_elements();
}

void changes() {
    each_type([](auto type) { changes_of<decltype(type)>(); });
}

}  // namespace fused_penalties
