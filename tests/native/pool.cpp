// The threads that help with calls, without Python: many calls at once, calls within calls, calls that throw, and
// forks.
//
// pool TURNS FORKS    prints nothing, and exits with 0, if every call was right.

#include "cpu/pool.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

using fused_penalties::run_together;

namespace {

void require(bool right, const char* what) {
    if (right) return;
    fprintf(stderr, "%s\n", what);
    _exit(1);
}

// Each of n is taken by one thread, and what they wrote is seen afterwards.
void count(int threads, int n, bool within) {
    std::vector<int> taken(static_cast<size_t>(n));
    std::atomic<int> next{0}, callers{0};
    const auto caller = std::this_thread::get_id();
    run_together(threads, [&](bool calling) {
        if (calling != (caller == std::this_thread::get_id())) abort();
        callers += calling;
        for (int i; (i = next++) < n;) {
            ++taken[static_cast<size_t>(i)];
            if (within && i % 16 == 0) count(2, 4, false);
        }
    });
    require(callers == 1, "not called once on the calling thread");
    for (int times : taken) require(times == 1, "not each taken once");
}

// What is thrown comes out when no other thread is inside any more.
void fail(int threads) {
    std::atomic<int> inside{0};
    std::atomic<bool> over{false};
    bool caught = false;
    try {
        run_together(threads, [&](bool calling) {
            ++inside;
            if (calling) {
                over = true;
                --inside;
                throw std::runtime_error("thrown");
            }
            while (!over) std::this_thread::yield();
            --inside;
        });
    } catch (const std::runtime_error&) {
        caught = true;
    }
    require(caught && inside == 0, "an exception that came out too early, or never");
}

void turns(int number, int n) {
    for (int turn = 0; turn < n; ++turn) {
        count(2 + (turn + number) % 4, 1 + turn % 100, turn % 3 == 0);
        if (turn % 5 == 0) fail(2 + turn % 3);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const int n = atoi(argv[1]), forks = atoi(argv[2]);
    std::vector<std::thread> callers;
    for (int k = 0; k < 4; ++k) callers.emplace_back(turns, k, n);
    for (std::thread& caller : callers) caller.join();
    for (int k = 0; k < forks; ++k) {
        const pid_t child = fork();
        if (child == 0) {
            turns(k, n / 10);
            _exit(0);
        }
        int status = -1;
        require(waitpid(child, &status, 0) == child && status == 0, "a child failed");
        turns(k, n / 10);
    }
    return 0;
}
