// The vector body of canon.hpp's tree. Each instruction set's file includes it once, inside an anonymous
// namespace and after the primitives that the body is written in. Of a function that several files define the linker
// keeps one copy: if that were compiled with the flags of a newer set, older processors could not run it.
//
// A block is read as it lies in memory, strip after strip, row after row: one sequential stream, which every
// processor's own prefetcher follows. A group is four registers of sums of magnitudes and four of sums of squares; with
// enough registers there are two (kGroups). Where a row has more lanes than they hold, a strip is read in several
// passes, each over its part of every row; all but the first find the strip's 2 KiB in cache.
//
// The primitives: DoubleVector, FloatVector and WordVector are one register of kDoubles doubles, of twice as many
// floats, of four times as many 16-bit words. The body keeps them in plain variables, never in arrays or classes: a
// register whose size the compiler does not know could not be put there. avx2.cpp shows what else is asked of them.

#define FUSED_PENALTIES_PRAGMA(text) _Pragma(#text)
// For folds: how much else a file has must decide neither their speed nor whether a compiler sees that lanes which are
// not written are not read.
#if defined(__GNUC__)
#define FUSED_PENALTIES_INLINE inline __attribute__((always_inline))
#else
#define FUSED_PENALTIES_INLINE inline
#endif
#if defined(__clang__)
#define FUSED_PENALTIES_UNROLL(times) FUSED_PENALTIES_PRAGMA(unroll times)
#elif defined(__GNUC__)
#define FUSED_PENALTIES_UNROLL(times) FUSED_PENALTIES_PRAGMA(GCC unroll times)
#else
#define FUSED_PENALTIES_UNROLL(times)
#endif

constexpr int kFloats = 2 * kDoubles;
constexpr int kWords = 4 * kDoubles;

// The element types. A group takes kGroup elements of a row, and a register holds the lanes of kEach of them. `load`
// gives their magnitudes and, for bfloat16, gathers the largest bits. bfloat16 lanes come with the even elements in x0
// and x1 and the odd ones in x2 and x3 (kOrders = 2), which costs nothing: of all folds only the very last adds an even
// lane to an odd one.

struct Float32 {
    using Element = float;
    using Real = double;
    using Vector = DoubleVector;
    static constexpr int kEach = kDoubles;
    static constexpr int kGroup = 4 * kEach;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector&) {
        x0 = widen_magnitude(p);
        x1 = widen_magnitude(p + kDoubles);
        x2 = widen_magnitude(p + 2 * kDoubles);
        x3 = widen_magnitude(p + 3 * kDoubles);
    }
    // The product is exact, so that one rounding or two is the same.
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }
};

struct Float64 {
    using Element = double;
    using Real = double;
    using Vector = DoubleVector;
    static constexpr int kEach = kDoubles;
    static constexpr bool kHalf = kRowBytes / 8 == 2 * kEach;  // half a group is a whole row: under AVX-512
    static constexpr int kGroup = kHalf ? 2 * kEach : 4 * kEach;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector&) {
        x0 = magnitude(load_doubles(p));
        x1 = magnitude(load_doubles(p + kDoubles));
        if (kHalf) return;
        x2 = magnitude(load_doubles(p + 2 * kDoubles));
        x3 = magnitude(load_doubles(p + 3 * kDoubles));
    }
    static Vector add_square(Vector s, Vector x) { return add(s, multiply(x, x)); }
};

struct Float16 {
    using Element = uint16_t;
    using Real = float;
    using Vector = FloatVector;
    static constexpr int kEach = kFloats;
    static constexpr int kGroup = 4 * kEach;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector&) {
        x0 = widen_half_magnitudes(p);
        x1 = widen_half_magnitudes(p + kFloats);
        x2 = widen_half_magnitudes(p + 2 * kFloats);
        x3 = widen_half_magnitudes(p + 3 * kFloats);
    }
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }  // exact, as float32's
};

struct BFloat16 {
    using Element = uint16_t;
    using Real = float;
    using Vector = FloatVector;
    static constexpr int kEach = kFloats;
    static constexpr int kGroup = 4 * kEach;
    static constexpr int kOrders = 2;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector& largest) {
        const WordVector w0 = magnitude(load_words(p)), w1 = magnitude(load_words(p + kWords));
        largest = maximum16(largest, maximum16(w0, w1));
        x0 = even_floats(w0);
        x1 = even_floats(w1);
        x2 = odd_floats(w0);
        x3 = odd_floats(w1);
    }
    static Vector add_square(Vector s, Vector x) { return add(s, multiply(x, x)); }
};

struct WideBFloat16 {
    using Element = uint16_t;
    using Real = double;
    using Vector = DoubleVector;
    static constexpr int kEach = kDoubles;
    static constexpr int kGroup = 4 * kEach;
    static constexpr int kOrders = 2;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector&) {
        const WordVector w = magnitude(load_words(p));
        const FloatVector even = even_floats(w), odd = odd_floats(w);
        x0 = widen_low(even);
        x1 = widen_high(even);
        x2 = widen_low(odd);
        x3 = widen_high(odd);
    }
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }
};

// The larger ones of two registers' magnitude bits; but a NaN of float64 may get lost.
template <class Type>
inline WordVector larger(WordVector x, WordVector y) {
    constexpr int kSize = int(sizeof(typename Type::Element));
    if constexpr (kSize == 8) return maximum64(x, y);
    if constexpr (kSize == 4) return maximum32(x, y);
    return maximum16(x, y);
}

// Another type that gathers the largest bits as bfloat16 does. Where magnitudes are in registers as numbers of another
// kind, the elements are read twice: a group is two registers of them. They are compared with each other first, so that
// only one maximum has to wait for that of the group before.
template <class Type>
struct WithLargest : Type {
    using Element = typename Type::Element;
    using Vector = typename Type::Vector;
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector& largest) {
        using Bits = canon::Bits<Type>;
        constexpr int kHalf = Type::kGroup / 2;
        static_assert(kHalf * int(sizeof(Bits)) == 2 * kWords);
        const WordVector mask = repeated(canon::magnitude_mask<Type> * (~uint64_t(0) / Bits(~Bits(0))));
        const WordVector w0 = both(load_words(reinterpret_cast<const uint16_t*>(p)), mask);
        const WordVector w1 = both(load_words(reinterpret_cast<const uint16_t*>(p + kHalf)), mask);
        largest = larger<Type>(largest, larger<Type>(w0, w1));
        Type::load(p, x0, x1, x2, x3, largest);
    }
};

template <>
struct WithLargest<Float64> : Float64 {
    static void load(const Element* p, Vector& x0, Vector& x1, Vector& x2, Vector& x3, WordVector& largest) {
        Float64::load(p, x0, x1, x2, x3, largest);
        const WordVector most =
            kHalf ? larger<Float64>(words(x0), words(x1))
                  : larger<Float64>(larger<Float64>(words(x0), words(x1)), larger<Float64>(words(x2), words(x3)));
        largest = larger<Float64>(largest, most);
    }
};

template <>
struct WithLargest<BFloat16> : BFloat16 {};

inline void store_lanes(float* to, FloatVector x) { store_floats(to, x); }
inline void store_lanes(double* to, DoubleVector x) { store_doubles(to, x); }
inline DoubleVector load_lanes(const float* from) { return widen(from); }
inline DoubleVector load_lanes(const double* from) { return load_doubles(from); }

// Folds lanes by halves down to one.
template <int kCount>
FUSED_PENALTIES_INLINE double fold_lanes(double* lanes) {
    if constexpr (kCount == kDoubles) {
        return fold(load_doubles(lanes));
    } else {
        constexpr int kHalf = kCount / 2;
        FUSED_PENALTIES_UNROLL(16)  // all of it, so that the lanes stay in registers
        for (int i = 0; i < kHalf; i += kDoubles)
            store_doubles(lanes + i, add(load_doubles(lanes + i), load_doubles(lanes + i + kHalf)));
        return fold_lanes<kHalf>(lanes);
    }
}

// The lanes of a block, one row of columns for each of its strips: sums of magnitudes, or of squares. With two
// orders, the even columns come before the odd ones.
template <class Type>
struct Lanes {
    using Real = typename Type::Real;
    static constexpr int kColumns = canon::columns<Type>, kOrders = Type::kOrders;
    static constexpr bool kWidens = !std::is_same<Real, double>::value;
    alignas(64) Real strips[kStrips][kColumns];
    alignas(64) double pairs[kStrips - 2][kColumns];  // of strips 0 and 2, and 1 and 3, if kWidens

    // Where lanes have to be widened first, a pair of strips is added as soon as there are both: while that waits for
    // conversions, the next strip is read (3 to 4 % of a large buffer's time on Zen 4).
    void end_strip(int strip) {
        if (!kWidens || strip < 2) return;
        FUSED_PENALTIES_UNROLL(4)
        for (int i = 0; i < kColumns; i += kDoubles) store_doubles(pairs[strip - 2] + i, added(strip, i));
    }

    DoubleVector added(int strip, int i) const {
        return add(load_lanes(strips[strip - 2] + i), load_lanes(strips[strip] + i));
    }
    DoubleVector pair(int strip, int i) const { return kWidens ? load_doubles(pairs[strip - 2] + i) : added(strip, i); }

    // Folds the first `count` strips onto each other, 0 with 2 and 1 with 3, and then the columns. Strips that are
    // not there would add +0, which changes nothing.
    FUSED_PENALTIES_INLINE double folded(int count) const {
        switch (count) {
            case 1: return folded<1>();
            case 2: return folded<2>();
            case 3: return folded<3>();
            default: return folded<4>();
        }
    }

    template <int kCount>
    FUSED_PENALTIES_INLINE double folded() const {
        constexpr int kEach = kColumns / kOrders, kHalf = kEach / 2;
        alignas(64) double lanes[kOrders * kHalf];
        for (int order = 0; order < kOrders; ++order) FUSED_PENALTIES_UNROLL(16)
        for (int i = 0; i < kHalf; i += kDoubles)
            store_doubles(lanes + order * kHalf + i,
                          add(column<kCount>(order * kEach + i), column<kCount>(order * kEach + kHalf + i)));
        const double even = fold_lanes<kHalf>(lanes);
        return kOrders == 1 ? even : even + fold_lanes<kHalf>(lanes + kHalf);
    }

    template <int kCount>
    DoubleVector column(int i) const {
        const DoubleVector x = kCount > 2 ? pair(2, i) : load_lanes(strips[0] + i);
        if (kCount == 1) return x;
        return add(x, kCount > 3 ? pair(3, i) : load_lanes(strips[1] + i));
    }
};

template <class Type>
struct Block {
    using Element = typename Type::Element;
    using Vector = typename Type::Vector;

    static constexpr int kColumns = canon::columns<Type>;
    static constexpr int kStripElements = canon::strip_elements<Type>;
    static constexpr int kEach = Type::kEach;
    static constexpr bool kFour = Type::kGroup == 4 * kEach;  // registers in a group for each of the two sums, else two
    static constexpr bool kTwo = kGroups == 2 && kColumns >= 2 * Type::kGroup;  // groups in a pass, else one
    static constexpr int kPass = kTwo ? 2 * Type::kGroup : Type::kGroup;

    Lanes<Type> a, s;

    // Adds the elements of one group at `p` to its sums.
    static void add_group(const Element* p, Vector& a0, Vector& a1, Vector& a2, Vector& a3, Vector& s0, Vector& s1,
                          Vector& s2, Vector& s3, WordVector& largest) {
        Vector x0 = zero(Vector{}), x1 = x0, x2 = x0, x3 = x0;
        Type::load(p, x0, x1, x2, x3, largest);
        a0 = add(a0, x0);
        a1 = add(a1, x1);
        s0 = Type::add_square(s0, x0);
        s1 = Type::add_square(s1, x1);
        if (!kFour) return;
        a2 = add_elsewhere(a2, x2);
        a3 = add_elsewhere(a3, x3);
        s2 = Type::add_square(s2, x2);
        s3 = Type::add_square(s3, x3);
    }

    void store_group(int strip, int column, Vector a0, Vector a1, Vector a2, Vector a3, Vector s0, Vector s1, Vector s2,
                     Vector s3) {
        const int even = column / Type::kOrders;
        const int odd = Type::kOrders == 2 ? kColumns / 2 + even : even + 2 * kEach;
        auto *a_lanes = a.strips[strip], *s_lanes = s.strips[strip];
        store_lanes(a_lanes + even, a0);
        store_lanes(a_lanes + even + kEach, a1);
        store_lanes(s_lanes + even, s0);
        store_lanes(s_lanes + even + kEach, s1);
        if (!kFour) return;
        store_lanes(a_lanes + odd, a2);
        store_lanes(a_lanes + odd + kEach, a3);
        store_lanes(s_lanes + odd, s2);
        store_lanes(s_lanes + odd + kEach, s3);
    }

    // One pass over `rows` rows of a strip at `p`, and a last row at `last` if there is one.
    void pass(int strip, int column, const Element* p, int rows, const Element* last, WordVector& largest_yet) {
        const Vector none = zero(Vector{});
        Vector a0 = none, a1 = none, a2 = none, a3 = none, s0 = none, s1 = none, s2 = none, s3 = none;
        Vector b0 = none, b1 = none, b2 = none, b3 = none, t0 = none, t1 = none, t2 = none, t3 = none;
        WordVector largest = largest_yet;  // a local copy, which the compiler keeps in a register
        const auto add_row = [&](const Element* row) {
            add_group(row + column, a0, a1, a2, a3, s0, s1, s2, s3, largest);
            if (kTwo) add_group(row + column + Type::kGroup, b0, b1, b2, b3, t0, t1, t2, t3, largest);
        };
        // Left alone, GCC unrolls all rows of a strip, loads them out of their order, and then waits for one long chain
        // of additions: half the speed.
        FUSED_PENALTIES_UNROLL(2)
        for (int row = 0; row < rows; ++row) add_row(p + row * kColumns);
        if (last) add_row(last);
        largest_yet = largest;
        store_group(strip, column, a0, a1, a2, a3, s0, s1, s2, s3);
        if (kTwo) store_group(strip, column + Type::kGroup, b0, b1, b2, b3, t0, t1, t2, t3);
    }

    // Reads no element that is not there: a row that ends early is read from a copy padded with zeros. Calls
    // after(first, count) for the elements of each strip when they are summed.
    template <class After>
    BlockSums sums(const Element* p, int n, WordVector& largest, const After& after) {
        const Element* const first = p;
        int strip = 0;
        const auto end_strip = [&](int count) {
            a.end_strip(strip);
            s.end_strip(strip);
            after(p - first, count);
        };
        for (; n >= kStripElements; ++strip, p += kStripElements, n -= kStripElements) {
            for (int column = 0; column < kColumns; column += kPass) pass(strip, column, p, kRows, nullptr, largest);
            end_strip(kStripElements);
        }
        if (n > 0) {
            const int rows = n / kColumns, rest = n % kColumns;
            Element padded[kColumns];
            if (rest) {
                memcpy(padded, p + rows * kColumns, size_t(rest) * sizeof(Element));
                memset(padded + rest, 0, size_t(kColumns - rest) * sizeof(Element));
            }
            for (int column = 0; column < kColumns; column += kPass)
                pass(strip, column, p, rows, rest ? padded : nullptr, largest);
            end_strip(n);
            ++strip;
        }
        return {a.folded(strip), s.folded(strip)};
    }
};

template <class Type>
inline uint64_t largest_bits(WordVector largest) {
    canon::Bits<Type> each[kWords * 2 / sizeof(canon::Bits<Type>)];
    memcpy(each, &largest, sizeof each);
    canon::Bits<Type> most = 0;  // of the elements' own width, so that a compiler folds the register
    for (const auto bits : each) most = bits > most ? bits : most;
    return most;
}

// The sums of one block; `after` as in Block::sums. bfloat16 gathers its largest magnitudes in any case.
template <class Type, class After>
inline BlockSums sums_of(const typename Type::Element* p, int n, const After& after) {
    WordVector largest = zero(WordVector{});
    Block<Type> block;  // not zeroed, which would take time: lanes that are not written are not read
    const BlockSums sums = block.sums(p, n, largest, after);
    if constexpr (std::is_same<Type, BFloat16>::value)
        if (canon::needs_wide_lanes(unsigned(largest_bits<Type>(largest))))
            return sums_of<WideBFloat16>(p, n, [](int64_t, int) {});
    return sums;
}

template <class Type>
void block_sums(const void* data, uint64_t count, BlockSums* out) {
    constexpr int kElements = canon::block_elements<Type>;
    const auto* p = static_cast<const typename Type::Element*>(data);
    for (; count > 0; ++out) {
        const int n = count < uint64_t(kElements) ? int(count) : kElements;
        *out = sums_of<Type>(p, n, [](int64_t, int) {});
        p += n;
        count -= uint64_t(n);
    }
}

template <class Type>
uint64_t sums_and_largest(const void* data, int count, BlockSums* out) {
    const auto* p = static_cast<const typename Type::Element*>(data);
    const auto nothing = [](int64_t, int) {};
    WordVector largest = zero(WordVector{});
    Block<WithLargest<Type>> block;
    *out = block.sums(p, count, largest, nothing);
    const uint64_t bits = largest_bits<Type>(largest);
    if constexpr (std::is_same<Type, BFloat16>::value)
        if (canon::needs_wide_lanes(unsigned(bits))) *out = sums_of<WideBFloat16>(p, count, nothing);
    return out->abs == out->abs ? bits : canon::magnitude_mask<Type>;  // a NaN
}
