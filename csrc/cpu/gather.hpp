// Copies elements of a span that is not contiguous, or not in this machine's byte order, block by block, so
// that no buffer is ever copied whole.
#pragma once

#include <cstring>

#include "../span.hpp"

namespace fused_penalties {

class Gather {
public:
    // Starts at element `first` of the span.
    Gather(const Span& span, uint64_t first) : span_(span), p_(span.data) {
        if (span.rank == 0) p_ += first * uint64_t(itemsize(span.dtype));
        for (int k = span.rank; k-- > 0;) {
            index_[k] = int64_t(first % uint64_t(span.axes[k].extent));
            first /= uint64_t(span.axes[k].extent);
            p_ += index_[k] * span.axes[k].stride;
        }
    }

    // The next n elements, n <= what is left.
    void copy(unsigned char* out, int n) {
        switch (itemsize(span_.dtype)) {
            case 2: return copy_elements<uint16_t>(out, n);
            case 4: return copy_elements<uint32_t>(out, n);
            default: return copy_elements<uint64_t>(out, n);
        }
    }

private:
    template <class Bits>
    void copy_elements(unsigned char* out, int n) {
        while (n > 0) {
            // A run along the innermost axis.
            int64_t run = n, stride = sizeof(Bits);
            if (span_.rank > 0) {
                const Axis& inner = span_.axes[span_.rank - 1];
                const int64_t left = inner.extent - index_[span_.rank - 1];
                run = left < n ? left : n;
                stride = inner.stride;
            }
            if (stride == int64_t(sizeof(Bits))) {
                memcpy(out, p_, size_t(run) * sizeof(Bits));
            } else {
                for (int64_t i = 0; i < run; ++i)
                    memcpy(out + i * int64_t(sizeof(Bits)), p_ + i * stride, sizeof(Bits));
            }
            if (span_.swapped) swap<Bits>(out, run);
            out += size_t(run) * sizeof(Bits);
            n -= int(run);
            advance(run, stride);
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

    template <class Bits>
    static void swap(unsigned char* elements, int64_t n) {
        for (int64_t i = 0; i < n; ++i, elements += sizeof(Bits)) {
            for (size_t low = 0, high = sizeof(Bits) - 1; low < high; ++low, --high) {
                const unsigned char byte = elements[low];
                elements[low] = elements[high];
                elements[high] = byte;
            }
        }
    }

    const Span& span_;
    const unsigned char* p_;
    int64_t index_[kMaxRank];
};

}  // namespace fused_penalties
