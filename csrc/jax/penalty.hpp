// The function behind interface.hpp.
#pragma once

#include "interface.hpp"

namespace fused_penalties {

bool penalty_of_rows(const PenalizedBuffer* buffers, size_t rows, size_t columns, bool wide, double* out, char* message,
                     size_t room);

}  // namespace fused_penalties
