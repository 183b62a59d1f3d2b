// What the handler that XLA calls has of the package: one function, whose address `_core` gives. The handler is
// compiled apart, against the headers of whatever JAX there is, and so only translates XLA's arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.hpp"

namespace fused_penalties {

// To be raised whenever what is below changes: a handler that was compiled before is refused then.
constexpr int kJaxInterface = 1;

// Contiguous elements, and the coefficients of their penalty, rounded to their dtype already.
struct PenalizedBuffer {
    const void* data;
    uint64_t count;
    double l1, l2;
    DType dtype;
};

// The penalty of each row of `columns` buffers, to out[row]: float64 numbers that are rounded to float32 already unless
// they are `wide`. Returns false, and a message of fewer than `room` bytes, if that could not be done. It knows nothing
// of Python, and any thread may call it.
using PenaltyOfRows = bool (*)(const PenalizedBuffer* buffers, size_t rows, size_t columns, bool wide, double* out,
                               char* message, size_t room);

}  // namespace fused_penalties
