// The hot paths without Python, on fixed inputs, so that callgrind counts the instructions of each:
//
// valgrind --tool=callgrind --callgrind-out-file=OUT counted NAME    with the kernels of this instruction set
//
// Each case runs once before it is counted, and leaves one of the files OUT.1, OUT.2, …, with its name in it.
// instructions.py reads these.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/sweep.hpp"

using namespace fused_penalties;

namespace {

template <class Run>
void count(const std::string& name, const Run& run) {
    run();
    CALLGRIND_ZERO_STATS;
    run();
    CALLGRIND_DUMP_STATS_AT(name.c_str());
}

// Of either sign, with random fractions, and exponents about 2^`magnitude`.
std::vector<unsigned char> values(DType dtype, uint64_t count, int magnitude = 0) {
    const int size = itemsize(dtype);
    constexpr int kFractionBits[] = {10, 7, 23, 52};  // by DType
    static_assert(sizeof kFractionBits / sizeof *kFractionBits == kDTypes, "one for each dtype");
    const int fraction_bits = kFractionBits[int(dtype)], exponent_bits = 8 * size - 1 - fraction_bits;
    const uint64_t bias = (uint64_t(1) << (exponent_bits - 1)) - 1;
    std::vector<unsigned char> memory(count * uint64_t(size));
    uint64_t state = 1;
    for (uint64_t i = 0; i < count; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const uint64_t sign = state >> 63, exponent = bias + uint64_t(magnitude) - (state >> 60 & 7);
        const uint64_t fraction = state >> 4 & ((uint64_t(1) << fraction_bits) - 1);
        const uint64_t bits = ((sign << exponent_bits) + exponent) << fraction_bits | fraction;
        memcpy(&memory[i * uint64_t(size)], &bits, size_t(size));  // the first bytes, of a little-endian number
    }
    return memory;
}

// The kernels themselves, over 32 blocks.
void count_kernels(const Kernels& kernels, DType dtype, const std::string& name, int magnitude = 0) {
    const Kernels::OfDType& kernel = kernels[dtype];
    const int each = block_elements(dtype);
    const uint64_t size = uint64_t(itemsize(dtype)), elements = 32 * uint64_t(each);
    auto weights = values(dtype, elements, magnitude);
    std::vector<BlockSums> sums(32);
    count(name + ": sums", [&] { kernel.block_sums(weights.data(), elements, sums.data()); });
    if (magnitude) return;  // which nothing else depends on

    const Factors factors{1e-4, 1e-3};
    const auto to_grads = [&](const Kernels::OfDType::ToGrads& to, DType of_grads, const std::string& names) {
        auto grads = values(of_grads, elements);
        const uint64_t grad_size = uint64_t(itemsize(of_grads));
        count(names + ": sums and gradient", [&] {
            for (uint64_t i = 0; i < elements; i += uint64_t(each))
                sums[0] = to.sum_and_add(&weights[i * size], &grads[i * grad_size], each, factors);
        });
        count(names + ": gradient", [&] { to.add(weights.data(), grads.data(), elements, factors); });
        count(names + ": stored gradient", [&] { to.store(weights.data(), grads.data(), elements, factors); });
    };
    to_grads(kernel.own, dtype, name);
    if (is_narrow(dtype)) to_grads(kernel.to_float32, DType::float32, name + " to float32");
    count(name + ": proximal", [&] { kernel.proximal(weights.data(), elements, {1e-4, 0.99}); });
    count(name + ": scale", [&] { kernel.scale(weights.data(), elements, {0.99, 0}); });
}

// What leads to the kernels, in one thread.
void count_sweeps(const Kernels& kernels, const std::string& name, const std::vector<Span>& weights) {
    std::vector<std::vector<unsigned char>> memory;
    std::vector<Span> grads;
    for (const Span& span : weights) {
        memory.push_back(values(span.dtype, span.count));
        grads.push_back(Span{memory.back().data(), span.count, nullptr, 0, span.dtype, false});
    }
    const size_t n = weights.size();
    std::vector<double> abs(n), square(n);
    std::vector<ExactSums> cut;
    ExactSums total;
    const Line line(weights.data(), n);
    const Work work{weights.data(), line, 1, kernels};
    count(name + ": sums", [&] { sum(work, cut, {abs.data(), square.data(), nullptr, &total}); });
    const std::vector<Factors> factors(n, {1e-4, 1e-3});
    const Change change{ChangeKind::gradient, grads.data(), factors.data()};
    count(name + ": sums and gradient",
          [&] { sum(work, cut, {abs.data(), square.data(), nullptr, nullptr}, &change); });
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        fputs("counted: got no name of an instruction set\n", stderr);
        return 2;
    }
    use_isa(argv[1]);
    const Kernels& kernels = active_kernels();
    for (int i = 0; i < kDTypes; ++i) count_kernels(kernels, DType(i), name_of(DType(i)));
    count_kernels(kernels, DType::bfloat16, "bfloat16 of large numbers", 100);

    const auto small = values(DType::float32, 1000 * 30), large = values(DType::float32, 1 << 18);
    std::vector<Span> many;
    for (uint64_t i = 0; i < 1000; ++i) many.push_back({&small[i * 120], 30, nullptr, 0, DType::float32, false});
    Line line;
    count("1000 buffers of 30 elements: line", [&] { line = Line(many.data(), many.size()); });
    count_sweeps(kernels, "1000 buffers of 30 elements", many);
    count_sweeps(kernels, "one buffer of 1 MiB", {{large.data(), 1 << 18, nullptr, 0, DType::float32, false}});
    const Axis transposed[] = {{512, 4}, {512, 512 * 4}};
    count_sweeps(kernels, "a transposed matrix", {{large.data(), 1 << 18, transposed, 2, DType::float32, false}});
    return 0;
}
