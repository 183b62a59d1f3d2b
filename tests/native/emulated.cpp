// launch.hpp without a GPU: the kernels' own source, run by the host on the host's memory, for tests.
//
// Streams behave as a GPU's do where that can go wrong: what is put on one runs when somebody waits for it, not
// before, and not with what is on another stream unless an event says so. Every launch takes another number of
// warps, chunks of another size, and the warps in another order: no bit may depend on them. What this cannot show:
// a barrier that is missing between two phases, and anything about time.
//
// One thread at a time is in here, whoever holds Python's lock: what runs on a stream may call Python.

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <vector>

#include "cuda/launch.hpp"
#include "cuda/program.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace fused_penalties {
namespace cuda {
namespace {

using Action = std::function<void()>;

struct Stream {
    int device;
    bool blocking;
    std::deque<Action> waiting = {};
    bool captured = false;
    int capture_mode = kRelaxedCapture;
    std::vector<Action> recorded = {};
};

struct Event {
    Stream* stream;
    bool reached;
};

// The default streams, as CUDA names them.
constexpr uintptr_t kNull = 0, kLegacy = 1, kPerThread = 2;
constexpr uintptr_t kFirstMade = 1000;

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
std::map<std::tuple<int, uintptr_t, std::thread::id>, Stream> default_streams;
std::deque<Stream> made;  // their handles count from kFirstMade
std::vector<std::vector<Action>> graphs;
std::vector<std::shared_ptr<Event>> events;
std::mt19937 dice(20261122);
std::string failure;  // the error that a call of CUDA gives
int until_failure = 0;
int launches = 0;
thread_local int capture_mode = 0;

[[noreturn]] void raise(const std::string& error) {
    throw std::runtime_error("tests/native/emulated.cpp:" + std::to_string(__LINE__) + ": " + error);
}

// Called by whatever asks CUDA for something, with the lock.
void attempt() {
    if (failure.empty() || until_failure-- > 0) return;
    const std::string error = std::move(failure);
    failure.clear();
    raise(error);
}

// Every device has a default stream, and every thread one more on each.
Stream& stream_of(const Queue& queue) {
    auto handle = reinterpret_cast<uintptr_t>(queue.stream);
    if (handle == kLegacy) handle = kNull;
    if (handle == kNull || handle == kPerThread) {
        const auto thread = handle == kPerThread ? std::this_thread::get_id() : std::thread::id();
        return default_streams.try_emplace({queue.device, handle, thread}, Stream{queue.device, true}).first->second;
    }
    if (handle < kFirstMade || handle - kFirstMade >= made.size() || made[handle - kFirstMade].device != queue.device)
        raise("cudaErrorInvalidResourceHandle: no stream of this device");
    return made[handle - kFirstMade];
}

template <class Visit>
void each_stream(const Visit& visit) {
    for (auto& stream : default_streams) visit(stream.second);
    for (Stream& stream : made) visit(stream);
}

void run_until(Stream& stream, const std::function<bool()>& done) {
    while (!done() && !stream.waiting.empty()) {
        const Action action = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        action();
    }
}

void put(Stream& stream, Action action) {
    if (stream.captured) {
        stream.recorded.push_back(std::move(action));
    } else {
        stream.waiting.push_back(std::move(action));
    }
}

// What has been put on a stream so far.
std::shared_ptr<Event> record(Stream& stream) {
    const auto event = std::make_shared<Event>(Event{&stream, false});
    put(stream, [event] { event->reached = true; });
    return event;
}

void put_wait(Stream& stream, const std::shared_ptr<Event>& event) {
    put(stream, [event] { run_until(*event->stream, [&] { return event->reached; }); });
}

// One of a launch's blocks of threads.
struct Group {
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

void start(const Queue& queue, const std::function<void(const Group&)>& group) {
    const Lock lock(mutex);
    attempt();
    ++launches;
    put(stream_of(queue), [group] {
        const uint32_t counts[] = {1, 2, 3, 10}, warps[] = {1, 3, 4};
        const uint32_t count = counts[dice() % 4], each = warps[dice() % 3];
        for (uint32_t k : Group::shuffled(count)) group({k, count, each});
    });
}

// Shared memory as a kernel finds it: anything may be in it.
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
    start(queue, [arguments, program](const Group& group) { program(arguments, group); });
}

template <class Arguments, class Program>
void start_change(const Queue& queue, const HostTable& table, const Arguments& arguments, const Program& program) {
    if (!table.in_turn()) return start_range(queue, arguments, 0, table.blocks(), program);
    for (size_t i = 0; i < table.buffers(); ++i) start_range(queue, arguments, table.begin(i), table.end(i), program);
}

}  // namespace

std::string toolkit() { return "emulated"; }
std::string unavailable() { return ""; }

void prepare(int) {
    const Lock lock(mutex);
    attempt();
}

int exchange_capture_mode(int mode) {
    std::swap(mode, capture_mode);
    return mode;
}

void wait(const Queue& queue, void* stream) {
    const Lock lock(mutex);
    attempt();
    put_wait(stream_of(queue), record(stream_of({queue.device, stream})));
}

bool capturing(const Queue& queue) {
    const Lock lock(mutex);
    attempt();
    Stream& asked = stream_of(queue);
    if (reinterpret_cast<uintptr_t>(queue.stream) <= kLegacy)
        each_stream([&](const Stream& other) {
            if (other.captured && other.blocking && other.device == queue.device)
                raise("cudaErrorStreamCaptureImplicit: the legacy stream would join a capture");
        });
    return asked.captured;
}

void upload(const Queue& queue, void* to, const void* from, size_t bytes) {
    const Lock lock(mutex);
    attempt();
    Stream& stream = stream_of(queue);
    if (bytes && stream.captured) raise("the graph would read the host's memory again");
    const std::string copy(static_cast<const char*>(from), bytes);
    put(stream, [to, copy] { memcpy(to, copy.data(), copy.size()); });
}

void clear(const Queue& queue, void* to, size_t bytes) {
    const Lock lock(mutex);
    attempt();
    put(stream_of(queue), [to, bytes] { memset(to, 0, bytes); });
}

void launch(const Queue& queue, const HostTable& table, SumArguments arguments) {
    start_range(queue, arguments, 0, table.blocks(), [](const SumArguments& given, const Group& group) {
        auto shared = filled<Shared>(group.warps);
        group.each_warp([&](uint32_t k, uint32_t warp, uint32_t warps) { sum(given, shared[k], warp, warps); });
        group.each_warp(
            [&](uint32_t k, uint32_t, uint32_t) { bring_together(given.workspace, shared.get(), group.warps, k); });
    });
}

void launch(const Queue& queue, const HostTable& table, GradientArguments arguments) {
    start_change(queue, table, arguments, [](const GradientArguments& given, const Group& group) {
        auto shared = filled<Shared>(group.warps);
        group.each_warp([&](uint32_t k, uint32_t warp, uint32_t warps) { gradient(given, shared[k], warp, warps); });
        group.each_warp(
            [&](uint32_t k, uint32_t, uint32_t) { bring_together(given.workspace, shared.get(), group.warps, k); });
    });
}

void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments) {
    start_change(queue, table, arguments, [](const UpdateArguments& given, const Group& group) {
        alignas(16) unsigned char stage[kLanes * kStage];
        group.each_warp([&](uint32_t, uint32_t warp, uint32_t warps) { update(given, stage, warp, warps); });
    });
}

void launch(const Queue& queue, const FinishArguments& arguments) {
    start(queue, [arguments](const Group& group) {
        const auto rows = filled<int64_t[kRow]>(group.warps), totals = filled<int64_t[kRow]>(group.warps);
        group.each_warp(
            [&](uint32_t k, uint32_t warp, uint32_t warps) { finish(arguments, rows[k], totals[k], warp, warps); });
        finish_totals(arguments, totals.get(), group.warps, rows[0], group.count);
    });
}

Turns::~Turns() { delete static_cast<std::shared_ptr<Event>*>(event_); }

void Turns::wait(const Queue& queue) {
    if (!event_) return;
    const Lock lock(mutex);
    attempt();
    put_wait(stream_of(queue), *static_cast<std::shared_ptr<Event>*>(event_));
}

void Turns::done(const Queue& queue) {
    const Lock lock(mutex);
    attempt();
    auto* event = new std::shared_ptr<Event>(record(stream_of(queue)));
    delete static_cast<std::shared_ptr<Event>*>(event_);
    event_ = event;
}

// What CuPy's part is played with. A stream is named by its device and its handle.

EXPORTED void* emulated_new_stream(int device, bool blocking) {
    const Lock lock(mutex);
    made.push_back(Stream{device, blocking});
    return reinterpret_cast<void*>(kFirstMade + made.size() - 1);
}

// False, and nothing is done, while the stream is captured.
EXPORTED bool emulated_synchronize(int device, void* handle) {
    const Lock lock(mutex);
    Stream& stream = stream_of({device, handle});
    if (stream.captured) return false;
    run_until(stream, [] { return false; });
    return true;
}

EXPORTED void emulated_synchronize_device(int device) {
    const Lock lock(mutex);
    each_stream([&](Stream& stream) {
        if (stream.device == device) run_until(stream, [] { return false; });
    });
}

// Runs the next few things on a stream, and leaves the others.
EXPORTED void emulated_step(int device, void* handle, int count) {
    const Lock lock(mutex);
    run_until(stream_of({device, handle}), [&] { return count-- <= 0; });
}

// How many things wait on a stream.
EXPORTED size_t emulated_waiting(int device, void* handle) {
    const Lock lock(mutex);
    return stream_of({device, handle}).waiting.size();
}

EXPORTED bool emulated_idle() {
    const Lock lock(mutex);
    bool idle = true;
    each_stream([&](const Stream& stream) { idle = idle && stream.waiting.empty() && !stream.captured; });
    return idle;
}

// A copy on the stream, from memory that is read when its turn comes.
EXPORTED void emulated_copy(int device, void* handle, void* to, const void* from, size_t bytes) {
    const Lock lock(mutex);
    put(stream_of({device, handle}), [=] { memcpy(to, from, bytes); });
}

// What becomes of memory that is given back: the next one to get it, on this stream, writes into it. No graph has
// part in that.
EXPORTED void emulated_release(int device, void* handle, void* memory, size_t bytes) {
    const Lock lock(mutex);
    stream_of({device, handle}).waiting.push_back([=] { memset(memory, 0xef, bytes); });
}

EXPORTED void emulated_sqrt(int device, void* handle, double* to, const double* from) {
    const Lock lock(mutex);
    put(stream_of({device, handle}), [=] { *to = std::sqrt(*from); });
}

EXPORTED void emulated_call(int device, void* handle, void (*function)()) {
    const Lock lock(mutex);
    put(stream_of({device, handle}), function);
}

EXPORTED int emulated_record(int device, void* handle) {
    const Lock lock(mutex);
    events.push_back(record(stream_of({device, handle})));
    return int(events.size()) - 1;
}

EXPORTED void emulated_wait(int device, void* handle, int event) {
    const Lock lock(mutex);
    put_wait(stream_of({device, handle}), events[size_t(event)]);
}

EXPORTED void emulated_begin_capture(int device, void* handle, int mode) {
    const Lock lock(mutex);
    Stream& stream = stream_of({device, handle});
    stream.captured = true;
    stream.capture_mode = mode;
}

// False where this thread's asking for memory would spoil what is captured.
EXPORTED bool emulated_may_allocate() {
    const Lock lock(mutex);
    bool may = true;
    each_stream(
        [&](const Stream& stream) { may = may && !(stream.captured && stream.capture_mode < kRelaxedCapture); });
    return may || capture_mode == kRelaxedCapture;
}

EXPORTED int emulated_end_capture(int device, void* handle) {
    const Lock lock(mutex);
    Stream& captured = stream_of({device, handle});
    captured.captured = false;
    graphs.push_back(std::move(captured.recorded));
    captured.recorded.clear();
    return int(graphs.size()) - 1;
}

EXPORTED void emulated_launch_graph(int device, void* handle, int graph) {
    const Lock lock(mutex);
    for (const Action& action : graphs[size_t(graph)]) put(stream_of({device, handle}), action);
}

// The error that a call of CUDA gives, once, after `calls` others; none, with an empty one.
EXPORTED void emulated_fail(const char* error, int calls) {
    const Lock lock(mutex);
    failure = error;
    until_failure = calls;
}

EXPORTED bool emulated_has_failed() {
    const Lock lock(mutex);
    return failure.empty();
}

// How many kernels were launched so far.
EXPORTED int emulated_launches() {
    const Lock lock(mutex);
    return launches;
}

}  // namespace cuda
}  // namespace fused_penalties
