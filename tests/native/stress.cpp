// Random lists of buffers: every body that this processor runs against the scalar tree, with no bit apart.
//
// stress SEED LISTS    prints how many lists agreed, or the first difference, and then exits with 1.
//
// List number n depends on SEED + n alone, so that `stress NUMBER 1` repeats the one that a difference names. A list
// has up to four buffers: of any dtype, at any byte past a multiple of 64, of lengths about the edges of the parts
// of a block, each with one kind of values. Compared are the exact sums, digit by digit, and what one change makes
// of every buffer, byte by byte, the bytes beside the buffers included. Built with AddressSanitizer, it also ends at
// the first read of such a byte.

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/sweep.hpp"

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>  // what it defines does nothing without AddressSanitizer
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#endif

using namespace fused_penalties;

namespace {

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0xd1342543de82ef95u) {}

    uint64_t bits() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int between(int first, int last) { return first + int((bits() >> 32) * uint64_t(last - first + 1) >> 32); }
    bool one_in(int n) { return between(1, n) == 1; }

private:
    uint64_t state_;
};

struct Format {
    int exponent_bits, fraction_bits;
    int lane_bits;  // the fraction bits of the type that its lanes are summed in

    int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    uint64_t fraction() const { return (uint64_t(1) << fraction_bits) - 1; }
};
constexpr Format kFormats[] = {
    // by DType
    {5, 10, 23},
    {8, 7, 23},
    {8, 23, 52},
    {11, 52, 52},
};
static_assert(sizeof kFormats / sizeof *kFormats == kDTypes, "a format for each dtype");

// Values whose exponent fields are the `count` from `lowest` on. With `apart` they are `lowest` and, for one value in
// `count`, `lowest + apart`.
struct Kind {
    int lowest, count, apart;
    uint64_t fraction;  // its bits that may be set
};

Kind any_kind(Random& random, DType dtype) {
    const Format& format = kFormats[int(dtype)];
    const int bias = format.bias();
    const uint64_t fraction = format.fraction(), perhaps = random.one_in(2) ? fraction : 0;
    switch (random.between(0, 8)) {
        case 0: return {0, 2 * bias + 1, 0, fraction};                // every finite magnitude
        case 1: return {0, 2 * bias + 2, 0, fraction};                // every pattern
        case 2: return {0, 1, 0, perhaps};                            // subnormal, or zeros of either sign
        case 3: return {bias - bias / 4, bias / 2 + 1, 0, fraction};  // far apart, and no square leaves the range
        case 4: return {random.between(0, 2 * bias - 3), random.between(1, 4), 0, fraction};
        case 5: {  // the small ones, or their squares, are half an ulp of the large ones: the order decides
            const int apart = (format.lane_bits + 2) / random.between(1, 2);
            return {random.between(1, 2 * bias - apart), random.between(2, 16), apart, perhaps};
        }
        case 6:  // about the limits between bfloat16's rules
            if (dtype == DType::bfloat16)
                return {(random.one_in(2) ? 77 : 187) - random.between(0, 2), random.between(1, 3), 0, perhaps};
            [[fallthrough]];
        default: return {bias - 8, 10, 0, fraction};  // as weights are
    }
}

void put(unsigned char* to, uint64_t bits, size_t size) {
    for (size_t k = 0; k < size; ++k) to[k] = static_cast<unsigned char>(bits >> (8 * k));
}

void fill(Random& random, DType dtype, unsigned char* to, uint64_t count) {
    const Format& format = kFormats[int(dtype)];
    const size_t size = size_t(itemsize(dtype));
    const Kind kind = any_kind(random, dtype);
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t r = random.bits();
        const int choice = int((r >> 53) * uint64_t(kind.count) >> 11);
        const int exponent = kind.lowest + (kind.apart == 0 ? choice : choice == 0 ? kind.apart : 0);
        const uint64_t sign = (r >> 52 & 1) << format.exponent_bits;
        put(to + i * size, (sign | uint64_t(exponent)) << format.fraction_bits | (r & kind.fraction), size);
    }
    if (count > 0 && random.one_in(6)) {  // one is nothing like the others, perhaps NaN or infinite
        const uint64_t special = uint64_t(2 * format.bias() + 1) << format.fraction_bits;
        const uint64_t bits = random.one_in(2) ? random.bits() : special | (random.one_in(2) ? random.bits() : 0);
        put(to + uint64_t(random.between(0, int(count) - 1)) * size, bits, size);
    }
}

// Most buffers are short: the scalar tree is slow.
uint64_t any_length(Random& random, DType dtype) {
    const int block = block_elements(dtype), strip = block / 4, row = strip / 16;
    switch (random.between(0, 9)) {
        case 0:
        case 1:
        case 2: return uint64_t(random.between(0, 2 * row));
        case 3: return uint64_t(random.between(0, strip));
        case 4: return uint64_t(random.between(0, block));
        case 5: return uint64_t(random.between(0, random.one_in(4) ? 4 * block : block));
        default: {
            const int parts[] = {row / 4, row / 2, row, row, strip, strip, block}, part = parts[random.between(0, 6)];
            const int edge = part * random.between(1, part == block ? 3 : part == strip ? 8 : 64);
            return uint64_t(edge + random.between(-3, 3));
        }
    }
}

constexpr size_t kRoom = size_t(1) << 19;  // four buffers of four blocks, or of twice that: float32 gradients

// A number to change weights by: 0, of the size of a strength, or of any size.
double any_factor(Random& random) {
    if (random.one_in(4)) return 0;
    const double value = double(random.bits() >> 11) * 0x1p-53;
    return std::ldexp(value, random.one_in(4) ? random.between(-150, 120) : random.between(-12, 4));
}

Factors any_factors(Random& random, ChangeKind kind) {
    const double x = any_factor(random), y = any_factor(random), sign = random.one_in(2) ? -1 : 1;
    switch (kind) {
        case ChangeKind::gradient:
        case ChangeKind::stored_gradient: return {sign * x, random.one_in(2) ? y : -y};
        case ChangeKind::proximal: return {x, 1 + y};
        case ChangeKind::decay:
        case ChangeKind::clip: return {random.one_in(8) ? 1 : sign * x, 0};
    }
    return {0, 0};
}

const char* name_of(ChangeKind kind) {
    switch (kind) {
        case ChangeKind::gradient: return "gradient";
        case ChangeKind::stored_gradient: return "stored gradient";
        case ChangeKind::proximal: return "proximal";
        case ChangeKind::decay: return "decay";
        case ChangeKind::clip: return "clip";
    }
    return "";
}

// Memory whose buffers have bytes between them that belong to none.
struct Memory {
    unsigned char* const data = static_cast<unsigned char*>(std::aligned_alloc(64, kRoom));
    size_t used = 0;
    std::vector<std::pair<size_t, size_t>> beside;  // from one byte up to another, of no buffer

    Memory() = default;
    Memory(const Memory&) = delete;
    ~Memory() { free(data); }

    void clear() {
        used = 0;
        beside.clear();
    }
    Span add(Random& random, DType dtype, uint64_t count) {
        const size_t begin = used, at = begin + size_t(random.between(0, 63)),
                     end = at + size_t(count) * size_t(itemsize(dtype));
        memset(data + begin, 0xa5, at - begin);
        fill(random, dtype, data + at, count);
        used = end / 64 * 64 + 128;
        memset(data + end, 0xa5, used - end);
        beside.insert(beside.end(), {{begin, at}, {end, used}});
        return {data + at, count, nullptr, 0, dtype, false};
    }
    void copy(const Memory& other) {
        used = other.used;
        beside = other.beside;
        memcpy(data, other.data, used);
    }
};

// While it lives, a read or a write of bytes beside the buffers ends the program, if AddressSanitizer is there.
class Guard {
public:
    explicit Guard(const Memory& memory) : memory_(memory) {
        for (const auto& [begin, end] : memory.beside) ASAN_POISON_MEMORY_REGION(memory.data + begin, end - begin);
    }
    Guard(const Guard&) = delete;
    ~Guard() { ASAN_UNPOISON_MEMORY_REGION(memory_.data, memory_.used); }

private:
    const Memory& memory_;
};

// What one body makes of a list: the limbs of every buffer and of their total, the largest magnitudes of the buffers
// and of all if they are looked for, and the changed memory.
struct Result {
    std::vector<int64_t> limbs;
    std::vector<double> largest;
    Memory changed;
};

class List {
public:
    // Into memory that lists take in turn.
    List(uint64_t number, Memory& weights, Memory& targets) : number_(number), weights_(weights), targets_(targets) {
        Random random(number);
        weights.clear();
        targets.clear();
        const ChangeKind kinds[] = {ChangeKind::gradient, ChangeKind::gradient, ChangeKind::stored_gradient,
                                    ChangeKind::proximal, ChangeKind::decay};
        kind_ = kinds[random.between(0, 4)];
        in_one_read_ = random.one_in(2);
        for (int left = random.between(1, 4); left > 0; --left) {
            const DType dtype = DType(random.between(0, kDTypes - 1));
            const uint64_t count = any_length(random, dtype);
            spans_.push_back(weights.add(random, dtype, count));
            factors_.push_back(any_factors(random, kind_));
            const bool wider = is_narrow(dtype) && random.one_in(2);
            if (reads_weights(kind_)) places_.push_back(targets.add(random, wider ? DType::float32 : dtype, count));
        }
        with_largest_ = random.one_in(2);
        if (reads_weights(kind_)) return;
        targets.copy(weights);
        places_ = spans_;
        for (Span& place : places_) place.data += targets.data - weights.data;
    }

    size_t elements() const {
        size_t sum = 0;
        for (const Span& span : spans_) sum += span.count;
        return sum;
    }

    void run(const Kernels& kernels, Result& result) const {
        result.changed.copy(targets_);
        const Guard weights(weights_), changed(result.changed);
        std::vector<Span> places = places_;
        for (Span& place : places) place.data += result.changed.data - targets_.data;
        const Change change{kind_, places.data(), factors_.data()};
        const Line line(spans_.data(), spans_.size());
        const Work work{spans_.data(), line, 1, kernels};
        const size_t each = 2 * kLimbs;
        result.limbs.resize((spans_.size() + 1) * each);
        ExactSums total;
        std::vector<ExactSums> cut;
        const bool both = reads_weights(kind_) && in_one_read_;
        result.largest.assign(spans_.size() + 1, 0.0);
        sum(work, cut,
            SumsOut{nullptr, nullptr, result.limbs.data(), &total, with_largest_ ? result.largest.data() : nullptr},
            both ? &change : nullptr);
        result.largest.back() = limbs::double_of_bits(total.largest);
        int64_t* last = result.limbs.data() + spans_.size() * each;
        memcpy(last, total.abs.canonical_limbs(), kLimbs * sizeof *last);
        memcpy(last + kLimbs, total.square.canonical_limbs(), kLimbs * sizeof *last);
        if (both) return;
        const Work own{reads_weights(kind_) ? spans_.data() : places.data(), line, 1, kernels};
        fused_penalties::change(own, change);
    }

    // Says where a body's result first differs from the scalar one.
    bool same(const char* body, const Result& got, const Result& wanted) const {
        for (size_t i = 0; i < wanted.limbs.size(); ++i) {
            if (got.limbs[i] == wanted.limbs[i]) continue;
            const size_t buffer = i / (2 * kLimbs);
            printf("%s, list %" PRIu64 ": the %s sum of %s, limb %zu: %016" PRIx64 ", not %016" PRIx64 "\n", body,
                   number_, i / kLimbs % 2 ? "square" : "abs", name(buffer).c_str(), i % kLimbs, uint64_t(got.limbs[i]),
                   uint64_t(wanted.limbs[i]));
            return false;
        }
        for (size_t i = 0; i < wanted.largest.size(); ++i) {
            if (memcmp(&got.largest[i], &wanted.largest[i], sizeof(double)) == 0) continue;
            printf("%s, list %" PRIu64 ": the largest magnitude of %s: %a, not %a\n", body, number_, name(i).c_str(),
                   got.largest[i], wanted.largest[i]);
            return false;
        }
        if (memcmp(got.changed.data, wanted.changed.data, targets_.used) == 0) return true;
        size_t at = 0;
        while (got.changed.data[at] == wanted.changed.data[at]) ++at;
        size_t i = 0;
        while (i + 1 < places_.size() && places_[i + 1].data <= targets_.data + at) ++i;
        printf("%s, list %" PRIu64 ": %s of %s by %a and %a: byte %td is %02x, not %02x\n", body, number_,
               name_of(kind_), name(i).c_str(), factors_[i].x, factors_[i].y, targets_.data + at - places_[i].data,
               unsigned(got.changed.data[at]), unsigned(wanted.changed.data[at]));
        return false;
    }

private:
    std::string name(size_t i) const {
        if (i == spans_.size()) return "all buffers";
        return "buffer " + std::to_string(i) + " (" + name_of(spans_[i].dtype) + ", " +
               std::to_string(spans_[i].count) + " elements, " + std::to_string(uintptr_t(spans_[i].data) % 64) +
               " bytes off)";
    }

    uint64_t number_;
    const Memory &weights_, &targets_;
    ChangeKind kind_;
    bool in_one_read_;                  // the sums and the gradient
    bool with_largest_;                 // beside the sums
    std::vector<Span> spans_, places_;  // the weights, and what changes: gradients, or a copy of the weights
    std::vector<Factors> factors_;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        fputs("usage: stress SEED LISTS\n", stderr);
        return 2;
    }
    std::vector<const Kernels*> bodies;
    for (const std::string& name : supported_isas()) {
        use_isa(name);
        bodies.push_back(&active_kernels());
    }
    const Kernels& scalar = *bodies.back();
    bodies.pop_back();

    const uint64_t first = strtoull(argv[1], nullptr, 10), lists = strtoull(argv[2], nullptr, 10);
    Memory weights, targets;
    Result wanted, got;
    size_t elements = 0;
    for (uint64_t number = first; number < first + lists; ++number) {
        const List list(number, weights, targets);
        elements += list.elements();
        list.run(scalar, wanted);
        for (const Kernels* body : bodies) {
            list.run(*body, got);
            if (!list.same(body->name, got, wanted)) return 1;
        }
    }
    printf("%" PRIu64 " lists, %zu elements:", lists, elements);
    for (const Kernels* body : bodies) printf(" %s", body->name);
    puts("");
    return 0;
}
