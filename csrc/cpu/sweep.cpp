#include "sweep.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "float_environment.hpp"
#include "gather.hpp"

namespace fused_penalties {
namespace {

// Below this many bytes a second thread costs more to wake than it saves.
constexpr uint64_t kBytesPerThread = 1 << 21;
// A buffer costs about as much as this many bytes of it, however small it is.
constexpr uint64_t kBytesPerBuffer = 1 << 10;
// A thread takes a chunk at a time: small enough that the last ones end together, large enough that taking
// one, and merging its two cut buffers, is nothing.
constexpr uint64_t kMostBlocksPerChunk = 512;
constexpr uint64_t kChunksPerThread = 8;
constexpr uint64_t kBlocksPerCall = 64;

std::atomic<bool> forked{false};

// OpenMP's threads do not come along into a child process, and the runtime waits for them forever.
[[maybe_unused]] const bool watching_forks = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif
    return true;
}();

int threads_for(uint64_t bytes, size_t n, int threads) {
    if (threads <= 0) threads = default_threads();
    if (forked.load(std::memory_order_relaxed)) return 1;
    const uint64_t useful = 1 + (bytes + n * kBytesPerBuffer) / kBytesPerThread;
    return int(std::min<uint64_t>(uint64_t(threads), useful));
}

// All blocks of all buffers in one line, cut into chunks.
class Line {
public:
    Line(const Span* spans, size_t n) : ends_(n) {
        uint64_t blocks = 0;
        for (size_t i = 0; i < n; ++i) {
            const uint64_t each = uint64_t(block_elements(spans[i].dtype));
            blocks += spans[i].count / each + (spans[i].count % each != 0);
            ends_[i] = blocks;
            bytes_ += spans[i].count * uint64_t(itemsize(spans[i].dtype));
        }
    }

    uint64_t blocks() const { return ends_.empty() ? 0 : ends_.back(); }
    uint64_t bytes() const { return bytes_; }
    uint64_t begin(size_t i) const { return i ? ends_[i - 1] : 0; }
    uint64_t end(size_t i) const { return ends_[i]; }
    // The buffer that the block belongs to.
    size_t buffer(uint64_t block) const {
        return size_t(std::upper_bound(ends_.begin(), ends_.end(), block) - ends_.begin());
    }

private:
    std::vector<uint64_t> ends_;
    uint64_t bytes_ = 0;
};

// A part of one buffer: blocks [first, end) of it.
struct Piece {
    size_t buffer;
    uint64_t first, end;
    bool whole;
};

// Runs `threads` workers, each with a copy of `worker` of its own, until every piece of the line went to one of
// them; then each worker's `finish` runs, one at a time.
template <class Worker>
void share(const Line& line, uint64_t blocks_per_chunk, int threads, const Worker& worker) {
    std::atomic<uint64_t> next{0};
    std::mutex finishing;  // a lock of this call's own: one of the process might be held forever after fork()
    const auto run = [&] {
        const DefaultFloatEnvironment environment;
        Worker mine = worker;
        for (;;) {
            uint64_t block = next.fetch_add(blocks_per_chunk, std::memory_order_relaxed);
            if (block >= line.blocks()) break;
            const uint64_t end = std::min(block + blocks_per_chunk, line.blocks());
            for (size_t i = line.buffer(block); block < end; ++i) {
                const uint64_t begin = line.begin(i), stop = std::min(end, line.end(i));
                if (block == stop) continue;  // an empty buffer
                mine.piece({i, block - begin, stop - begin, block == begin && stop == line.end(i)});
                block = stop;
            }
        }
        const std::lock_guard<std::mutex> lock(finishing);
        mine.finish();
    };
    if (threads == 1) return run();
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#endif
    run();
}

// The sums of buffers that a chunk's edge cuts, to which several threads may add.
class CutBuffers {
public:
    CutBuffers(const Line& line, uint64_t blocks_per_chunk) {
        for (uint64_t edge = blocks_per_chunk; edge < line.blocks(); edge += blocks_per_chunk) {
            const size_t i = line.buffer(edge);
            if (line.begin(i) < edge && (buffers_.empty() || buffers_.back() != i)) buffers_.push_back(i);
        }
        sums_.resize(buffers_.size());
    }

    void add(size_t buffer, const ExactSums& sums) {
        const auto found = std::lower_bound(buffers_.begin(), buffers_.end(), buffer);
        ExactSums& mine = sums_[size_t(found - buffers_.begin())];
        const std::lock_guard<std::mutex> lock(adding_);
        mine.add(sums);
    }

    template <class Write>
    void each(const Write& write) {
        for (size_t k = 0; k < buffers_.size(); ++k) write(buffers_[k], sums_[k]);
    }

private:
    std::vector<size_t> buffers_;
    std::vector<ExactSums> sums_;
    std::mutex adding_;
};

void write_sums(const SweepResult& result, size_t i, ExactSums& sums) {
    if (result.abs) {
        result.abs[i] = sums.abs.value();
        result.square[i] = sums.square.value();
    }
    if (result.limbs) {
        int64_t* limbs = result.limbs + i * 2 * kLimbs;
        std::copy_n(sums.abs.canonical_limbs(), kLimbs, limbs);
        std::copy_n(sums.square.canonical_limbs(), kLimbs, limbs + kLimbs);
    }
}

// Every NaN is the same NaN.
double canonical(double sum) { return std::isnan(sum) ? std::numeric_limits<double>::quiet_NaN() : sum; }

class Summing {
public:
    Summing(const Span* spans, const Kernels& kernels, const SweepResult& result, CutBuffers& cut)
        : spans_(spans), kernels_(kernels), result_(result), cut_(cut) {}

    void piece(const Piece& piece) {
        const Span& span = spans_[piece.buffer];
        if (piece.whole && piece.end == 1 && result_.abs) {
            // As most small buffers are. A single block's sums are rounded already.
            each_block(span, 0, 1, [&](const BlockSums& block) {
                total_.add(block);
                result_.abs[piece.buffer] = canonical(block.abs);
                result_.square[piece.buffer] = canonical(block.square);
            });
            return;
        }
        ExactSums sums;
        each_block(span, piece.first, piece.end, [&](const BlockSums& block) { sums.add(block); });
        total_.add(sums);
        if (piece.whole) {
            write_sums(result_, piece.buffer, sums);
        } else {
            cut_.add(piece.buffer, sums);
        }
    }

    void finish() { result_.total->add(total_); }

private:
    template <class Visit>
    void each_block(const Span& span, uint64_t first, uint64_t end, const Visit& visit) {
        const auto kernel = kernels_.block_sums[int(span.dtype)];
        const uint64_t each = uint64_t(block_elements(span.dtype));
        const uint64_t stop = std::min(end * each, span.count);
        BlockSums out[kBlocksPerCall];
        if (span.rank == 0 && !span.swapped) {
            for (uint64_t at = first * each; at < stop; at += kBlocksPerCall * each) {
                const uint64_t count = std::min(kBlocksPerCall * each, stop - at);
                kernel(span.data + at * uint64_t(itemsize(span.dtype)), count, out);
                for (uint64_t b = 0; b * each < count; ++b) visit(out[b]);
            }
        } else {
            Gather gather(span, first * each);
            unsigned char block[kBlockBytes];
            for (uint64_t at = first * each; at < stop; at += each) {
                const int count = int(std::min(each, stop - at));
                gather.copy(block, count);
                kernel(block, uint64_t(count), out);
                visit(out[0]);
            }
        }
    }

    const Span* spans_;
    const Kernels& kernels_;
    const SweepResult& result_;
    CutBuffers& cut_;
    ExactSums total_;
};

class Reading {
public:
    Reading(const Span* spans, const Kernels& kernels, uint64_t& sum) : spans_(spans), kernels_(kernels), sum_(sum) {}

    void piece(const Piece& piece) {
        const Span& span = spans_[piece.buffer];
        const uint64_t bytes = span.count * uint64_t(itemsize(span.dtype));
        const uint64_t first = piece.first * kBlockBytes;
        mine_ += kernels_.read(span.data + first, std::min(piece.end * kBlockBytes, bytes) - first);
    }

    void finish() { sum_ += mine_; }

private:
    const Span* spans_;
    const Kernels& kernels_;
    uint64_t& sum_;
    uint64_t mine_ = 0;
};

uint64_t chunk_of(const Line& line, int threads) {
    if (threads == 1) return std::max<uint64_t>(line.blocks(), 1);
    const uint64_t even = line.blocks() / (uint64_t(threads) * kChunksPerThread);
    return std::min(std::max<uint64_t>(even, 1), kMostBlocksPerChunk);
}

}  // namespace

void sweep(const Span* spans, size_t n, int threads, const Kernels& kernels, const SweepResult& result) {
    const Line line(spans, n);
    threads = threads_for(line.bytes(), n, threads);
    const uint64_t chunk = chunk_of(line, threads);
    CutBuffers cut(line, chunk);
    if (result.abs) {
        std::fill_n(result.abs, n, 0.0);
        std::fill_n(result.square, n, 0.0);
    }
    if (result.limbs) std::fill_n(result.limbs, n * 2 * kLimbs, int64_t(0));
    share(line, chunk, threads, Summing(spans, kernels, result, cut));
    cut.each([&](size_t i, ExactSums& sums) { write_sums(result, i, sums); });
}

uint64_t read(const Span* spans, size_t n, int threads, const Kernels& kernels) {
    const Line line(spans, n);
    threads = threads_for(line.bytes(), n, threads);
    uint64_t sum = 0;
    share(line, chunk_of(line, threads), threads, Reading(spans, kernels, sum));
    return sum;
}

int default_threads() {
#if defined(_OPENMP)
    if (!forked.load(std::memory_order_relaxed)) return omp_get_max_threads();
#endif
    return 1;
}

}  // namespace fused_penalties
