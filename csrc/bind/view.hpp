// One array as its library describes it.
#pragma once

#include <cstdint>

#include "span.hpp"

namespace fused_penalties {

struct View {
    unsigned char* data;
    DType dtype;
    bool swapped;   // the other byte order
    bool writable;  // in place: what stands in for an array is not
    bool dense;     // contiguous in C order
    int rank;
    const int64_t* shape;
    const int64_t* strides;  // in bytes

    uint64_t count() const;
};

}  // namespace fused_penalties
