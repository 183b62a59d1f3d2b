// Runs the programs of one warp without Python and without a GPU, against the plain code of canon.hpp, changes.hpp
// and exact.hpp, or against a search that looks at every place. Blocks lie in memory of just their size, so that the
// address sanitizer sees what goes beyond them.
//
// warp trees SEED      both sums of blocks of every length, as they lie on 16 bytes, beside them, and strided
// warp changes SEED    gradients, and replaced elements
// warp search SEED     which buffer a block is of, in tables of any shape
// warp sweep SEED      that all warps together take every block once
// warp limbs SEED      limbs that are carried and rounded by a warp
// warp lists SEED      whole kernels: lists of buffers, summed and differentiated by any number of warps
//
// Prints how many cases there were; the first that fails is described and ends it with status 1.

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define FUSED_PENALTIES_GPU_GRADIENT_PREFETCH 1  // reads here, and what it reads must be there
#include "cuda/finish.hpp"
#include "cuda/program.hpp"
#include "cuda/table.hpp"
#include "exact.hpp"

using namespace fused_penalties;
using namespace fused_penalties::cuda;

namespace {

std::mt19937_64 dice;
uint64_t cases = 0;

// Below `n`.
uint64_t any(uint64_t n) { return dice() % n; }

uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

bool same(double x, double y) { return (x != x && y != y) || bits_of(x) == bits_of(y); }

#define CHECK(condition, ...)           \
    do {                                \
        ++cases;                        \
        if (!(condition)) {             \
            printf("%s: ", #condition); \
            printf(__VA_ARGS__);        \
            printf("\n");               \
            exit(1);                    \
        }                               \
    } while (false)

// ---- elements of any kind

// How many bits a fraction has.
constexpr int fraction_of(canon::Float16) { return 10; }
constexpr int fraction_of(canon::BFloat16) { return 7; }
constexpr int fraction_of(canon::Float32) { return 23; }
constexpr int fraction_of(canon::Float64) { return 52; }

// Elements with exponents from a narrow or a wide range, with all of them now and then; zeros, NaN and infinities
// among them or not.
template <class Type>
std::vector<typename Type::Element> elements(size_t n) {
    using Element = typename Type::Element;
    constexpr int fraction = fraction_of(Type{}), width = 8 * int(sizeof(Element)),
                  exponents = 1 << (width - 1 - fraction);
    const int lowest = int(any(uint64_t(exponents - 1))),
              span = int(any(3) == 0 ? any(uint64_t(exponents)) : any(6)) + 1;
    const bool zeros = any(4) == 0, special = any(8) == 0, near_one = any(3) == 0;
    std::vector<Element> made(n);
    for (Element& element : made) {
        int exponent = std::min(lowest + int(any(uint64_t(span))), exponents - 2);
        if (near_one) exponent = exponents / 2 - 4 + int(any(6));
        if (special && any(n) == 0) exponent = exponents - 1;
        uint64_t bits = (uint64_t(exponent) << fraction) | (dice() >> (64 - fraction));
        if (exponent == exponents - 1 && any(2)) bits = uint64_t(exponent) << fraction;
        if (zeros && any(2)) bits = 0;
        bits |= any(2) << (width - 1);
        memcpy(&element, &bits, sizeof element);
    }
    return made;
}

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
void trees() {
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

// ---- changes

double any_factor() {
    const double some[] = {0, 0, 1, -1, 0.1, 0.3, -0.7, 1e-42, 1e38, 1e300, 1e-300, NAN, INFINITY};
    return some[any(sizeof some / sizeof *some)];
}

template <class Type>
typename Type::Element written(canon::Compute<Type> value) {
    return Type::write(value);
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
    replace<Type>(weights.block(), stage, change);
    const std::string what = describe<Type>(n, kind, first);
    for (size_t i = 0; i < n; ++i) {
        const auto wanted = written<Type>(change(Real(Type::read(values[i])))), got = weights.get(i);
        CHECK(memcmp(&got, &wanted, sizeof got) == 0, "%s, element %zu", what.c_str(), i);
    }
    CHECK(weights.rest_unchanged(), "%s", what.c_str());
}

template <class Type>
void changes() {
    constexpr size_t block = size_t(canon::block_elements<Type>), row = size_t(canon::columns<Type>);
    for (int turn = 0; turn < 400; ++turn) {
        const size_t near = any(3) == 0 ? block : row * (1 + any(64)) + 2 - any(5);
        const size_t n = std::min(any(2) ? near : 1 + any(block), block);
        gradients_of<Type, Type>(n);
        if constexpr (canon::is_narrow<Type>) gradients_of<Type, canon::Float32>(n);
        replaced<Type>(n);
    }
}

// ---- which buffer a block is of

// A table of nothing but the ends.
struct Ends {
    std::vector<uint64_t> ends;
    Table table() const { return {ends.data(), nullptr, nullptr, uint32_t(ends.size())}; }
};

void search_in(const Ends& ends, const char* what) {
    const auto& all = ends.ends;
    const auto wanted = [&](uint64_t block) {
        return uint32_t(std::upper_bound(all.begin(), all.end(), block) - all.begin());
    };
    const auto check = [&](uint64_t block) {
        const uint32_t i = wanted(block);
        const uint32_t lows[] = {0, i, i ? i - 1 : 0, i / 2, uint32_t(any(uint64_t(i) + 1))};
        for (uint32_t low : lows)
            CHECK(buffer_of(ends.table(), low, block) == i,
                  "%s, %zu buffers, block %" PRIu64 " from %u: got %u, wanted %u", what, all.size(), block, low,
                  buffer_of(ends.table(), low, block), i);
    };
    for (size_t i = 0; i < all.size(); ++i) {
        const uint64_t begin = i ? all[i - 1] : 0;
        if (begin == all[i]) continue;
        check(begin);
        check(all[i] - 1);
        check(begin + any(all[i] - begin));
    }
}

void search() {
    // The sizes of buffers, in blocks, by their place.
    const std::map<std::string, uint64_t (*)(size_t i, size_t n)> shapes = {
        {"one block each", [](size_t, size_t) -> uint64_t { return 1; }},
        {"few blocks", [](size_t, size_t) { return 1 + any(5); }},
        {"some empty", [](size_t, size_t) { return any(3) ? any(4) : 0; }},
        {"nearly all empty", [](size_t, size_t) -> uint64_t { return any(50) == 0; }},
        {"empty at the start", [](size_t i, size_t n) -> uint64_t { return i > n / 2; }},
        {"empty at the end", [](size_t i, size_t n) -> uint64_t { return i <= n / 3; }},
        {"empty in the middle", [](size_t i, size_t n) -> uint64_t { return i < n / 3 || i > n / 3 * 2; }},
        {"only the last", [](size_t i, size_t n) -> uint64_t { return i == n - 1 ? 7 : 0; }},
        {"only the first", [](size_t i, size_t) -> uint64_t { return i == 0 ? 7 : 0; }},
        {"huge", [](size_t, size_t) { return any(uint64_t(1) << 40); }},
        {"one huge", [](size_t i, size_t n) { return i == n / 2 ? uint64_t(1) << 45 : any(2); }},
        {"at the edge of 32 bits", [](size_t i, size_t) { return i == 0 ? 0xfffffffeu : any(2); }},
    };
    for (const auto& [what, size] : shapes)
        for (size_t n : {1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 1023, 1024, 1025, 1056, 1057, 5000, 32769, 70000}) {
            Ends ends;
            uint64_t end = 0;
            for (size_t i = 0; i < n; ++i) ends.ends.push_back(end += size(i, n));
            search_in(ends, what.c_str());
        }
    for (size_t n = 1; n <= 300; ++n) {
        Ends ends;
        uint64_t end = 0;
        for (size_t i = 0; i < n; ++i) ends.ends.push_back(end += any(3));
        search_in(ends, "any");
    }
}

// ---- who takes which blocks

void sweep_over(const std::vector<uint64_t>& counts, uint64_t first, uint64_t end, uint64_t chunks, uint32_t warps) {
    std::vector<Span> spans;
    for (uint64_t count : counts) spans.push_back({nullptr, count, nullptr, 0, DType::float32, false});
    const HostTable host(spans.data(), nullptr, spans.size(), false);
    // What was uploaded lies as it likes.
    std::vector<uint64_t> memory(host.bytes().size() / 8 + 1);
    if (!host.bytes().empty()) memcpy(memory.data(), host.bytes().data(), host.bytes().size());
    const Table table = host.at(memory.data());
    end = std::min(end, host.blocks());
    if (first >= end) return;  // then nothing is launched
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    for (uint32_t warp = 0; warp < warps; ++warp)
        sweep(table, {first, end, chunks}, warp, warps,
              [&](uint32_t i, const Buffer& buffer, uint64_t from, uint64_t to) {
                  CHECK(buffer.slot == table.buffers[i].slot && from < to && buffer.count == counts[i], "buffer %u", i);
                  uint64_t elements = 0, blocks = 0;
                  if (to - from < 100)
                      each_block(buffer, from, to, [&](uint64_t at, int n) {
                          CHECK(at == (from + blocks) * 2048 && n > 0 && n <= 2048, "element %" PRIu64, at);
                          ++blocks;
                          elements += uint64_t(n);
                      });
                  if (to - from < 100)
                      CHECK(blocks == to - from && elements == std::min(to * 2048, buffer.count) - from * 2048,
                            "buffer %u", i);
                  taken.push_back({host.begin(i) + from, host.begin(i) + to});
              });
    std::sort(taken.begin(), taken.end());
    uint64_t at = first;
    for (const auto& [from, to] : taken) {
        CHECK(from == at, "block %" PRIu64 " after %" PRIu64, from, at);
        at = to;
    }
    CHECK(at == end, "%" PRIu64 " of %" PRIu64, at, end);
}

void sweeps() {
    for (int turn = 0; turn < 400; ++turn) {
        std::vector<uint64_t> counts(any(60));
        for (uint64_t& count : counts) {
            const uint64_t most[] = {1, 2000, 2049, 30000};
            count = any(most[any(4)]);
        }
        const uint64_t first = any(2) ? 0 : any(10);
        const uint64_t end = any(2) ? ~uint64_t(0) : first + any(30);
        sweep_over(counts, first, std::max(first, end), 1 + any(8), 1 + uint32_t(any(50)));
    }
    // Beyond 2^32 blocks, some of them.
    const uint64_t huge = (uint64_t(1) << 33) * 2048;
    for (uint64_t chunks = 1; chunks <= 8; ++chunks)
        sweep_over({5, huge, 0, 0, 7000, 1}, (uint64_t(1) << 33) - 200, ~uint64_t(0), chunks, 1 + uint32_t(any(500)));
}

// ---- from limbs to numbers

void check_row(std::vector<int64_t> row, const char* what) {
    Exact wanted[2];
    for (int which = 0; which < 2; ++which) wanted[which].add_limbs(row.data() + which * kLimbs);
    const PerLane<double> sums = round_row(row.data());
    for (int which = 0; which < 2; ++which) {
        const double sum = wanted[which].value();
        CHECK(same(sums[16 * which], sum), "%s: got %a, wanted %a", what, sums[16 * which], sum);
        CHECK(memcmp(wanted[which].canonical_limbs(), row.data() + which * kLimbs, kLimbs * sizeof(int64_t)) == 0, "%s",
              what);
    }
}

void limb_rows() {
    for (int turn = 0; turn < 20000; ++turn) {
        std::vector<int64_t> row(kRow);
        const uint64_t lowest = any(0x7fe), span = any(3) ? 1 + any(60) : 0x7ff;
        for (int which = 0; which < 2; ++which)
            for (uint64_t n = any(50); n > 0; --n) {
                const uint64_t exponent = any(400) == 0 ? 0x7ff : std::min<uint64_t>(lowest + any(span), 0x7fe);
                limbs::deposit(row.data() + which * kLimbs, limbs::double_of_bits(exponent << 52 | dice() >> 12));
            }
        check_row(row, "deposited");
    }
    for (int turn = 0; turn < 20000; ++turn) {
        // Carries that were never moved, over digits that lie anywhere, and long rows of ones.
        std::vector<int64_t> row(kRow);
        for (int which = 0; which < 2; ++which) {
            const int first = int(any(kDigits)), last = first + int(any(uint64_t(kDigits - first + 1)));
            for (int k = first; k < last; ++k) {
                const uint64_t most = any(3) ? 0xffffffffu : (uint64_t(1) << 62);
                row[size_t(which * kLimbs + k)] = int64_t(any(2) ? any(most) : any(2) ? most : 0);
            }
            if (any(20) == 0) row[size_t(which * kLimbs + kDigits)] = int64_t(any(3));
            if (any(20) == 0) row[size_t(which * kLimbs + kDigits + 1)] = int64_t(any(3));
        }
        check_row(row, "any limbs");
    }
}

// ---- whole kernels

// Elements in memory of just their size, as they lie on 16 bytes, beside them, or with gaps, and what they should be.
struct Held {
    std::vector<unsigned char> memory, wanted;
    Axis axis = {0, 0};
    Span span;

    Held(DType dtype, uint64_t count) {
        const size_t size = size_t(itemsize(dtype)), kind = any(3);
        const size_t gap = kind == 2 ? 1 + any(2) : 0, off = kind == 1 ? size * (1 + any(16 / size - 1)) : 0;
        memory.resize(off + count * (1 + gap) * size);
        wanted.resize(count * size);
        axis = {int64_t(count), int64_t((1 + gap) * size)};
        auto* data = memory.data() + off;
        if (gap && count && any(2)) {  // downwards
            data += int64_t(count - 1) * axis.stride;
            axis.stride = -axis.stride;
        }
        span = {data, count, &axis, gap ? 1 : 0, dtype, false};
        with_type(dtype, [&](auto type) {
            const auto made = elements<decltype(type)>(count);
            if (count) memcpy(wanted.data(), made.data(), wanted.size());
        });
        for (uint64_t i = 0; i < count; ++i) memcpy(at(i), &wanted[i * size], size);
    }
    Held(const Held&) = delete;

    unsigned char* at(uint64_t i) { return const_cast<unsigned char*>(span.data) + int64_t(i) * axis.stride; }
    template <class Element>
    Element* elements_of() {
        return reinterpret_cast<Element*>(wanted.data());
    }
    bool as_wanted() {
        const size_t size = size_t(itemsize(span.dtype));
        for (uint64_t i = 0; i < span.count; ++i)
            if (memcmp(at(i), &wanted[i * size], size) != 0) return false;
        return true;
    }
};

// Calls each(k, warp, warps) for every warp of some blocks of threads, and all(block) between two of these.
template <class Each, class All>
void blocks_of_threads(uint32_t blocks, uint32_t warps, const Each& each, const All& all) {
    for (uint32_t block = 0; block < blocks; ++block) {
        for (uint32_t k = 0; k < warps; ++k) each(k, block * warps + k, blocks * warps);
        all();
    }
}

void list_of(size_t n) {
    std::vector<std::unique_ptr<Held>> weights, grads;
    std::vector<Span> spans, targets;
    std::vector<double> l1(n), l2(n);
    const bool differentiates = any(2), sums = !differentiates || any(4);
    const double upstream = any_factor();
    std::vector<ExactSums> wanted(n);
    ExactSums total;
    for (size_t i = 0; i < n; ++i) {
        const auto dtype = DType(any(kDTypes));
        const uint64_t block = uint64_t(block_elements(dtype)), near = block * any(3) + any(9);
        const uint64_t most[] = {1, 70, 2 * block, 6 * block};
        const uint64_t count = any(4) == 0 ? near : any(most[any(4)]);
        const bool wider = is_narrow(dtype) && any(2);
        weights.push_back(std::make_unique<Held>(dtype, count));
        grads.push_back(std::make_unique<Held>(wider ? DType::float32 : dtype, count));
        spans.push_back(weights[i]->span);
        targets.push_back(grads[i]->span);
        if (any(4)) l1[i] = any_factor();
        if (any(4)) l2[i] = any_factor();
        if (differentiates && l1[i] == 0 && l2[i] == 0) continue;
        with_type(dtype, [&](auto type) {
            using Type = decltype(type);
            using Real = canon::Compute<Type>;
            const auto* values = weights[i]->elements_of<typename Type::Element>();
            for (uint64_t at = 0; at < count && sums; at += block)
                wanted[i].add(canon::block_sums<Type>(values + at, int(std::min(block, count - at))));
            const Factors factors = canon::factors_of(ChangeKind::gradient, l1[i], l2[i], upstream);
            const Real x = Real(factors.x), y = Real(factors.y);
            if (!differentiates || (x == 0 && y == 0)) return;
            const auto add = [&](auto target) {
                using Target = decltype(target);
                auto* to = grads[i]->elements_of<typename Target::Element>();
                for (uint64_t k = 0; k < count; ++k)
                    to[k] =
                        written<Target>(canon::gradient(Real(Type::read(values[k])), Real(Target::read(to[k])), x, y));
            };
            if (wider) {
                add(canon::Float32{});
            } else {
                add(type);
            }
        });
        total.add(wanted[i]);
    }
    const HostTable host(spans.data(), differentiates ? targets.data() : nullptr, n, false);
    std::vector<uint64_t> memory(host.bytes().size() / 8 + 1);
    if (n) memcpy(memory.data(), host.bytes().data(), host.bytes().size());
    const Table table = host.at(memory.data());

    std::vector<int64_t> limbs(size_t(1 + host.slots()) * kRow);
    std::vector<BlockSums> singles(n);
    uint32_t finished = 0;
    const Workspace workspace{limbs.data(), singles.data(), &finished};
    uint32_t blocks = 1 + uint32_t(any(6)), warps = 1 + uint32_t(any(4));
    std::vector<Shared> shared(warps);
    const auto forget = [&] { memset(static_cast<void*>(shared.data()), 0x5a, warps * sizeof(Shared)); };
    const auto gathered = [&] {
        for (uint32_t k = 0; k < warps; ++k) bring_together(workspace, shared.data(), warps, k);
        forget();
    };
    forget();
    const Range range{0, host.blocks(), 1 + any(30)};
    if (differentiates) {
        const GradientArguments arguments{table, range, workspace, {l1.data(), l2.data()}, upstream, sums};
        blocks_of_threads(
            blocks, warps, [&](uint32_t k, uint32_t warp, uint32_t all) { gradient(arguments, shared[k], warp, all); },
            gathered);
    } else {
        const SumArguments arguments{table, range, workspace, {nullptr, nullptr}};
        blocks_of_threads(
            blocks, warps, [&](uint32_t k, uint32_t warp, uint32_t all) { sum(arguments, shared[k], warp, all); },
            gathered);
    }

    std::vector<double> abs(n), square(n), totals(2);
    std::vector<int64_t> rows(n * kRow);
    FinishArguments arguments{};
    arguments.table = table;
    arguments.workspace = workspace;
    arguments.abs = abs.data();
    arguments.square = square.data();
    arguments.limbs = rows.data();
    arguments.totals = totals.data();
    blocks = 1 + uint32_t(any(6));
    std::vector<int64_t> scratch(warps * 2 * kRow, -7);
    const auto row = reinterpret_cast<int64_t (*)[kRow]>(scratch.data()), mine = row + warps;
    blocks_of_threads(
        blocks, warps, [&](uint32_t k, uint32_t warp, uint32_t all) { finish(arguments, row[k], mine[k], warp, all); },
        [&] { finish_totals(arguments, mine, warps, row[0], blocks); });

    for (size_t i = 0; i < n; ++i) {
        const std::string what = "buffer " + std::to_string(i) + " of " + std::to_string(n) + ", dtype " +
                                 std::to_string(int(spans[i].dtype)) + ", " + std::to_string(spans[i].count);
        CHECK(same(abs[i], wanted[i].abs.value()) && same(square[i], wanted[i].square.value()), "%s", what.c_str());
        const int64_t* found = &rows[i * kRow];
        CHECK(memcmp(found, wanted[i].abs.canonical_limbs(), kLimbs * sizeof(int64_t)) == 0, "%s", what.c_str());
        CHECK(memcmp(found + kLimbs, wanted[i].square.canonical_limbs(), kLimbs * sizeof(int64_t)) == 0, "%s",
              what.c_str());
        CHECK(weights[i]->as_wanted() && grads[i]->as_wanted(), "%s", what.c_str());
    }
    CHECK(same(totals[0], total.abs.value()) && same(totals[1], total.square.value()), "%zu buffers", n);
    CHECK(finished == 0 && limbs == std::vector<int64_t>(limbs.size()), "what the next call finds, %zu buffers", n);
}

void lists() {
    for (int turn = 0; turn < 3000; ++turn) list_of(any(12));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    dice.seed(strtoull(argv[2], nullptr, 10));
    const std::map<std::string, void (*)()> parts = {
        {"trees",
         [] {
             each_type([](auto type) { trees<decltype(type)>(); });
             deciding_elements();
         }},
        {"changes", [] { each_type([](auto type) { changes<decltype(type)>(); }); }},
        {"search", search},
        {"sweep", sweeps},
        {"limbs", limb_rows},
        {"lists", lists},
    };
    parts.at(argv[1])();
    printf("%" PRIu64 " cases\n", cases);
    return 0;
}
