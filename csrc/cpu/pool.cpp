#include "pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(FUSED_PENALTIES_X86)
#include <xmmintrin.h>
#endif

namespace fused_penalties {
namespace {

// How long a waiting thread keeps looking before it sleeps: about as long as it takes to wake it. The next call, or the
// end of the work that others still do, often comes sooner.
constexpr std::chrono::microseconds kSpin{100};

template <class Done>
void spin_until(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (!done() && std::chrono::steady_clock::now() < end) {
#if defined(FUSED_PENALTIES_X86)
        _mm_pause();
#endif
    }
}

// Helpers are made while signals are blocked, and inherit that: a signal is for the program's own threads, one of which
// may be waiting for it. Faults stay with the thread that makes them.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t blocked;
        sigfillset(&blocked);
        for (int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP}) sigdelset(&blocked, fault);
        pthread_sigmask(SIG_SETMASK, &blocked, &usual_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &usual_, nullptr); }

private:
    sigset_t usual_;
};

class Pool {
public:
    void run_together(int threads, const std::function<void(bool)>& run) {
        Job job{run, threads - 1};
        post(job);
        try {
            run(true);
        } catch (...) {
            if (!left_behind()) finish(job);
            throw;
        }
        finish(job);
    }

private:
    // One call. Whoever has the lock may use everything but `run`.
    struct Job {
        const std::function<void(bool)>& run;
        int wanted;  // helpers that may still join
        std::atomic<int> running{0};
        std::condition_variable finished{};
        Job* next = nullptr;
    };

    void post(Job& job) {
        std::unique_lock<std::mutex> lock(mutex_);
        const int wanted = job.wanted;
        job.next = jobs_;
        jobs_ = &job;
        wanted_ += wanted;
        while (idle_ < wanted_ && make_helper()) {
        }
        lock.unlock();
        for (int k = 0; k < wanted; ++k) wake_.notify_one();  // not all: only so many are wanted
    }

    bool make_helper() {
        try {
            const SignalsBlocked blocked;
            std::thread([this] { help(); }).detach();
        } catch (const std::exception&) {
            return false;  // the limit on processes or on memory is reached: those that are there will do
        }
        ++idle_;
        return true;
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            for (;;) {  // a helper that wakes when its call is over already waits for the next one
                lock.unlock();
                spin_until([&] { return wanted_ > 0; });
                lock.lock();
                if (wanted_ > 0) break;
                wake_.wait(lock);
            }
            Job& job = *jobs_;
            --idle_;
            ++job.running;
            --wanted_;
            if (--job.wanted == 0) jobs_ = job.next;
            lock.unlock();
            job.run(false);
            lock.lock();
            ++idle_;
            if (--job.running == 0) job.finished.notify_one();
        }
    }

    // Waits for the helpers of the job, and lets no more join.
    void finish(Job& job) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (job.wanted > 0) {
            wanted_ -= job.wanted;
            Job** at = &jobs_;
            while (*at != &job) at = &(*at)->next;
            *at = job.next;
        }
        if (job.running == 0) return;
        lock.unlock();
        spin_until([&] { return job.running == 0; });
        lock.lock();  // even if it is 0: the helper that made it so may still be using the job, with the lock
        job.finished.wait(lock, [&] { return job.running == 0; });
    }

    // True in a child process that was forked in the middle of the call: it has no helpers that would ever finish.
    bool left_behind() const;

    std::mutex mutex_;
    std::condition_variable wake_;
    Job* jobs_ = nullptr;  // those that want helpers, the latest first
    std::atomic<int> wanted_{0};
    int idle_ = 0;  // helpers that have no job
};

// Never destroyed: helpers wait in it until the process ends. A child process, which has none of its parent's threads
// and may have any lock of theirs, gets another one.
Pool* pool = new Pool;
std::atomic<int> fork_count{0};

[[maybe_unused]] const bool watching_forks = [] {
    pthread_atfork(nullptr, nullptr, [] {
        pool = new Pool;
        ++fork_count;
    });
    return true;
}();

bool Pool::left_behind() const { return this != pool; }

// Read once: another thread may be changing the environment later. OMP_NUM_THREADS may be a list, one number for each
// level of nesting.
const int environment_threads = [] {
    const char* text = std::getenv("OMP_NUM_THREADS");
    const long number = text ? std::strtol(text, nullptr, 10) : 0;
    return int(std::min(std::max(number, 0L), 1024L));
}();

int processors() {
#if defined(__linux__)
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof usable, &usable) == 0) return CPU_COUNT(&usable);
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace

void run_together(int threads, const std::function<void(bool)>& run) { pool->run_together(threads, run); }

int forks() { return fork_count; }

int default_threads() {
    if (forks() > 0) return 1;
    return environment_threads > 0 ? environment_threads : processors();
}

}  // namespace fused_penalties
