// One read of many buffers: the work is cut by blocks, not by buffers, and shared between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../exact.hpp"
#include "../span.hpp"

namespace fused_penalties {

// All blocks of many buffers in one line, cut into the chunks that threads take. Made once for buffers that
// stay where they are.
class Line {
public:
    Line() = default;
    Line(const Span* spans, size_t n);

    size_t buffers() const { return ends_.size(); }
    uint64_t blocks() const { return ends_.empty() ? 0 : ends_.back(); }
    uint64_t bytes() const { return bytes_; }
    uint64_t blocks_per_chunk() const { return blocks_per_chunk_; }
    uint64_t begin(size_t i) const { return i ? ends_[i - 1] : 0; }
    uint64_t end(size_t i) const { return ends_[i]; }
    // The buffer that the block belongs to.
    size_t buffer(uint64_t block) const;
    // The buffers that the edge of a chunk cuts, to whose sums several threads may add.
    const std::vector<size_t>& cut() const { return cut_; }

private:
    std::vector<uint64_t> ends_;
    std::vector<size_t> cut_;
    uint64_t bytes_ = 0;
    uint64_t blocks_per_chunk_ = 1;
};

// How many threads save more time than they cost: at most `threads`, or default_threads() for 0.
int threads_for(const Line& line, int threads);

// What a call works on, with at most `threads` threads, or 0.
struct Work {
    const Span* spans;
    const Line& line;
    int threads;
    const Kernels& kernels;
    // Called by the thread of the call, every so often if it takes long, until it returns false. If it throws, the call
    // ends: every thread finishes the chunk that it is at, what is left stays as it is, and the exception goes on.
    bool (*check)() = nullptr;
};

// A change of changes.hpp, made of every buffer with its own factors. The targets are gradients with the
// layout of the weights, or the weights themselves. Targets must not overlap unless `threads` is 1.
struct Change {
    ChangeKind kind;
    const Span* targets;
    const Factors* factors;
};

// Where the results of n buffers go. `total`, if it is not null, gets the exact sums over all of them added.
struct SumsOut {
    double* abs;     // n, or null
    double* square;  // n, or null
    int64_t* limbs;  // n x 2 x kLimbs, canonical, or null
    ExactSums* total;
    double* largest = nullptr;  // n, or null: then the largest magnitudes are not looked for, in the total either
};

// Reads every weight once: sums, and in the same read the change, if there is one. `cut` is room for the
// sums of the buffers that are cut; it keeps its memory between calls.
void sum(const Work& work, std::vector<ExactSums>& cut, const SumsOut& out, const Change* change = nullptr);
void change(const Work& work, const Change& change);

}  // namespace fused_penalties
