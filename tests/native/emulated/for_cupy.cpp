// What tests/emulated/cupy.py plays CuPy's part with, and what tests ask or set beside it. A stream is named by its
// device and its handle.
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "streams.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace fused_penalties {
namespace emulation {
namespace {

constexpr uintptr_t kFirstMade = 1000;

std::vector<std::shared_ptr<Graph>> graphs;
std::deque<Event> events;

}  // namespace

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
    if (stream.graph) return false;
    run_all(stream);
    return true;
}

EXPORTED void emulated_synchronize_device(int device) {
    const Lock lock(mutex);
    each_stream([&](Stream& stream) {
        if (stream.device == device) run_all(stream);
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
    each_stream([&](const Stream& stream) { idle = idle && stream.waiting.empty() && !stream.graph; });
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
    stream.graph = std::make_shared<Graph>(Graph{ids++, mode, {{}}});
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
    const std::shared_ptr<Graph> graph = stream_at(device, handle).graph;
    each_stream([&](Stream& stream) {
        if (stream.graph == graph) stream.graph = nullptr;
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
    for (const auto& [memory, size] : pinned) bytes += size;
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

}  // namespace emulation
}  // namespace fused_penalties
