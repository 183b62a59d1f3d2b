// Runs the kernels without Python, so that tests reach processors that this machine only emulates.
//
// driver                  prints the names of the instruction sets that this processor runs.
// driver NAME THREADS     reads buffers from stdin until it ends and prints the bits of their sums.
// driver NAME changes     reads the same and prints a hash of what each of changes.hpp's changes makes of them.
//
// A buffer is three little-endian uint64 (dtype as in dtype.hpp, number of elements, bytes by which its first
// element misses a multiple of 64) and then its elements. Printed: a line for each buffer and one for the totals,
// the bits of the abs sum, of the square sum and of the largest magnitude as 16 hexadecimal digits each.

#include <algorithm>
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

void print(double abs, double square, double largest) {
    uint64_t bits[3];
    memcpy(&bits[0], &abs, sizeof abs);
    memcpy(&bits[1], &square, sizeof square);
    memcpy(&bits[2], &largest, sizeof largest);
    printf("%016" PRIx64 " %016" PRIx64 " %016" PRIx64 "\n", bits[0], bits[1], bits[2]);
}

uint64_t hash(const Span& span) {  // FNV-1a
    uint64_t value = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < span.count * uint64_t(itemsize(span.dtype)); ++i)
        value = (value ^ span.data[i]) * 0x100000001b3u;
    return value;
}

// Changes a copy of each buffer; the gradients are the buffers themselves, read one element further on.
void print_changes(const std::vector<Span>& spans) {
    const Line line(spans.data(), spans.size());
    const Work work{spans.data(), line, 1, active_kernels()};
    const struct {
        ChangeKind kind;
        Factors factors;
    } changes[] = {{ChangeKind::gradient, {0.1, 0.3}},
                   {ChangeKind::gradient, {-0.1, 0}},
                   {ChangeKind::gradient, {0, 0.3}},
                   {ChangeKind::stored_gradient, {0.1, 0.3}},
                   {ChangeKind::stored_gradient, {-0.1, 0}},
                   {ChangeKind::stored_gradient, {0, 0.3}},
                   {ChangeKind::proximal, {0.25, 1.5}},
                   {ChangeKind::proximal, {0, 1}},
                   {ChangeKind::decay, {0.7, 0}}};
    for (const auto& each : changes) {
        std::vector<std::vector<unsigned char>> memory;
        std::vector<Span> targets;
        for (const Span& span : spans) {
            const size_t size = size_t(itemsize(span.dtype)), bytes = size_t(span.count) * size;
            const bool shifted = reads_weights(each.kind) && bytes > 0;
            memory.emplace_back(span.data, span.data + bytes);
            if (shifted) std::rotate(memory.back().begin(), memory.back().begin() + long(size), memory.back().end());
            targets.push_back(Span{memory.back().data(), span.count, nullptr, 0, span.dtype, false});
        }
        const std::vector<Factors> factors(spans.size(), each.factors);
        const bool own = !reads_weights(each.kind);
        change(own ? Work{targets.data(), line, 1, active_kernels()} : work,
               Change{each.kind, targets.data(), factors.data()});
        for (const Span& target : targets) printf("%016" PRIx64 "\n", hash(target));
    }
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

    if (!strcmp(argv[2], "changes")) {
        print_changes(spans);
        return 0;
    }
    // The sums alone, and the same with the largest magnitudes.
    std::vector<double> abs[2], square[2], largest(spans.size());
    ExactSums total[2];
    const Line line(spans.data(), spans.size());
    std::vector<ExactSums> cut;
    for (int with : {0, 1}) {
        abs[with].resize(spans.size());
        square[with].resize(spans.size());
        sum(Work{spans.data(), line, atoi(argv[2]), active_kernels()}, cut,
            {abs[with].data(), square[with].data(), nullptr, &total[with], with ? largest.data() : nullptr});
    }
    const size_t bytes = spans.size() * sizeof(double);
    if (memcmp(abs[0].data(), abs[1].data(), bytes) || memcmp(square[0].data(), square[1].data(), bytes) ||
        memcmp(total[0].abs.canonical_limbs(), total[1].abs.canonical_limbs(), kLimbs * sizeof(int64_t))) {
        fputs("driver: the sums are others with the largest magnitudes\n", stderr);
        return 1;
    }
    for (size_t i = 0; i < spans.size(); ++i) print(abs[1][i], square[1][i], largest[i]);
    print(total[1].abs.value(), total[1].square.value(), limbs::double_of_bits(total[1].largest));
    return 0;
}
