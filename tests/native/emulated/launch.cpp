// launch.hpp without a GPU: the kernels' own source, run by the host on the host's memory.
//
// Every launch takes another number of warps, chunks of another size, and the warps in another order: no bit may depend
// on them. What this cannot show: a barrier that is missing between two phases, and anything about time.
#include "cuda/launch.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cuda/finish.hpp"
#include "cuda/program.hpp"
#include "cuda/runtime.hpp"
#include "streams.hpp"

namespace fused_penalties {
namespace cuda {
namespace {

using namespace emulation;

constexpr const char* kFile = "tests/native/emulated/launch.cpp";

std::mt19937 dice(20261122);

// One of a launch's blocks of threads.
struct ThreadBlock {
    uint32_t index, count, warps;

    // Calls visit(k, warp, warps) for every warp of it, in any order: its number here, its number among all, and how
    // many there are.
    template <class Visit>
    void each_warp(const Visit& visit) const {
        for (uint32_t k : shuffled(warps)) visit(k, index * warps + k, count * warps);
    }

    static std::vector<uint32_t> shuffled(uint32_t n) {
        std::vector<uint32_t> order(n);
        for (uint32_t k = 0; k < n; ++k) order[k] = k;
        std::shuffle(order.begin(), order.end(), dice);
        return order;
    }
};

void start(const Queue& queue, const std::function<void(const ThreadBlock&)>& threads) {
    const Lock lock(mutex);
    CHECK(attempt());
    ++launches;
    put(stream_at(queue.device, queue.stream), [threads] {
        const uint32_t counts[] = {1, 2, 3, 10}, warps[] = {1, 3, 4};
        const uint32_t count = counts[dice() % 4], each = warps[dice() % 3];
        for (uint32_t k : ThreadBlock::shuffled(count)) threads({k, count, each});
    });
}

// WarpMemory memory as a kernel finds it: anything may be in it.
template <class T>
std::unique_ptr<T[]> filled(uint32_t n) {
    std::unique_ptr<T[]> memory(new T[n]);
    memset(static_cast<void*>(memory.get()), 0x5a, n * sizeof(T));
    return memory;
}

template <class Arguments, class Program>
void start_range(const Queue& queue, Arguments arguments, uint64_t first, uint64_t end, const Program& program) {
    if (first == end) return;
    const uint64_t chunks[] = {1, 3, 40, end - first};
    arguments.range = {first, end, chunks[dice() % 4]};
    start(queue, [arguments, program](const ThreadBlock& threads) { program(arguments, threads); });
}

template <class Arguments, class Program>
void start_change(const Queue& queue, const HostTable& table, const Arguments& arguments, const Program& program) {
    if (!table.one_by_one()) return start_range(queue, arguments, 0, table.blocks(), program);
    for (size_t i = 0; i < table.buffers(); ++i) start_range(queue, arguments, table.begin(i), table.end(i), program);
}

template <class Arguments>
void start_sum(const Queue& queue, const HostTable& table, const Arguments& arguments) {
    start_range(queue, arguments, 0, table.blocks(), [](const Arguments& given, const ThreadBlock& threads) {
        auto memory = filled<typename LargestFor<Arguments>::Memory>(threads.warps);
        threads.each_warp([&](uint32_t k, uint32_t warp, uint32_t warps) { sum(given, memory[k], warp, warps); });
        threads.each_warp(
            [&](uint32_t k, uint32_t, uint32_t) { bring_together(given.workspace, memory.get(), threads.warps, k); });
    });
}

}  // namespace

std::string toolkit() { return "emulated"; }

void prepare(int) {
    const Lock lock(mutex);
    CHECK(attempt());
}

void launch(const Queue& queue, const HostTable& table, SumArguments arguments) { start_sum(queue, table, arguments); }

void launch(const Queue& queue, const HostTable& table, LargestArguments arguments) {
    start_sum(queue, table, arguments);
}

void launch(const Queue& queue, const HostTable& table, GradientArguments arguments) {
    start_change(queue, table, arguments, [](const GradientArguments& given, const ThreadBlock& threads) {
        auto memory = filled<WarpMemory>(threads.warps);
        threads.each_warp([&](uint32_t k, uint32_t warp, uint32_t warps) { gradient(given, memory[k], warp, warps); });
        threads.each_warp(
            [&](uint32_t k, uint32_t, uint32_t) { bring_together(given.workspace, memory.get(), threads.warps, k); });
    });
}

void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments) {
    start_change(queue, table, arguments, [](const UpdateArguments& given, const ThreadBlock& threads) {
        alignas(16) unsigned char stage[kLanes * kStage];
        threads.each_warp([&](uint32_t, uint32_t warp, uint32_t warps) { update(given, stage, warp, warps); });
    });
}

void launch(const Queue& queue, const FinishArguments& arguments) {
    start(queue, [arguments](const ThreadBlock& threads) {
        const auto rows = filled<int64_t[kBothLimbs]>(threads.warps),
                   totals = filled<int64_t[kBothLimbs]>(threads.warps);
        threads.each_warp(
            [&](uint32_t k, uint32_t warp, uint32_t warps) { finish(arguments, rows[k], totals[k], warp, warps); });
        finish_totals(arguments, totals.get(), threads.warps, rows[0], threads.count);
    });
}

}  // namespace cuda
}  // namespace fused_penalties
