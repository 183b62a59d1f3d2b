// Copies elements out of and into a span that is not contiguous, or not in this machine's byte order, block by
// block, so that no buffer is ever copied whole.
#pragma once

#include <cstring>

#include "../span.hpp"

namespace fused_penalties {

class Walk {
public:
    // Starts at element `first` of the span.
    Walk(const Span& span, uint64_t first) : span_(span), p_(const_cast<unsigned char*>(span.data)) {
        if (span.rank == 0) p_ += first * uint64_t(itemsize(span.dtype));
        for (int k = span.rank; k-- > 0;) {
            index_[k] = int64_t(first % uint64_t(span.axes[k].extent));
            first /= uint64_t(span.axes[k].extent);
            p_ += index_[k] * span.axes[k].stride;
        }
    }

    // Copies the next n elements, n <= what is left, from the span to `block`, or back.
    void gather(unsigned char* block, int n) { walk<true>(block, n); }
    void scatter(unsigned char* block, int n) { walk<false>(block, n); }

private:
    template <bool kGather>
    void walk(unsigned char* block, int n) {
        with_type(span_.dtype,
                  [&](auto type) { walk_elements<kGather, int(sizeof(typename decltype(type)::Element))>(block, n); });
    }

    template <bool kGather, int kSize>
    void walk_elements(unsigned char* block, int n) {
        while (n > 0) {
            // A run along the innermost axis.
            int64_t run = n, stride = kSize;
            if (span_.rank > 0) {
                const Axis& inner = span_.axes[span_.rank - 1];
                const int64_t left = inner.extent - index_[span_.rank - 1];
                run = left < n ? left : n;
                stride = inner.stride;
            }
            if (!kGather && span_.swapped) swap<kSize>(block, run);
            if (stride == kSize) {
                copy<kGather>(block, p_, size_t(run) * kSize);
            } else {
                for (int64_t i = 0; i < run; ++i) copy<kGather>(block + i * kSize, p_ + i * stride, kSize);
            }
            if (kGather && span_.swapped) swap<kSize>(block, run);
            block += run * kSize;
            n -= int(run);
            advance(run, stride);
        }
    }

    template <bool kGather>
    static void copy(unsigned char* block, unsigned char* memory, size_t bytes) {
        if (kGather) {
            memcpy(block, memory, bytes);
        } else {
            memcpy(memory, block, bytes);
        }
    }

    void advance(int64_t run, int64_t stride) {
        p_ += run * stride;
        if (span_.rank == 0) return;
        int k = span_.rank - 1;
        index_[k] += run;
        while (index_[k] == span_.axes[k].extent && k > 0) {
            p_ += span_.axes[k - 1].stride - index_[k] * span_.axes[k].stride;
            index_[k] = 0;
            ++index_[--k];
        }
    }

    template <int kSize>
    static void swap(unsigned char* elements, int64_t n) {
        for (int64_t i = 0; i < n; ++i, elements += kSize) {
            for (int low = 0, high = kSize - 1; low < high; ++low, --high) {
                const unsigned char byte = elements[low];
                elements[low] = elements[high];
                elements[high] = byte;
            }
        }
    }

    const Span& span_;
    unsigned char* p_;
    int64_t index_[kMaxRank];
};

}  // namespace fused_penalties
