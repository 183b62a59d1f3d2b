// CUDA's runtime and launch.hpp without a GPU: the kernels' own source, run by the host on the host's memory, for
// tests.
//
// Streams behave as a GPU's do where that can go wrong: what is put on one runs when somebody waits for it, not
// before, and not with what is on another stream unless an event says so; the same goes for the branches of a graph.
// The handle of a stream that was destroyed is that of the next one that is made. Every launch takes another number of
// warps, chunks of another size, and the warps in another order: no bit may depend on them. What this cannot show:
// a barrier that is missing between two phases, and anything about time.
//
// One thread at a time is in here, whoever holds Python's lock: what runs on a stream may call Python.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/finish.hpp"
#include "cuda/launch.hpp"
#include "cuda/program.hpp"
#include "cuda/runtime.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

extern "C" int PyGILState_Check(void);

namespace fused_penalties {
namespace cuda {
namespace {

constexpr const char* kFile = "tests/native/emulated/emulated.cpp";

using Action = std::function<void()>;

// What is captured. Each stream that takes part has a branch, whose nodes run one after the other; a node may be
// that another branch has come so far.
struct Node {
    Action action;
    size_t branch, nodes;
};

struct Graph {
    unsigned long long id;
    int mode;
    std::vector<std::vector<Node>> branches;
};

struct Stream {
    int device;
    bool blocking;
    unsigned long long id;
    uintptr_t handle;
    std::deque<Action> waiting = {};
    std::shared_ptr<Graph> captured = nullptr;
    size_t branch = 0;  // of what is captured
};

// What had been put on a stream when it was recorded: it is reached, or in a graph a branch has so many nodes.
struct Event {
    int device;
    Stream* stream = nullptr;
    std::shared_ptr<bool> reached = nullptr;
    std::shared_ptr<Graph> captured = nullptr;
    size_t branch = 0, nodes = 0;
};

// The default streams, as CUDA names them.
constexpr uintptr_t kNull = 0, kLegacy = 1, kPerThread = 2;
constexpr uintptr_t kFirstMade = 1000;
constexpr int kDevices = 2;

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
std::map<std::tuple<int, uintptr_t, std::thread::id>, Stream> default_streams;
std::deque<Stream> made;                 // what is on one that was destroyed still runs
std::map<uintptr_t, Stream*> by_handle;  // those that were not
unsigned long long ids = 100;            // of streams and captures
std::vector<std::shared_ptr<Graph>> graphs;
std::deque<Event> events;  // of the stand-in for CuPy
std::map<const char*, size_t> pinned;
std::set<int> contexts;  // the devices that have one
std::mt19937 dice(20261122);
cudaError_t failure = cudaSuccess;  // that a call of CUDA gives
int until_failure = 0;
int launches = 0;
int driver_version = CUDART_VERSION / 1000 * 1000;  // the oldest that is enough
std::atomic<int> under_lock{0};                     // calls of CUDA by a thread that had Python's lock
thread_local int capture_mode = 0, device_set = 0;
thread_local std::vector<int> pushed;  // the driver's contexts, by their devices

int current_device() { return pushed.empty() ? device_set : pushed.back(); }

// One of these is called by whatever asks CUDA for something: the first by what does nothing on a device, the second
// where an error would go unnoticed, the third elsewhere.
void notice() {
    if (PyGILState_Check()) ++under_lock;
}

void notice_on_device() {
    notice();
    contexts.insert(current_device());
}

cudaError_t attempt() {
    notice_on_device();
    if (failure == cudaSuccess || until_failure-- > 0) return cudaSuccess;
    return std::exchange(failure, cudaSuccess);
}

// Every device has a default stream, and every thread one more on each. Null if there is no such stream.
Stream* find_stream(int device, void* stream) {
    auto handle = reinterpret_cast<uintptr_t>(stream);
    if (handle == kLegacy) handle = kNull;
    contexts.insert(device);
    if (handle == kNull || handle == kPerThread) {
        const auto thread = handle == kPerThread ? std::this_thread::get_id() : std::thread::id();
        const auto found = default_streams.try_emplace({device, handle, thread}, Stream{device, true, ids, handle});
        ids += found.second;
        return &found.first->second;
    }
    const auto found = by_handle.find(handle);
    return found == by_handle.end() || found->second->device != device ? nullptr : found->second;
}

Stream& stream_at(int device, void* handle) {
    Stream* found = find_stream(device, handle);
    if (!found) CHECK(cudaErrorInvalidResourceHandle);
    return *found;
}

template <class Visit>
void each_stream(const Visit& visit) {
    for (auto& stream : default_streams) visit(stream.second);
    for (Stream& stream : made) visit(stream);
}

// Whether a call that may not be made while somebody captures spoils what is captured.
bool spoils() {
    bool strict = false;
    each_stream(
        [&](const Stream& other) { strict = strict || (other.captured && other.captured->mode < kRelaxedCapture); });
    return strict && capture_mode < kRelaxedCapture;
}

// Whether the default stream would have to wait for one that is captured.
bool joins_capture(const Stream& stream) {
    bool joins = false;
    if (stream.handle <= kLegacy)
        each_stream([&](const Stream& other) {
            joins = joins || (other.captured && other.blocking && other.device == stream.device);
        });
    return joins;
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
        stream.captured->branches[stream.branch].push_back({std::move(action), 0, 0});
    } else {
        stream.waiting.push_back(std::move(action));
    }
}

cudaError_t record(Event& event, Stream& stream) {
    if (event.device != stream.device) return cudaErrorInvalidResourceHandle;
    if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
    event.stream = &stream;
    event.captured = stream.captured;
    event.branch = stream.branch;
    event.nodes = stream.captured ? stream.captured->branches[stream.branch].size() : 0;
    const auto reached = event.reached = std::make_shared<bool>(false);
    if (!stream.captured) put(stream, [reached] { *reached = true; });
    return cudaSuccess;
}

cudaError_t put_wait(Stream& stream, const Event& event) {
    if (!event.stream) return cudaSuccess;  // it was never recorded
    if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
    if (!event.captured && stream.captured) return cudaErrorStreamCaptureIsolation;
    if (!event.captured) {
        put(stream, [other = event.stream, reached = event.reached] { run_until(*other, [&] { return *reached; }); });
        return cudaSuccess;
    }
    if (!stream.captured) {  // it takes part from now on
        if (event.stream->captured != event.captured) return cudaErrorCapturedEvent;
        stream.captured = event.captured;
        stream.branch = event.captured->branches.size();
        event.captured->branches.emplace_back();
    }
    if (stream.captured != event.captured) return cudaErrorStreamCaptureMerge;
    stream.captured->branches[stream.branch].push_back({nullptr, event.branch, event.nodes});
    return cudaSuccess;
}

// Runs what is needed for a branch to have come so far, and returns whether that is everything.
bool run_graph(const Graph& graph, bool with_actions) {
    std::vector<size_t> done(graph.branches.size());
    const std::function<void(size_t, size_t)> run = [&](size_t branch, size_t nodes) {
        while (done[branch] < nodes) {
            const Node& node = graph.branches[branch][done[branch]++];
            if (!node.action) {
                run(node.branch, node.nodes);
            } else if (with_actions) {
                node.action();
            }
        }
    };
    run(0, graph.branches[0].size());
    bool all = true;
    for (size_t k = 0; k < done.size(); ++k) all = all && done[k] == graph.branches[k].size();
    return all;
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
    CHECK(attempt());
    ++launches;
    put(stream_at(queue.device, queue.stream), [group] {
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

void prepare(int) {
    const Lock lock(mutex);
    CHECK(attempt());
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

// What CuPy's part is played with. A stream is named by its device and its handle.

EXPORTED int emulated_get_device() { return current_device(); }

EXPORTED void emulated_set_device(int device) {
    const Lock lock(mutex);
    (pushed.empty() ? device_set : pushed.back()) = device;
    contexts.insert(device);
}

EXPORTED bool emulated_has_context(int device) {
    const Lock lock(mutex);
    return contexts.count(device);
}

EXPORTED void emulated_forget_context(int device) {
    const Lock lock(mutex);
    contexts.erase(device);
}

EXPORTED void* emulated_new_stream(int device, bool blocking) {
    const Lock lock(mutex);
    uintptr_t handle = kFirstMade;
    while (by_handle.count(handle)) ++handle;
    made.push_back(Stream{device, blocking, ids++, handle});
    by_handle[handle] = &made.back();
    return reinterpret_cast<void*>(handle);
}

EXPORTED void emulated_destroy_stream(void* handle) {
    const Lock lock(mutex);
    by_handle.erase(reinterpret_cast<uintptr_t>(handle));
}

// False, and nothing is done, while the stream is captured.
EXPORTED bool emulated_synchronize(int device, void* handle) {
    const Lock lock(mutex);
    Stream& stream = stream_at(device, handle);
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
    run_until(stream_at(device, handle), [&] { return count-- <= 0; });
}

// How many things wait on a stream.
EXPORTED size_t emulated_waiting(int device, void* handle) {
    const Lock lock(mutex);
    return stream_at(device, handle).waiting.size();
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
    put(stream_at(device, handle), [=] { memcpy(to, from, bytes); });
}

// What becomes of memory that is given back: the next one to get it, on this stream, writes into it. No graph has
// part in that.
EXPORTED void emulated_release(int device, void* handle, void* memory, size_t bytes) {
    const Lock lock(mutex);
    Stream* stream = find_stream(device, handle);
    for (Stream& each : made)  // one that was destroyed may still have work that uses it
        if (!stream && reinterpret_cast<void*>(each.handle) == handle) stream = &each;
    stream->waiting.push_back([=] { memset(memory, 0xef, bytes); });
}

EXPORTED void emulated_sqrt(int device, void* handle, double* to, const double* from) {
    const Lock lock(mutex);
    put(stream_at(device, handle), [=] { *to = std::sqrt(*from); });
}

EXPORTED void emulated_call(int device, void* handle, void (*function)()) {
    const Lock lock(mutex);
    put(stream_at(device, handle), function);
}

// A negative number is an error's; so is what is not 0 from the next.
EXPORTED int emulated_record(int device, void* handle) {
    const Lock lock(mutex);
    events.push_back(Event{device});
    const cudaError_t error = record(events.back(), stream_at(device, handle));
    return error ? -int(error) : int(events.size()) - 1;
}

EXPORTED int emulated_wait(int device, void* handle, int event) {
    const Lock lock(mutex);
    return put_wait(stream_at(device, handle), events[size_t(event)]);
}

EXPORTED const char* emulated_error(int error) { return cudaGetErrorName(cudaError_t(error)); }

EXPORTED void emulated_begin_capture(int device, void* handle, int mode) {
    const Lock lock(mutex);
    Stream& stream = stream_at(device, handle);
    stream.captured = std::make_shared<Graph>(Graph{ids++, mode, {{}}});
    stream.branch = 0;
}

// False where this thread's asking for memory would spoil what is captured.
EXPORTED bool emulated_may_allocate() {
    const Lock lock(mutex);
    return !spoils();
}

// -1 if a stream takes part whose work was not waited for.
EXPORTED int emulated_end_capture(int device, void* handle) {
    const Lock lock(mutex);
    const std::shared_ptr<Graph> graph = stream_at(device, handle).captured;
    each_stream([&](Stream& stream) {
        if (stream.captured == graph) stream.captured = nullptr;
    });
    if (!run_graph(*graph, false)) return -1;
    graphs.push_back(graph);
    return int(graphs.size()) - 1;
}

EXPORTED void emulated_launch_graph(int device, void* handle, int graph) {
    const Lock lock(mutex);
    put(stream_at(device, handle), [graph = graphs[size_t(graph)]] { run_graph(*graph, true); });
}

// One call of CUDA fails, after `calls` others, or none if that is negative.
EXPORTED void emulated_fail(int calls) {
    const Lock lock(mutex);
    failure = calls < 0 ? cudaSuccess : cudaErrorLaunchFailure;
    until_failure = calls;
}

// The driver is one for this version of CUDA; returns which it was.
EXPORTED int emulated_driver(int version) { return std::exchange(driver_version, version); }

// How many calls of CUDA were made with Python's lock.
EXPORTED int emulated_under_lock() { return under_lock; }

// How much pinned memory there is.
EXPORTED size_t emulated_pinned() {
    const Lock lock(mutex);
    size_t bytes = 0;
    for (const auto& piece : pinned) bytes += piece.second;
    return bytes;
}

EXPORTED bool emulated_has_failed() {
    const Lock lock(mutex);
    return failure == cudaSuccess;
}

// How many kernels were launched so far.
EXPORTED int emulated_launches() {
    const Lock lock(mutex);
    return launches;
}

}  // namespace cuda
}  // namespace fused_penalties

using namespace fused_penalties::cuda;

struct CUevent_st : Event {};

const char* cudaGetErrorName(cudaError_t error) {
    constexpr const char* kNames[] = {"cudaSuccess",
                                      "cudaErrorInvalidValue",
                                      "cudaErrorMemoryAllocation",
                                      "cudaErrorInsufficientDriver",
                                      "cudaErrorInvalidResourceHandle",
                                      "cudaErrorSymbolNotFound",
                                      "cudaErrorNotReady",
                                      "cudaErrorLaunchFailure",
                                      "cudaErrorStreamCaptureUnsupported",
                                      "cudaErrorStreamCaptureMerge",
                                      "cudaErrorStreamCaptureImplicit",
                                      "cudaErrorStreamCaptureIsolation",
                                      "cudaErrorCapturedEvent"};
    return kNames[error];
}

const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

// Calls run(stream) for a stream of the current device.
template <class Run>
cudaError_t on_stream(cudaStream_t handle, const Run& run) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    Stream* stream = find_stream(current_device(), handle);
    return stream ? run(*stream) : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaGetDeviceCount(int* count) {
    notice();
    if (driver_version < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
    *count = kDevices;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    notice();
    *value = 9;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    notice();
    *version = driver_version;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    notice();
    *device = current_device();
    return cudaSuccess;
}

// The driver's contexts are named by the address of the number of their device.

static int numbers[kDevices] = {0, 1};

static int retain(void** context, int device) {
    const Lock lock(mutex);
    notice();
    contexts.insert(device);
    *context = &numbers[device];
    return 0;
}

static int release(int) {
    notice();
    return 0;
}

static int push(void* context) {
    notice();
    pushed.push_back(*static_cast<int*>(context));
    return 0;
}

static int pop(void** context) {
    notice();
    *context = &numbers[pushed.back()];
    pushed.pop_back();
    return 0;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    notice();
    if (int(version) > driver_version) return cudaErrorInvalidValue;
    const std::map<std::string, void*> known = {{"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(retain)},
                                                {"cuDevicePrimaryCtxRelease", reinterpret_cast<void*>(release)},
                                                {"cuCtxPushCurrent", reinterpret_cast<void*>(push)},
                                                {"cuCtxPopCurrent", reinterpret_cast<void*>(pop)}};
    *function = known.at(name);
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    const Lock lock(mutex);
    notice_on_device();
    const auto before = static_cast<cudaStreamCaptureMode>(capture_mode);
    capture_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id) {
    return on_stream(handle, [&](const Stream& stream) {
        if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
        *status = stream.captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
        if (stream.captured) *id = stream.captured->id;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
    return on_stream(handle, [&](const Stream& stream) {
        *id = stream.id;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        if (stream.captured) return cudaErrorStreamCaptureUnsupported;
        run_until(stream, [] { return false; });
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    *event = new CUevent_st{{current_device()}};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const Lock lock(mutex);
    notice_on_device();
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) { return record(*event, stream); });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event) {
    return on_stream(handle, [&](Stream& stream) { return put_wait(stream, *event); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    if (spoils()) return cudaErrorStreamCaptureUnsupported;
    if (event->captured) return cudaErrorCapturedEvent;
    return !event->stream || *event->reached ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    if (spoils()) return cudaErrorStreamCaptureUnsupported;
    *memory = new char[bytes];
    pinned[static_cast<char*>(*memory)] = bytes;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        const auto after = pinned.upper_bound(static_cast<const char*>(from));
        const auto* start = static_cast<const char*>(from);
        if (after != pinned.begin() && start + bytes <= std::prev(after)->first + std::prev(after)->second) {
            put(stream, [=] { memcpy(to, from, bytes); });
            return cudaSuccess;
        }
        if (stream.captured) return cudaErrorStreamCaptureUnsupported;
        constexpr size_t kAtOnce = 64 << 10;
        if (bytes > kAtOnce) run_until(stream, [] { return false; });
        put(stream, [to, copy = std::string(start, bytes)] { memcpy(to, copy.data(), copy.size()); });
        return cudaSuccess;
    });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        put(stream, [=] { memset(to, value, bytes); });
        return cudaSuccess;
    });
}
