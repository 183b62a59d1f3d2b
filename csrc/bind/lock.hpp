// Python's lock: given up for the time of long work, and taken back.
//
// Once the interpreter is on its way out, Python ends every other thread that asks for the lock: before 3.14 by
// pthread_exit(), whose way up through C++ ends the whole process. Here such a thread waits for the end instead.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace fused_penalties {

template <class Take>
void take_lock(const Take& take) {
    try {
        take();
    } catch (...) {  // what pthread_exit() throws; Python throws nothing
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

// Other Python threads run for as long as one of these lives.
class Unlocked {
public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() {
        take_lock([this] { PyEval_RestoreThread(state_); });
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

private:
    PyThreadState* state_;
};

// Within an Unlocked: this thread may use Python for as long as one of these lives.
class Locked {
public:
    Locked() {
        take_lock([this] { state_ = PyGILState_Ensure(); });
    }
    ~Locked() { PyGILState_Release(state_); }
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;

private:
    PyGILState_STATE state_;
};

}  // namespace fused_penalties
