#include "penalty.hpp"

#include <cstdio>
#include <exception>
#include <vector>

#include "convention.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/sweep.hpp"

namespace fused_penalties {

bool penalty_of_rows(const PenalizedBuffer* buffers, size_t rows, size_t columns, bool wide, double* out, char* message,
                     size_t room) {
    try {
        const size_t n = rows * columns;
        const DefaultFloatEnvironment environment;
        std::vector<Span> spans(n);
        for (size_t i = 0; i < n; ++i) {
            const PenalizedBuffer& buffer = buffers[i];
            spans[i] = {static_cast<const unsigned char*>(buffer.data), buffer.count, nullptr, 0, buffer.dtype, false};
        }
        const Line line(spans.data(), n);
        std::vector<double> abs(n), square(n);
        std::vector<ExactSums> cut;
        sum({spans.data(), line, 0, active_kernels()}, cut, {abs.data(), square.data(), nullptr, nullptr});
        for (size_t row = 0; row < rows; ++row) {
            Exact total;
            for (size_t i = row * columns; i < (row + 1) * columns; ++i)
                total.add(canon::term(buffers[i].l1, buffers[i].l2, abs[i], square[i]));
            out[row] = rounded(total.value(), wide);
        }
        return true;
    } catch (const std::exception& error) {
        std::snprintf(message, room, "%s", error.what());
        return false;
    }
}

}  // namespace fused_penalties
