// The threads that help with a call: made when a call wants them, and kept for the next one. OpenMP's will not do:
// where no more threads can be made, GCC's runtime ends the process.
#pragma once

#include <functional>

namespace fused_penalties {

// Calls run(true) on this thread and, meanwhile, run(false) on up to `threads` - 1 others, and waits for all of them.
// It may be fewer: where no more can be made, or if the others are still waking when this thread is done already. So
// each run takes what work is left. run(false) must not throw; what run(true) throws comes out of here. If it forks, it
// must throw in the child, where the others are not.
void run_together(int threads, const std::function<void(bool calling)>& run);

// How many calls of fork() lie between this process and the one that loaded this.
int forks();

// The number of threads that a call takes unless it says otherwise: OMP_NUM_THREADS as it was when this was loaded,
// else as many as there are processors that this thread may run on; 1 in a child process after fork(), which is likely
// to be one of many.
int default_threads();

}  // namespace fused_penalties
