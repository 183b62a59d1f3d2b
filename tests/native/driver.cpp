// Runs the kernels without Python, so that tests reach processors that this machine only emulates.
//
// driver                  prints the names of the instruction sets that this processor runs.
// driver NAME THREADS     reads buffers from stdin until it ends and prints the bits of their sums.
//
// A buffer is three little-endian uint64 (dtype as in span.hpp, number of elements, bytes by which its first
// element misses a multiple of 64) and then its elements. Printed: a line for each buffer and one for the totals,
// the bits of the abs and of the square sum as 16 hexadecimal digits each.

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/sweep.hpp"
#include "exact.hpp"
#include "span.hpp"

using namespace fused_penalties;

namespace {

struct Header {
    uint64_t dtype, count, offset;
};

void print(double abs, double square) {
    uint64_t bits[2];
    memcpy(&bits[0], &abs, sizeof abs);
    memcpy(&bits[1], &square, sizeof square);
    printf("%016" PRIx64 " %016" PRIx64 "\n", bits[0], bits[1]);
}

bool read_exactly(void* to, size_t bytes) { return fread(to, 1, bytes, stdin) == bytes; }

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        for (const std::string& name : supported_isas()) puts(name.c_str());
        return 0;
    }
    use_isa(argv[1]);

    std::vector<Span> spans;
    Header header;
    while (read_exactly(&header, sizeof header)) {
        const DType dtype = DType(header.dtype);
        const size_t bytes = size_t(header.count) * size_t(itemsize(dtype));
        const size_t room = (header.offset + bytes + 63) / 64 * 64 + 64;
        auto* data = static_cast<unsigned char*>(std::aligned_alloc(64, room)) + header.offset;
        if (!read_exactly(data, bytes)) {
            fputs("driver: stdin ends within a buffer\n", stderr);
            return 1;
        }
        spans.push_back(Span{data, header.count, nullptr, 0, dtype, false});
    }

    std::vector<double> abs(spans.size()), square(spans.size());
    ExactSums total;
    const SumsOut out{abs.data(), square.data(), nullptr, &total};
    const Line line(spans.data(), spans.size());
    std::vector<ExactSums> cut;
    sum(Work{spans.data(), line, atoi(argv[2]), active_kernels()}, cut, out);
    for (size_t i = 0; i < spans.size(); ++i) print(abs[i], square[i]);
    print(total.abs.value(), total.square.value());
    return 0;
}
