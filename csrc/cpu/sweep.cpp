#include "sweep.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "float_environment.hpp"
#include "pool.hpp"
#include "walk.hpp"

namespace fused_penalties {
namespace {

// Below this many bytes a second thread costs more to wake than it saves.
constexpr uint64_t kBytesPerThread = 1 << 21;
// A buffer costs about as much as this many bytes of it, however small it is.
constexpr uint64_t kBytesPerBuffer = 1 << 10;
// A thread takes a chunk at a time: small enough that the last ones end together, large enough that taking
// one, and merging the buffers that its edges cut, is nothing.
constexpr uint64_t kChunks = 128, kFewestBlocksPerChunk = 32, kMostBlocksPerChunk = 512;

// How long a call works before it runs its `check`, and again between two checks. It looks at the clock once in so many
// blocks, a few milliseconds' work: to look at every block would cost time where blocks are tiny.
constexpr std::chrono::milliseconds kBetweenChecks{50};
constexpr uint64_t kBlocksBetweenLooks = 512;

// A part of one buffer: blocks [first, end) of it.
struct Piece {
    size_t buffer;
    uint64_t first, end;
    bool whole;
};

// Runs the `check` of one call whenever it is due.
class Checks {
public:
    explicit Checks(bool (*check)()) : check_(check) {}

    void before(uint64_t blocks) {
        blocks_ += blocks;
        if (!check_ || blocks_ < kBlocksBetweenLooks) return;
        blocks_ = 0;
        const bool first = next_ == Clock::time_point();
        if (!first && Clock::now() < next_) return;
        if (!first) ask();
        next_ = Clock::now() + kBetweenChecks;
    }

private:
    using Clock = std::chrono::steady_clock;

    void ask() {
        const int before = forks();
        if (!check_()) check_ = nullptr;
        if (forks() != before) throw std::runtime_error("this process was forked in the middle of a call");
    }

    bool (*check_)();
    uint64_t blocks_ = 0;
    Clock::time_point next_{};
};

// Gives every thread a copy of `worker`. Each piece of the line goes to the `take` of one of them; then their `finish`
// runs, one at a time. If `check` throws, the chunks that no thread has begun stay undone.
template <class Worker>
void run_workers(const Work& work, const Worker& worker) {
    const Line& line = work.line;
    std::atomic<uint64_t> next{0};
    // This call's alone: after a fork() in another thread, a lock of the whole process might stay locked.
    std::mutex finishing;
    const uint64_t step = line.blocks_per_chunk();
    const auto run = [&](bool calling) {
        const DefaultFloatEnvironment environment;
        Checks checks(calling ? work.check : nullptr);
        Worker mine = worker;
        for (;;) {
            uint64_t block = next.fetch_add(step, std::memory_order_relaxed);
            if (block >= line.blocks()) break;
            try {
                checks.before(step);
            } catch (...) {
                next = line.blocks();  // the other threads find nothing left
                throw;
            }
            const uint64_t end = std::min(block + step, line.blocks());
            for (size_t i = line.buffer(block); block < end; ++i) {
                const uint64_t begin = line.begin(i), stop = std::min(end, line.end(i));
                if (block == stop) continue;  // an empty buffer
                mine.take({i, block - begin, stop - begin, block == begin && stop == line.end(i)});
                block = stop;
            }
        }
        const std::lock_guard<std::mutex> lock(finishing);
        mine.finish();
    };
    const int threads = threads_for(line, work.threads);
    if (threads == 1) return run(true);
    run_together(threads, std::ref(run));
}

// The most bytes that a block's gradients take: they may be of the wider type that changes are computed in.
constexpr int kMostTargetBytes = [] {
    int most = 0;
    each_type([&](auto type) {
        using Type = decltype(type);
        const int bytes = canon::block_elements<Type> * int(sizeof(canon::Compute<Type>));
        most = bytes > most ? bytes : most;
    });
    return most;
}();

bool in_place(const Span& span) { return span.rank == 0 && !span.swapped; }

// One change of one buffer.
class Changer {
public:
    Changer(const Change& change, const Kernels& kernels, const Span& weights, size_t i)
        : change_(change),
          kernels_(kernels),
          weights_(weights),
          target_(change.targets[i]),
          factors_(change.factors[i]) {}

    // True if every element would stay as it is.
    bool idle() const { return canon::is_idle(change_.kind, weights_.dtype, factors_); }

    // True if every element becomes +0, whatever the weights are, which then need not be read.
    bool clears() const {
        return change_.kind == ChangeKind::stored_gradient && canon::is_flat(weights_.dtype, factors_);
    }

    void clear(uint64_t first, uint64_t end) const {
        const uint64_t each = uint64_t(block_elements(weights_.dtype)), size = uint64_t(itemsize(target_.dtype));
        const uint64_t stop = std::min(end * each, weights_.count);
        if (in_place(target_)) {
            memset(const_cast<unsigned char*>(target_.data) + first * each * size, 0, (stop - first * each) * size);
            return;
        }
        Walk to(target_, first * each);
        unsigned char zeros[kMostTargetBytes] = {};
        for (uint64_t at = first * each; at < stop; at += each) to.scatter(zeros, int(std::min(each, stop - at)));
    }

    // Adds the gradient of each block of [first, end) and calls visit(its sums), in one read. False, and nothing done,
    // if that cannot be: it is another change, or one of the two is not contiguous.
    template <class Visit>
    bool sum_and_add(uint64_t first, uint64_t end, const Visit& visit) const {
        if (change_.kind != ChangeKind::gradient || !in_place(weights_) || !in_place(target_)) return false;
        const uint64_t each = uint64_t(block_elements(weights_.dtype)), stop = std::min(end * each, weights_.count);
        const uint64_t size = uint64_t(itemsize(weights_.dtype)), target_size = uint64_t(itemsize(target_.dtype));
        for (uint64_t at = first * each; at < stop; at += each)
            visit(to_grads().sum_and_add(weights_.data + at * size,
                                         const_cast<unsigned char*>(target_.data) + at * target_size,
                                         int(std::min(each, stop - at)), factors_));
        return true;
    }

    // Calls look(data, n) for each block of [first, end) before it changes.
    template <class Look>
    void each_block(uint64_t first, uint64_t end, const Look& look) const {
        const uint64_t each = uint64_t(block_elements(weights_.dtype));
        const uint64_t stop = std::min(end * each, weights_.count);
        const uint64_t size = uint64_t(itemsize(weights_.dtype)), target_size = uint64_t(itemsize(target_.dtype));
        const bool own = !reads_weights(change_.kind);  // the weights themselves change
        if (in_place(weights_) && in_place(target_)) {
            for (uint64_t at = first * each; at < stop; at += each) {
                const int n = int(std::min(each, stop - at));
                look(weights_.data + at * size, n);
                apply(weights_.data + at * size, const_cast<unsigned char*>(target_.data) + at * target_size, n);
            }
            return;
        }
        Walk weights(weights_, first * each), from(target_, first * each), to(target_, first * each);
        unsigned char block[kBlockBytes], target[kMostTargetBytes];
        for (uint64_t at = first * each; at < stop; at += each) {
            const int n = int(std::min(each, stop - at));
            weights.gather(block, n);
            look(block, n);
            if (change_.kind == ChangeKind::gradient) from.gather(target, n);
            apply(block, own ? block : target, n);
            to.scatter(own ? block : target, n);
        }
    }

private:
    const Kernels::OfDType::ToGrads& to_grads() const {
        const Kernels::OfDType& kernels = kernels_[weights_.dtype];
        return target_.dtype == weights_.dtype ? kernels.own : kernels.to_float32;
    }

    void apply(const unsigned char* weights, unsigned char* target, int n) const {
        const Kernels::OfDType& kernels = kernels_[weights_.dtype];
        switch (change_.kind) {
            case ChangeKind::gradient: return to_grads().add(weights, target, uint64_t(n), factors_);
            case ChangeKind::stored_gradient: return to_grads().store(weights, target, uint64_t(n), factors_);
            case ChangeKind::proximal: return kernels.proximal(target, uint64_t(n), factors_);
            case ChangeKind::decay:
            case ChangeKind::clip: return kernels.scale(target, uint64_t(n), factors_);
        }
    }

    const Change& change_;
    const Kernels& kernels_;
    const Span& weights_;
    const Span& target_;
    Factors factors_;
};

// The sums of the buffers that are cut, to which several threads may add.
class CutSums {
public:
    CutSums(const Line& line, std::vector<ExactSums>& sums) : buffers_(line.cut()), sums_(sums) {
        sums_.assign(buffers_.size(), ExactSums());
    }

    void add(size_t buffer, const ExactSums& sums) {
        const auto found = std::lower_bound(buffers_.begin(), buffers_.end(), buffer);
        const std::lock_guard<std::mutex> lock(adding_);
        sums_[size_t(found - buffers_.begin())].add(sums);
    }

    template <class Write>
    void each(const Write& write) {
        for (size_t k = 0; k < buffers_.size(); ++k) write(buffers_[k], sums_[k]);
    }

private:
    const std::vector<size_t>& buffers_;
    std::vector<ExactSums>& sums_;
    std::mutex adding_;
};

void write_sums(const SumsOut& out, size_t i, ExactSums& sums) {
    if (out.abs) {
        out.abs[i] = sums.abs.value();
        out.square[i] = sums.square.value();
    }
    if (out.limbs) {
        int64_t* limbs = out.limbs + i * 2 * kLimbs;
        std::copy_n(sums.abs.canonical_limbs(), kLimbs, limbs);
        std::copy_n(sums.square.canonical_limbs(), kLimbs, limbs + kLimbs);
    }
    if (out.largest) out.largest[i] = limbs::double_of_bits(sums.largest);
}

// A NaN may have any sign and payload; results have only this one.
double canonical(double sum) { return std::isnan(sum) ? std::numeric_limits<double>::quiet_NaN() : sum; }

// What nobody asks for costs nothing: with the largest magnitudes it is another class.
template <bool kLargest>
class Summing {
public:
    Summing(const Work& work, const Change* change, const SumsOut& out, CutSums& cut)
        : work_(work), change_(change), out_(out), cut_(cut) {}

    void take(const Piece& piece) {
        if (piece.whole && piece.end == 1 && out_.abs) {
            // Most small buffers come here. The sums of a single block are doubles already: nothing is left to round.
            const uint64_t largest = each_block(piece, [&](const BlockSums& block) {
                if (out_.total) total_.add(block);
                out_.abs[piece.buffer] = canonical(block.abs);
                out_.square[piece.buffer] = canonical(block.square);
            });
            if constexpr (kLargest) {
                total_.add_largest(largest);
                out_.largest[piece.buffer] = limbs::double_of_bits(largest);
            }
            return;
        }
        ExactSums sums;
        sums.largest = each_block(piece, [&](const BlockSums& block) { sums.add(block); });
        if (out_.total) total_.add(sums);
        if (piece.whole) {
            write_sums(out_, piece.buffer, sums);
        } else {
            cut_.add(piece.buffer, sums);
        }
    }

    void finish() {
        if (out_.total) out_.total->add(total_);
    }

private:
    // Returns the largest magnitude as the bits of a float64, or 0 if it is not looked for.
    template <class Visit>
    uint64_t each_block(const Piece& piece, const Visit& visit) {
        const Span& span = work_.spans[piece.buffer];
        const Kernels::OfDType& kernels = work_.kernels[span.dtype];
        if constexpr (kLargest) {
            uint64_t largest = 0;
            each_block_with(piece, visit, [&](const unsigned char* data, int n) {
                BlockSums sums;
                largest = std::max(largest, kernels.sums_and_largest(data, n, &sums));
                visit(sums);
            });
            with_type(span.dtype, [&](auto type) { largest = canon::widened_magnitude<decltype(type)>(largest); });
            return largest;
        } else {
            const auto kernel = kernels.block_sums;
            each_block_with(piece, visit, [&](const unsigned char* data, int n) {
                BlockSums sums;
                kernel(data, uint64_t(n), &sums);
                visit(sums);
            });
            return 0;
        }
    }

    // Block by block: while the integers of one are added, the next one is read. What one_block(data, n) does ends in
    // visit(its sums), which alone will do in a read that does all else by itself.
    template <class Visit, class OneBlock>
    void each_block_with(const Piece& piece, const Visit& visit, const OneBlock& one_block) {
        const Span& span = work_.spans[piece.buffer];
        if (change_) {
            const Changer changer(*change_, work_.kernels, span, piece.buffer);
            if (!changer.idle()) {
                if (!kLargest && changer.sum_and_add(piece.first, piece.end, visit)) return;
                return changer.each_block(piece.first, piece.end, one_block);
            }
        }
        const uint64_t each = uint64_t(block_elements(span.dtype));
        const uint64_t stop = std::min(piece.end * each, span.count);
        if (in_place(span)) {
            for (uint64_t at = piece.first * each; at < stop; at += each)
                one_block(span.data + at * uint64_t(itemsize(span.dtype)), int(std::min(each, stop - at)));
        } else {
            Walk walk(span, piece.first * each);
            unsigned char block[kBlockBytes];
            for (uint64_t at = piece.first * each; at < stop; at += each) {
                const int n = int(std::min(each, stop - at));
                walk.gather(block, n);
                one_block(block, n);
            }
        }
    }

    const Work& work_;
    const Change* change_;
    const SumsOut& out_;
    CutSums& cut_;
    ExactSums total_;
};

struct Changing {
    const Work& work;
    const Change& change;

    void take(const Piece& piece) {
        const Changer changer(change, work.kernels, work.spans[piece.buffer], piece.buffer);
        if (changer.clears()) return changer.clear(piece.first, piece.end);
        if (!changer.idle()) changer.each_block(piece.first, piece.end, [](const unsigned char*, int) {});
    }
    void finish() {}
};

}  // namespace

Line::Line(const Span* spans, size_t n) : ends_(n) {
    uint64_t blocks = 0;
    for (size_t i = 0; i < n; ++i) {
        blocks += blocks_of(spans[i].dtype, spans[i].count);
        ends_[i] = blocks;
        bytes_ += spans[i].count * uint64_t(itemsize(spans[i].dtype));
    }
    blocks_per_chunk_ = std::min(std::max(blocks / kChunks, kFewestBlocksPerChunk), kMostBlocksPerChunk);
    for (uint64_t edge = blocks_per_chunk_; edge < blocks; edge += blocks_per_chunk_) {
        const size_t i = buffer(edge);
        if (begin(i) < edge && (cut_.empty() || cut_.back() != i)) cut_.push_back(i);
    }
}

size_t Line::buffer(uint64_t block) const {
    return size_t(std::upper_bound(ends_.begin(), ends_.end(), block) - ends_.begin());
}

int threads_for(const Line& line, int threads) {
    const uint64_t cost = line.bytes() + line.buffers() * kBytesPerBuffer;
    if (cost < kBytesPerThread) return 1;
    if (threads <= 0) threads = default_threads();
    return int(std::min<uint64_t>(uint64_t(threads), 1 + cost / kBytesPerThread));
}

void sum(const Work& work, std::vector<ExactSums>& cut, const SumsOut& out, const Change* change) {
    const size_t n = work.line.buffers();
    if (out.abs) {
        std::fill_n(out.abs, n, 0.0);
        std::fill_n(out.square, n, 0.0);
    }
    if (out.limbs) std::fill_n(out.limbs, n * 2 * kLimbs, int64_t(0));
    if (out.largest) std::fill_n(out.largest, n, 0.0);
    CutSums cut_sums(work.line, cut);
    if (out.largest) {
        run_workers(work, Summing<true>(work, change, out, cut_sums));
    } else {
        run_workers(work, Summing<false>(work, change, out, cut_sums));
    }
    cut_sums.each([&](size_t i, ExactSums& sums) { write_sums(out, i, sums); });
}

void change(const Work& work, const Change& change) { run_workers(work, Changing{work, change}); }

}  // namespace fused_penalties
