// The references as an instruction set of their own: for processors without a vector body, and to test against.
#include "../span.hpp"
#include "isa.hpp"

namespace fused_penalties {
namespace {

// The rows of dtype.hpp's table, as isa.hpp asks for them.
#define FUSED_PENALTIES_USING(dtype, Type) using canon::Type;
FUSED_PENALTIES_DTYPES(FUSED_PENALTIES_USING)

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

template <class Type>
uint64_t sums_and_largest(const void* data, int count, BlockSums* out) {
    const auto* p = static_cast<const typename Type::Element*>(data);
    *out = canon::block_sums<Type>(p, count);
    return canon::largest<Type>(p, count);
}

template <class Type>
canon::Compute<Type> value_at(const typename Type::Element* p) {
    return canon::Compute<Type>(Type::read(canon::element_at(p, 0)));
}

template <class Type>
void write_to(typename Type::Element* p, canon::Compute<Type> value) {
    const typename Type::Element element = Type::write(value);
    memcpy(p, &element, sizeof element);
}

template <class W, class G, bool kAdded>
void differentiate(const void* weights, void* grads, uint64_t count, Factors factors) {
    using Real = canon::Compute<W>;
    const Real x = Real(factors.x), y = Real(factors.y);
    const auto* w = static_cast<const typename W::Element*>(weights);
    auto* g = static_cast<typename G::Element*>(grads);
    for (; count > 0; --count, ++w, ++g)
        write_to<G>(g, kAdded ? canon::gradient(value_at<W>(w), value_at<G>(g), x, y)
                              : canon::stored_gradient(value_at<W>(w), x, y));
}

template <class W, class G>
BlockSums sums_and_gradient(const void* weights, void* grads, int n, Factors factors) {
    const BlockSums sums = canon::block_sums<W>(static_cast<const typename W::Element*>(weights), n);
    differentiate<W, G, true>(weights, grads, uint64_t(n), factors);
    return sums;
}

template <class Type>
void proximal(void* weights, uint64_t count, Factors factors) {
    using Real = canon::Compute<Type>;
    auto* w = static_cast<typename Type::Element*>(weights);
    for (; count > 0; --count, ++w)
        write_to<Type>(w, canon::proximal(value_at<Type>(w), Real(factors.x), Real(factors.y)));
}

template <class Type>
void scale(void* weights, uint64_t count, Factors factors) {
    using Real = canon::Compute<Type>;
    auto* w = static_cast<typename Type::Element*>(weights);
    for (; count > 0; --count, ++w) write_to<Type>(w, canon::scale(value_at<Type>(w), Real(factors.x)));
}

}  // namespace

const Kernels kScalar = {"scalar", FUSED_PENALTIES_KERNELS};

}  // namespace fused_penalties
