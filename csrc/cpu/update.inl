// The vector bodies of changes.hpp's formulas, included beside block.inl and under the same rules.
//
// The primitives take and give masks as vectors of all-ones or all-zeros elements.

// How one vector of an element type of block.inl is read and written. Here Real is what changes are computed in.
template <class Type>
struct OneVector;

template <>
struct OneVector<Float32> {
    using Element = float;
    using Vector = FloatVector;
    using Real = float;
    static constexpr int kCount = kFloats;
    static Vector load(const Element* p) { return load_floats(p); }
    static void store(Element* p, Vector x) { store_floats(p, x); }
};

template <>
struct OneVector<Float64> {
    using Element = double;
    using Vector = DoubleVector;
    using Real = double;
    static constexpr int kCount = kDoubles;
    static Vector load(const Element* p) { return load_doubles(p); }
    static void store(Element* p, Vector x) { store_doubles(p, x); }
};

template <>
struct OneVector<Float16> {
    using Element = uint16_t;
    using Vector = FloatVector;
    using Real = float;
    static constexpr int kCount = kFloats;
    static Vector load(const Element* p) { return widen_halves(p); }
    static void store(Element* p, Vector x) { store_halves(p, x); }
};

template <>
struct OneVector<BFloat16> {
    using Element = uint16_t;
    using Vector = FloatVector;
    using Real = float;
    static constexpr int kCount = kFloats;
    static Vector load(const Element* p) { return widen_bfloats(p); }
    static void store(Element* p, Vector x) { store_bfloats(p, x); }
};

template <class Vector>
inline Vector quiet(Vector x) {
    return select(is_nan(x), broadcast(Vector{}, double(NAN)), x);
}

// x with the sign of w.
template <class Vector>
inline Vector with_sign(Vector x, Vector w) {
    return bits_xor(x, bits_and(w, broadcast(Vector{}, -0.0)));
}

// Unless it is added to what there is, it is added to +0, which makes +0 of -0.
template <class Type, bool kAdded, bool kL1, bool kL2>
struct Gradient {
    using Vector = typename Type::Vector;
    Vector x, y;
    Vector operator()(Vector w, Vector g) const {
        if (!kAdded) g = zero(g);
        const Vector product = multiply(y, w);
        if (!kL1) return quiet(add(g, product));
        const Vector signed_x = with_sign(x, w), nonzero = is_not_zero(w);
        if (!kL2) return quiet(add(g, select(is_nan(w), w, bits_and(signed_x, nonzero))));
        // Where w is zero so is the product, which added to itself keeps its sign.
        return quiet(add(g, add(product, select(nonzero, signed_x, product))));
    }
};

template <class Type>
struct Proximal {
    using Vector = typename Type::Vector;
    Vector x, y;
    Vector operator()(Vector w, Vector) const {
        const Vector rest = subtract(magnitude(w), x);
        const Vector moved = bits_and(with_sign(divide(rest, y), w), is_positive(rest));
        return quiet(select(is_nan(w), w, moved));
    }
};

template <class Type>
struct Scale {
    using Vector = typename Type::Vector;
    Vector x;
    Vector operator()(Vector w, Vector) const { return quiet(multiply(w, x)); }
};

// g[i] = change(w[i], g[i]) for n elements: whole vectors in place, the rest in copies padded with zeros. Changes
// of the weights themselves get them as g too.
template <class W, class G, class Change>
inline void change_all(const typename W::Element* w, typename G::Element* g, uint64_t n, const Change& change) {
    constexpr uint64_t kStep = W::kCount;
    uint64_t i = 0;
    for (; i + kStep <= n; i += kStep) G::store(g + i, change(W::load(w + i), G::load(g + i)));
    if (i == n) return;
    typename W::Element last_w[kStep] = {};
    typename G::Element last_g[kStep] = {};
    memcpy(last_w, w + i, (n - i) * sizeof last_w[0]);
    memcpy(last_g, g + i, (n - i) * sizeof last_g[0]);
    G::store(last_g, change(W::load(last_w), G::load(last_g)));
    memcpy(g + i, last_g, (n - i) * sizeof last_g[0]);
}

template <class Weight, class Grad, bool kAdded>
void differentiate(const void* weights, void* grads, uint64_t n, Factors factors) {
    using W = OneVector<Weight>;
    using G = OneVector<Grad>;
    using Vector = typename W::Vector;
    using Real = typename W::Real;
    const auto* w = static_cast<const typename W::Element*>(weights);
    auto* g = static_cast<typename G::Element*>(grads);
    const Vector x = broadcast(Vector{}, factors.x), y = broadcast(Vector{}, factors.y);
    const bool l1 = Real(factors.x) != 0, l2 = Real(factors.y) != 0;
    if (l1 && l2) change_all<W, G>(w, g, n, Gradient<W, kAdded, true, true>{x, y});
    if (l1 && !l2) change_all<W, G>(w, g, n, Gradient<W, kAdded, true, false>{x, y});
    if (!l1 && l2) change_all<W, G>(w, g, n, Gradient<W, kAdded, false, true>{x, y});
    if (!l1 && !l2 && !kAdded) memset(g, 0, n * sizeof *g);
}

// Strip by strip, so that weights and gradients come from memory together.
template <class Weight, class Grad>
BlockSums sums_and_gradient(const void* weights, void* grads, int n, Factors factors) {
    const auto* w = static_cast<const typename Weight::Element*>(weights);
    auto* g = static_cast<typename Grad::Element*>(grads);
    return sums_of<Weight>(w, n, [&](int64_t first, int count) {
        differentiate<Weight, Grad, true>(w + first, g + first, uint64_t(count), factors);
    });
}

template <class Type>
void proximal(void* weights, uint64_t n, Factors factors) {
    using W = OneVector<Type>;
    using Vector = typename W::Vector;
    auto* w = static_cast<typename W::Element*>(weights);
    change_all<W, W>(w, w, n, Proximal<W>{broadcast(Vector{}, factors.x), broadcast(Vector{}, factors.y)});
}

template <class Type>
void scale(void* weights, uint64_t n, Factors factors) {
    using W = OneVector<Type>;
    using Vector = typename W::Vector;
    auto* w = static_cast<typename W::Element*>(weights);
    change_all<W, W>(w, w, n, Scale<W>{broadcast(Vector{}, factors.x)});
}
