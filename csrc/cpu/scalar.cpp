// The reference as an instruction set of its own: for processors without a vector body, and to test against.
#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

using canon::BFloat16;
using canon::Float16;
using canon::Float32;
using canon::Float64;

template <class Type>
void block_sums(const void* data, uint64_t count, BlockSums* out) {
    const auto* p = static_cast<const typename Type::Element*>(data);
    constexpr uint64_t kElements = canon::block_elements<Type>;
    for (; count > 0; ++out) {
        const uint64_t n = count < kElements ? count : kElements;
        *out = canon::block_sums<Type>(p, int(n));
        p += n;
        count -= n;
    }
}

uint64_t read(const void* data, uint64_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < bytes; ++i) sum += p[i];
    return sum;
}

}  // namespace

const Kernels kScalar = FUSED_PENALTIES_KERNELS("scalar");

}  // namespace fused_penalties
