// Streams as the binding sees them: raw pointers, no Python. Whatever is put on one, nothing is waited for, except
// where memory has to be pinned for an upload first. Errors are std::runtime_error with CUDA's name for them, the file
// and the line.
//
// Whoever calls this holds no lock that what runs on a stream may want, such as Python's: any call may have to wait
// for room on a stream, or for another thread that does.
#pragma once

#include <cstddef>
#include <string>

namespace fused_penalties {
namespace cuda {

struct Queue {
    int device;
    void* stream;  // a cudaStream_t
};

// Why nothing can run here, as a sentence; empty if something can.
std::string unavailable();

// Makes a device the current one for as long as this lives; then the one before is current again. No context is made on
// that one if it has none.
class OnDevice {
public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int switched_to_ = -1;  // -1: it was the current one
};

// Sets whether CUDA lets this thread allocate memory while a graph is captured, by the number of CUDA's mode. Returns
// the mode before.
int exchange_capture_mode(int mode);
constexpr int kRelaxedCapture = 2;

// True while calls on the stream are recorded for a graph instead of run.
bool capturing(const Queue& queue);

// Lets what is put on a queue from now on wait for what is on another stream of its device now. A graph waits for
// nothing outside of it: if only the queue is captured, this does nothing, and returns false. Throws if only the other
// one is, or if both are for different graphs: CUDA would make the queue's work part of the other's graph, or fail.
bool wait(const Queue& queue, void* stream);

// `from` may change when this returns. Not while capturing: the graph would copy it again.
void upload(const Queue& queue, void* to, const void* from, size_t bytes);

void clear(const Queue& queue, void* to, size_t bytes);

// Lets work on the same memory come one after the other, whatever streams it is on. No stream is used again after the
// call that it was given to: it may be gone by then.
class Turns {
public:
    Turns() = default;
    ~Turns();
    Turns(const Turns&) = delete;
    Turns& operator=(const Turns&) = delete;

    void wait(const Queue& queue);  // for the work before the last `done`
    void done(const Queue& queue);
    void failed(const Queue& queue) noexcept;  // `done` after an error: some work may be under way

    bool passed() const;  // is all of the work done?

private:
    void* event_ = nullptr;
    int device_ = 0;
    unsigned long long last_ = 0;  // the stream's id: its handle may be another stream's by now
};

}  // namespace cuda
}  // namespace fused_penalties
