// The GPU as the binding sees it: raw pointers and a stream, no Python and no allocation. Everything is put on the
// stream and nothing is waited for. Errors are std::runtime_error with CUDA's name for them, the file and the line.
#pragma once

#include <cstddef>
#include <string>

#include "arguments.hpp"

namespace fused_penalties {
namespace cuda {

// The toolkit that this was compiled with, "13.0".
std::string toolkit();

// Why nothing can run here; empty if something can.
std::string unavailable();

struct Queue {
    int device;
    void* stream;  // a cudaStream_t
};

// Loads what will be launched on the device, since that may not be done while a graph is captured.
void prepare(int device);

// Lets this thread allocate while it captures a graph, or not, and returns what was the case before.
int exchange_capture_mode(int mode);
constexpr int kRelaxedCapture = 2;

// Lets what is put on a queue from now on wait for what is on another stream now.
void wait(const Queue& queue, void* stream);

// True while calls on the stream are recorded for a graph instead of run.
bool capturing(const Queue& queue);

// `from` may change when this returns. Not while capturing: the graph would read it again.
void upload(const Queue& queue, void* to, const void* from, size_t bytes);

void clear(const Queue& queue, void* to, size_t bytes);

// The blocks of a table, with the ranges of the arguments set here.
void launch(const Queue& queue, const HostTable& table, SumArguments arguments);
void launch(const Queue& queue, const HostTable& table, GradientArguments arguments);
void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments);
void launch(const Queue& queue, const FinishArguments& arguments);

// Lets work that shares memory come one after the other, whatever streams it is on.
class Turns {
public:
    Turns() = default;
    ~Turns();
    Turns(const Turns&) = delete;
    Turns& operator=(const Turns&) = delete;

    void wait(const Queue& queue);  // for the work before the last `done`
    void done(const Queue& queue);

private:
    void* event_ = nullptr;
    unsigned long long last_ = 0;  // the stream's id: its handle may be another stream's by now
};

}  // namespace cuda
}  // namespace fused_penalties
