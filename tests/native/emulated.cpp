// launch.hpp without a GPU: the kernels' own source, run by the host on the host's memory, for tests.
//
// Streams behave as a GPU's do where that can go wrong: what is put on one runs when somebody waits for it, not
// before, and not with what is on another stream unless an event says so. Every launch takes another number of
// warps, chunks of another size, and the warps in another order: no bit may depend on them. What this cannot show:
// a barrier that is missing between two phases, and anything about time.

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/launch.hpp"
#include "cuda/program.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace fused_penalties {
namespace cuda {
namespace {

using Action = std::function<void()>;

struct Stream {
    std::deque<Action> waiting;
    bool captured = false;
    std::vector<Action> recorded;
};

struct Event {
    Stream* stream = nullptr;
    bool reached = true;
};

std::map<void*, Stream> streams;
std::vector<std::vector<Action>> graphs;
std::mt19937 dice(20261122);
std::string failure;  // the error that the next launch gives
int launches = 0;

void run_until(Stream& stream, const std::function<bool()>& done) {
    while (!done() && !stream.waiting.empty()) {
        const Action action = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        action();
    }
}

void put(void* on, Action action) {
    Stream& stream = streams[on];
    if (stream.captured) {
        stream.recorded.push_back(std::move(action));
    } else {
        stream.waiting.push_back(std::move(action));
    }
}

void start(const Queue& queue, const std::function<void(uint32_t, uint32_t)>& warp) {
    if (!failure.empty()) {
        const std::string error = std::move(failure);
        failure.clear();
        throw std::runtime_error("tests/native/emulated.cpp:" + std::to_string(__LINE__) + ": " + error);
    }
    ++launches;
    put(queue.stream, [warp] {
        const uint32_t counts[] = {1, 3, 8, 40};
        std::vector<uint32_t> order(counts[dice() % 4]);
        for (uint32_t k = 0; k < order.size(); ++k) order[k] = k;
        std::shuffle(order.begin(), order.end(), dice);
        for (uint32_t k : order) warp(k, uint32_t(order.size()));
    });
}

template <class Arguments, class Program>
void start_range(const Queue& queue, Arguments arguments, uint64_t first, uint64_t end, const Program& program) {
    if (first == end) return;
    const uint64_t steps[] = {1, 2, 3, 8};
    arguments.range = {first, end, steps[dice() % 4]};
    start(queue, [arguments, program](uint32_t warp, uint32_t warps) { program(arguments, warp, warps); });
}

template <class Arguments, class Program>
void start_change(const Queue& queue, const HostTable& table, const Arguments& arguments, const Program& program) {
    if (!table.in_turn()) return start_range(queue, arguments, 0, table.blocks(), program);
    for (size_t i = 0; i < table.buffers(); ++i) start_range(queue, arguments, table.begin(i), table.end(i), program);
}

}  // namespace

std::string toolkit() { return "emulated"; }
std::string unavailable() { return ""; }

bool capturing(const Queue& queue) { return streams[queue.stream].captured; }

void upload(const Queue& queue, void* to, const void* from, size_t bytes) {
    const std::string copy(static_cast<const char*>(from), bytes);
    put(queue.stream, [to, copy] { memcpy(to, copy.data(), copy.size()); });
}

void clear(const Queue& queue, void* to, size_t bytes) {
    put(queue.stream, [to, bytes] { memset(to, 0, bytes); });
}

void launch(const Queue& queue, const HostTable& table, SumArguments arguments) {
    start_range(queue, arguments, 0, table.blocks(), [](const SumArguments& given, uint32_t warp, uint32_t warps) {
        Shared shared;
        memset(static_cast<void*>(&shared), 0xab, sizeof shared);
        sum(given, shared, warp, warps);
    });
}

void launch(const Queue& queue, const HostTable& table, GradientArguments arguments) {
    start_change(queue, table, arguments, [](const GradientArguments& given, uint32_t warp, uint32_t warps) {
        Shared shared;
        memset(static_cast<void*>(&shared), 0xab, sizeof shared);
        gradient(given, shared, warp, warps);
    });
}

void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments) {
    start_change(queue, table, arguments, [](const UpdateArguments& given, uint32_t warp, uint32_t warps) {
        alignas(16) unsigned char stage[kLanes * kStage];
        update(given, stage, warp, warps);
    });
}

void launch(const Queue& queue, const FinishArguments& arguments) {
    start(queue, [arguments](uint32_t warp, uint32_t warps) {
        int64_t row[kRow], total[kRow];
        memset(row, 0xab, sizeof row);
        memset(total, 0xab, sizeof total);
        finish(arguments, row, total, warp, warps);
    });
}

Turns::~Turns() { delete static_cast<std::shared_ptr<Event>*>(event_); }

void Turns::wait(const Queue& queue) {
    if (!event_) return;
    const std::shared_ptr<Event> event = *static_cast<std::shared_ptr<Event>*>(event_);
    put(queue.stream, [event] { run_until(*event->stream, [&] { return event->reached; }); });
}

void Turns::done(const Queue& queue) {
    delete static_cast<std::shared_ptr<Event>*>(event_);
    const auto event = std::make_shared<Event>(Event{&streams[queue.stream], false});
    event_ = new std::shared_ptr<Event>(event);
    put(queue.stream, [event] { event->reached = true; });
}

// What CuPy's part is played with.

EXPORTED void emulated_synchronize(void* stream) {
    run_until(streams[stream], [] { return false; });
}

// A copy on the stream, from memory that is read when its turn comes.
EXPORTED void emulated_copy(void* stream, void* to, const void* from, size_t bytes) {
    put(stream, [=] { memcpy(to, from, bytes); });
}

EXPORTED void emulated_begin_capture(void* stream) { streams[stream].captured = true; }

EXPORTED int emulated_end_capture(void* stream) {
    Stream& captured = streams[stream];
    captured.captured = false;
    graphs.push_back(std::move(captured.recorded));
    captured.recorded.clear();
    return int(graphs.size()) - 1;
}

EXPORTED void emulated_launch_graph(void* stream, int graph) {
    for (const Action& action : graphs[size_t(graph)]) put(stream, action);
}

EXPORTED void emulated_fail(const char* error) { failure = error; }

// How many kernels were launched so far.
EXPORTED int emulated_launches() { return launches; }

}  // namespace cuda
}  // namespace fused_penalties
