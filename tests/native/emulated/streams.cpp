// What is put on a stream, and when it runs.
#include "streams.hpp"

#include <utility>

#include "cuda/runtime.hpp"

extern "C" int PyGILState_Check(void);

namespace fused_penalties {
namespace emulation {
namespace {

using namespace cuda;  // for its CHECK and its number of the relaxed mode

constexpr const char* kFile = "tests/native/emulated/streams.cpp";

// The default streams, as CUDA names them.
constexpr uintptr_t kNull = 0, kLegacy = 1, kPerThread = 2;

}  // namespace

int current_device() { return pushed.empty() ? device_set : pushed.back(); }

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

bool spoils() {
    bool strict = false;
    each_stream([&](const Stream& other) { strict = strict || (other.graph && other.graph->mode < kRelaxedCapture); });
    return strict && capture_mode < kRelaxedCapture;
}

bool joins_capture(const Stream& stream) {
    bool joins = false;
    if (stream.handle <= kLegacy)
        each_stream([&](const Stream& other) {
            joins = joins || (other.graph && other.blocking && other.device == stream.device);
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

void run_all(Stream& stream) {
    run_until(stream, [] { return false; });
}

void put(Stream& stream, Action action) {
    if (stream.graph) {
        stream.graph->branches[stream.branch].push_back({std::move(action), 0, 0});
    } else {
        stream.waiting.push_back(std::move(action));
    }
}

cudaError_t record(Event& event, Stream& stream) {
    if (event.device != stream.device) return cudaErrorInvalidResourceHandle;
    if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
    event.stream = &stream;
    event.graph = stream.graph;
    event.branch = stream.branch;
    event.nodes = stream.graph ? stream.graph->branches[stream.branch].size() : 0;
    const auto reached = event.reached = std::make_shared<bool>(false);
    if (!stream.graph) put(stream, [reached] { *reached = true; });
    return cudaSuccess;
}

cudaError_t put_wait(Stream& stream, const Event& event) {
    if (!event.stream) return cudaSuccess;  // it was never recorded
    if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
    if (!event.graph && stream.graph) return cudaErrorStreamCaptureIsolation;
    if (!event.graph) {
        put(stream, [other = event.stream, reached = event.reached] { run_until(*other, [&] { return *reached; }); });
        return cudaSuccess;
    }
    if (!stream.graph) {  // it takes part from now on
        if (event.stream->graph != event.graph) return cudaErrorCapturedEvent;
        stream.graph = event.graph;
        stream.branch = event.graph->branches.size();
        event.graph->branches.emplace_back();
    }
    if (stream.graph != event.graph) return cudaErrorStreamCaptureMerge;
    stream.graph->branches[stream.branch].push_back({nullptr, event.branch, event.nodes});
    return cudaSuccess;
}

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

}  // namespace emulation
}  // namespace fused_penalties
