// The vector body of canon.hpp's tree. Each instruction set's file includes it once, inside an anonymous
// namespace and after the primitives that the body is written in, so that nothing compiled with that set's
// flags has a name that the linker could hand to anybody else.
//
// A block is walked in columns: kVectors vectors of lanes wide, all rows deep. A column's accumulators stay in
// registers and are stored once; then the lanes fold, whole columns onto whole columns.
//
// The primitives: Doubles, Floats and Words are one register of kDoubles doubles, of twice as many floats, of
// four times as many 16-bit words; kVectors is half of what accumulators the registers can hold, a multiple of
// four. avx2.cpp shows what else is asked of them.

constexpr int kFloats = 2 * kDoubles;
constexpr int kWords = 4 * kDoubles;

// The element types. `load` gives the magnitudes of one row of a column and, for bfloat16, gathers the largest
// bits. bfloat16 lanes come with the even elements first and the odd ones after them (kOrders = 2), which
// costs nothing: of all folds only the very last adds an even lane to an odd one.

struct Float32 {
    using Element = float;
    using Vector = Doubles;
    static constexpr int kColumn = kVectors * kDoubles;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector* x, Words&) {
        for (int v = 0; v < kVectors; ++v) x[v] = magnitude(widen(p + v * kDoubles));
    }
    // The product is exact, so that one rounding or two is the same.
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }
};

struct Float64 {
    using Element = double;
    using Vector = Doubles;
    static constexpr int kColumn = kVectors * kDoubles;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector* x, Words&) {
        for (int v = 0; v < kVectors; ++v) x[v] = magnitude(load_doubles(p + v * kDoubles));
    }
    static Vector add_square(Vector s, Vector x) { return add(s, multiply(x, x)); }
};

struct Float16 {
    using Element = uint16_t;
    using Vector = Floats;
    static constexpr int kColumn = kVectors * kFloats;
    static constexpr int kOrders = 1;
    static void load(const Element* p, Vector* x, Words&) {
        for (int v = 0; v < kVectors; ++v) x[v] = magnitude(widen_halves(p + v * kFloats));
    }
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }  // exact, as float32's
};

struct BFloat16 {
    using Element = uint16_t;
    using Vector = Floats;
    static constexpr int kColumn = kVectors * kFloats;
    static constexpr int kOrders = 2;
    static void load(const Element* p, Vector* x, Words& largest) {
        for (int v = 0; v < kVectors / 2; ++v) {
            const Words w = magnitude(load_words(p + v * kWords));
            largest = maximum(largest, w);
            x[v] = even_floats(w);
            x[v + kVectors / 2] = odd_floats(w);
        }
    }
    static Vector add_square(Vector s, Vector x) { return add(s, multiply(x, x)); }
};

struct WideBFloat16 {
    using Element = uint16_t;
    using Vector = Doubles;
    static constexpr int kColumn = kVectors * kDoubles;
    static constexpr int kOrders = 2;
    static void load(const Element* p, Vector* x, Words&) {
        for (int v = 0; v < kVectors / 4; ++v) {
            const Words w = magnitude(load_words(p + v * kWords));
            const Floats even = even_floats(w), odd = odd_floats(w);
            x[2 * v] = widen_low(even);
            x[2 * v + 1] = widen_high(even);
            x[2 * v + kVectors / 2] = widen_low(odd);
            x[2 * v + kVectors / 2 + 1] = widen_high(odd);
        }
    }
    static Vector add_square(Vector s, Vector x) { return multiply_add(x, x, s); }
};

inline void store_lanes(const Doubles* lanes, Doubles* out) {
    for (int v = 0; v < kVectors; ++v) out[v] = lanes[v];
}

inline void store_lanes(const Floats* lanes, Doubles* out) {
    for (int v = 0; v < kVectors; ++v) {
        out[2 * v] = widen_low(lanes[v]);
        out[2 * v + 1] = widen_high(lanes[v]);
    }
}

inline double fold_vectors(Doubles* v, int count) {
    for (int half = count / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) v[i] = add(v[i], v[i + half]);
    return fold(v[0]);
}

template <class Type>
struct Block {
    using Element = typename Type::Element;
    using Vector = typename Type::Vector;

    static constexpr int kLanes = kRowBytes / int(sizeof(Element));
    static constexpr int kColumns = kLanes / Type::kColumn;
    static constexpr int kStored = Type::kColumn / kDoubles;  // vectors of doubles that hold a column's lanes
    static constexpr int kColumnBytes = Type::kColumn * int(sizeof(Element));

    Doubles a[kColumns][kStored];
    Doubles s[kColumns][kStored];

    // Column `c` over `rows` rows at `p`, and a last row at `last` if there is one. On the way it asks for the
    // next block, one cache line after the other: the hardware does not follow strided rows, and without this
    // the speed halves. In the order of its addresses, not of the rows: that is worth another sixth.
    void column(int c, const Element* p, int rows, const Element* last, Words& largest_yet) {
        Vector ca[kVectors], cs[kVectors], x[kVectors];
        Words largest = largest_yet;  // in a register
        for (int v = 0; v < kVectors; ++v) ca[v] = cs[v] = zero(Vector{});
        const char* ahead = reinterpret_cast<const char*>(p) + kBlockBytes + c * (kRows - 1) * kColumnBytes;
        for (int row = 0; row < rows; ++row) {
            for (int byte = 0; byte < kColumnBytes; byte += 64) prefetch(ahead + row * kColumnBytes + byte);
            Type::load(p + row * kLanes, x, largest);
            for (int v = 0; v < kVectors; ++v) {
                ca[v] = add(ca[v], x[v]);
                cs[v] = Type::add_square(cs[v], x[v]);
            }
        }
        if (last) {
            Type::load(last, x, largest);
            for (int v = 0; v < kVectors; ++v) {
                ca[v] = add(ca[v], x[v]);
                cs[v] = Type::add_square(cs[v], x[v]);
            }
        }
        largest_yet = largest;
        store_lanes(ca, a[c]);
        store_lanes(cs, s[c]);
    }

    // Folds the first `active` columns; the others hold nothing, and adding +0 changes nothing.
    BlockSums folded(int active) {
        for (int half = kColumns / 2; half > 0; half /= 2) {
            for (int c = 0; c + half < active; ++c) {
                for (int v = 0; v < kStored; ++v) {
                    a[c][v] = add(a[c][v], a[c + half][v]);
                    s[c][v] = add(s[c][v], s[c + half][v]);
                }
            }
            if (active > half) active = half;
        }
        constexpr int kEach = kStored / Type::kOrders;
        BlockSums sums{fold_vectors(a[0], kEach), fold_vectors(s[0], kEach)};
        if (Type::kOrders == 2) {
            sums.abs += fold_vectors(a[0] + kEach, kEach);
            sums.square += fold_vectors(s[0] + kEach, kEach);
        }
        return sums;
    }

    BlockSums full(const Element* p, Words& largest) {
        for (int c = 0; c < kColumns; ++c) column(c, p + c * Type::kColumn, kRows, nullptr, largest);
        return folded(kColumns);
    }

    // A short block reads no element that is not there: the columns that the last row fills are read in place,
    // the one that it fills in part from a copy padded with zeros.
    BlockSums part(const Element* p, int n, Words& largest) {
        const int rows = n / kLanes, rest = n % kLanes;
        const int filled = rest / Type::kColumn, over = rest % Type::kColumn;
        const Element* last = p + rows * kLanes;
        Element padded[Type::kColumn] = {};
        memcpy(padded, last + filled * Type::kColumn, over * sizeof(Element));
        const int active = rows ? kColumns : filled + (over != 0);
        for (int c = 0; c < active; ++c) {
            const Element* q = c < filled ? last + c * Type::kColumn : c == filled && over ? padded : nullptr;
            column(c, p + c * Type::kColumn, rows, q, largest);
        }
        return folded(active);
    }

    static BlockSums sums(const Element* p, int n, Words& largest) {
        Block block;
        return n == kRows * kLanes ? block.full(p, largest) : block.part(p, n, largest);
    }
};

inline unsigned largest_word(Words words) {
    int16_t w[kWords];
    memcpy(w, &words, sizeof w);
    int largest = 0;
    for (int i = 0; i < kWords; ++i) largest = w[i] > largest ? w[i] : largest;
    return unsigned(largest);
}

template <class Type>
void block_sums(const void* data, uint64_t count, BlockSums* out) {
    using Element = typename Type::Element;
    constexpr int kElements = kBlockBytes / int(sizeof(Element));
    const Element* p = static_cast<const Element*>(data);
    for (; count > 0; ++out) {
        const int n = count < uint64_t(kElements) ? int(count) : kElements;
        Words largest = zero(Words{});
        *out = Block<Type>::sums(p, n, largest);
        if (Type::kOrders == 2 && canon::needs_wide_lanes(largest_word(largest)))
            *out = Block<WideBFloat16>::sums(reinterpret_cast<const uint16_t*>(p), n, largest);
        p += n;
        count -= uint64_t(n);
    }
}

// Loads every byte. The sum keeps the compiler from dropping the loads; four of them keep it from being the limit.
uint64_t read(const void* data, uint64_t bytes) {
    const char* p = static_cast<const char*>(data);
    constexpr int kRegister = int(sizeof(Words));
    Words sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = zero(Words{});
    uint64_t done = 0;
    for (; done + kVectors * kRegister <= bytes; done += kVectors * kRegister)
        for (int v = 0; v < kVectors; ++v)
            sums[v] = maximum(sums[v], load_words(reinterpret_cast<const uint16_t*>(p + done + v * kRegister)));
    uint64_t sum = 0;
    for (int v = 0; v < kVectors; ++v) sum += largest_word(sums[v]);
    for (; done < bytes; ++done) sum += uint64_t(static_cast<unsigned char>(p[done]));
    return sum;
}
