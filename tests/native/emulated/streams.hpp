// The state of the emulated GPU: its streams and events, the graphs that are captured, and what calls of CUDA leave
// behind.
//
// Streams behave as a GPU's do where that can go wrong. What is put on one runs when somebody waits for it and not
// before, and not with what is on another stream unless an event says so; the same goes for the branches of a graph.
// The handle of a stream that was destroyed is given to the next one that is made.
//
// One thread at a time is in here, whoever holds Python's lock: what runs on a stream may call Python.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

#include "cuda_runtime.h"

namespace fused_penalties {
namespace emulation {

using Action = std::function<void()>;

// An action; or, without one, a wait until another branch has run so many nodes.
struct Node {
    Action action;
    size_t branch, nodes;
};

// What is captured. Each stream that takes part has a branch, whose nodes run one after the other.
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
    std::shared_ptr<Graph> graph = nullptr;  // that it is captured into
    size_t branch = 0;                       // of the graph
};

// What had been put on a stream when the event was recorded. It is over when `reached` is true or, where it was
// captured, when the branch of the graph has run so many nodes.
struct Event {
    int device;
    Stream* stream = nullptr;
    std::shared_ptr<bool> reached = nullptr;
    std::shared_ptr<Graph> graph = nullptr;
    size_t branch = 0, nodes = 0;
};

constexpr int kDevices = 2;

inline std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

inline std::map<std::tuple<int, uintptr_t, std::thread::id>, Stream> default_streams;
inline std::deque<Stream> made;                 // with those that were destroyed, whose work still runs
inline std::map<uintptr_t, Stream*> by_handle;  // those that were not destroyed
inline unsigned long long ids = 100;            // of streams and captures
inline std::map<const char*, size_t> pinned;    // memory, and its size
inline std::set<int> contexts;                  // the devices that have one
inline cudaError_t failure = cudaSuccess;       // that a call of CUDA will give
inline int until_failure = 0;                   // how many calls before it succeed
inline int launches = 0;
inline int driver_version = CUDART_VERSION / 1000 * 1000;  // the oldest that is enough
inline std::atomic<int> under_lock{0};                     // calls of CUDA by a thread that had Python's lock
inline thread_local int capture_mode = 0, device_set = 0;
inline thread_local std::vector<int> pushed;  // the driver's contexts, by their devices

int current_device();

// One of these is called by whatever asks CUDA for something: the first by what does nothing on a device, the second
// where an error would go unnoticed, the third elsewhere.
void notice();
void notice_on_device();
cudaError_t attempt();

// Every device has a default stream, and every thread one more on each. Null if there is no such stream.
Stream* find_stream(int device, void* stream);
// The same, but throws.
Stream& stream_at(int device, void* handle);

template <class Visit>
void each_stream(const Visit& visit) {
    for (auto& stream : default_streams) visit(stream.second);
    for (Stream& stream : made) visit(stream);
}

// Whether a call that may not be made while somebody captures spoils what is captured.
bool spoils();
// Whether the default stream would have to wait for one that is captured.
bool joins_capture(const Stream& stream);

void run_until(Stream& stream, const std::function<bool()>& done);
void run_all(Stream& stream);
void put(Stream& stream, Action action);
cudaError_t record(Event& event, Stream& stream);
cudaError_t put_wait(Stream& stream, const Event& event);

// Runs the first branch and what it waits for, or only finds out what that is. Returns whether that is everything.
bool run_graph(const Graph& graph, bool with_actions);

}  // namespace emulation
}  // namespace fused_penalties
