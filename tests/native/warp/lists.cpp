// Whole kernels: lists of buffers, summed and differentiated by any number of warps.

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#define FUSED_PENALTIES_GPU_GRADIENT_PREFETCH 1  // reads here, and what it reads must be there
#include "cases.hpp"
#include "cuda/finish.hpp"
#include "cuda/program.hpp"
#include "exact.hpp"
#include "parts.hpp"

namespace fused_penalties {
namespace {

using namespace cuda;

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
    // Given to the kernel, or found by it in memory as either type.
    double upstream = any_factor();
    const float narrow = float(upstream);
    const Number numbers[] = {{upstream, nullptr, false}, {0, &upstream, true}, {0, &narrow, false}};
    const Number number = numbers[any(3)];
    if (number.on_device == &narrow) upstream = narrow;
    std::vector<ExactSums> wanted(n);
    ExactSums total;
    std::vector<uint64_t> largest(n + 1), wanted_largest(n + 1);
    const bool with_largest = !differentiates && any(2);
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
            if (with_largest)
                wanted_largest[i] = canon::widened_magnitude<Type>(canon::largest<Type>(values, int(count)));
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
        wanted_largest[n] = std::max(wanted_largest[n], wanted_largest[i]);
    }
    const HostTable host(spans.data(), differentiates ? targets.data() : nullptr, n, false);
    std::vector<uint64_t> memory(host.bytes().size() / 8 + 1);
    if (n) memcpy(memory.data(), host.bytes().data(), host.bytes().size());
    const Table table = host.at(memory.data());

    std::vector<int64_t> limbs(size_t(1 + host.slots()) * kBothLimbs);
    std::vector<BlockSums> singles(n);
    uint32_t finished = 0;
    const Workspace workspace{limbs.data(), singles.data(), &finished};
    uint32_t blocks = 1 + uint32_t(any(6)), warps = 1 + uint32_t(any(4));
    std::vector<LargestMemory> warp_memory(warps);
    const auto forget = [&] { memset(static_cast<void*>(warp_memory.data()), 0x5a, warps * sizeof warp_memory[0]); };
    const auto gathered = [&] {
        for (uint32_t k = 0; k < warps; ++k) bring_together(workspace, warp_memory.data(), warps, k);
        forget();
    };
    forget();
    const Range range{0, host.blocks(), 1 + any(30)};
    if (differentiates) {
        const GradientArguments arguments{table, range, workspace, {l1.data(), l2.data()}, number, sums};
        blocks_of_threads(
            blocks, warps,
            [&](uint32_t k, uint32_t warp, uint32_t all) { gradient(arguments, warp_memory[k], warp, all); }, gathered);
    } else {
        const SumArguments arguments{table, range, workspace, {nullptr, nullptr}};
        const LargestArguments both{arguments, largest.data()};
        blocks_of_threads(
            blocks, warps,
            [&](uint32_t k, uint32_t warp, uint32_t all) {
                if (with_largest) return sum(both, warp_memory[k], warp, all);
                sum(arguments, warp_memory[k], warp, all);
            },
            gathered);
    }

    std::vector<double> abs(n), square(n), totals(2);
    std::vector<int64_t> rows(n * kBothLimbs);
    FinishArguments arguments{};
    arguments.table = table;
    arguments.workspace = workspace;
    arguments.abs = abs.data();
    arguments.square = square.data();
    arguments.limbs = rows.data();
    arguments.totals = totals.data();
    blocks = 1 + uint32_t(any(6));
    std::vector<int64_t> scratch(warps * 2 * kBothLimbs, -7);
    const auto row = reinterpret_cast<int64_t (*)[kBothLimbs]>(scratch.data()), mine = row + warps;
    blocks_of_threads(
        blocks, warps, [&](uint32_t k, uint32_t warp, uint32_t all) { finish(arguments, row[k], mine[k], warp, all); },
        [&] { finish_totals(arguments, mine, warps, row[0], blocks); });

    for (size_t i = 0; i < n; ++i) {
        const std::string what = "buffer " + std::to_string(i) + " of " + std::to_string(n) + ", dtype " +
                                 std::to_string(int(spans[i].dtype)) + ", " + std::to_string(spans[i].count);
        CHECK(same(abs[i], wanted[i].abs.value()) && same(square[i], wanted[i].square.value()), "%s", what.c_str());
        const int64_t* found = &rows[i * kBothLimbs];
        CHECK(memcmp(found, wanted[i].abs.canonical_limbs(), kLimbs * sizeof(int64_t)) == 0, "%s", what.c_str());
        CHECK(memcmp(found + kLimbs, wanted[i].square.canonical_limbs(), kLimbs * sizeof(int64_t)) == 0, "%s",
              what.c_str());
        CHECK(weights[i]->as_wanted() && grads[i]->as_wanted(), "%s", what.c_str());
    }
    CHECK(same(totals[0], total.abs.value()) && same(totals[1], total.square.value()), "%zu buffers", n);
    CHECK(largest == wanted_largest, "%zu buffers", n);
    CHECK(finished == 0 && limbs == std::vector<int64_t>(limbs.size()), "what the next call finds, %zu buffers", n);
}

}  // namespace

void lists() {
    for (int turn = 0; turn < 3000; ++turn) list_of(any(12));
}

}  // namespace fused_penalties
