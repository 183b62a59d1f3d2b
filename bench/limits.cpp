// What memory or a cache allows: reading bytes, or reading two buffers and writing one, and next to no arithmetic.
// bench/limits.py compiles this for one instruction set, tries every variant, and compares with the fastest.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

constexpr size_t kBytes = 256, kLine = 64;  // what one turn of a loop takes, and a cache line

// Prefetches as many bytes as a turn takes, `kAhead` bytes ahead of it; of x86 and Arm, none fails where no memory is.
template <int kAhead>
inline void prefetch(const unsigned char* p) {
    if (kAhead == 0) return;
    const uintptr_t ahead = uintptr_t(p) + kAhead;
    UNROLL for (size_t line = 0; line < kBytes; line += kLine)
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + line));
}

template <class Vector>
inline Vector load(const unsigned char* p) {
    Vector x;
    memcpy(&x, p, sizeof x);
    return x;
}

// The exclusive or of all 8-byte words, the last one filled up with zeros: nobody can tell it without every byte.
template <class Vector, int kAhead>
uint64_t read(const unsigned char* p, size_t bytes) {
    constexpr size_t kVector = sizeof(Vector);
    Vector x0{}, x1{}, x2{}, x3{};  // four, so that none waits for the one before
    for (; bytes >= kBytes; bytes -= kBytes, p += kBytes) {
        prefetch<kAhead>(p);
        UNROLL for (size_t at = 0; at < kBytes; at += 4 * kVector) {
            x0 ^= load<Vector>(p + at);
            x1 ^= load<Vector>(p + at + kVector);
            x2 ^= load<Vector>(p + at + 2 * kVector);
            x3 ^= load<Vector>(p + at + 3 * kVector);
        }
    }
    x0 ^= x1 ^ x2 ^ x3;
    uint64_t words[kVector / 8], sum = 0;
    memcpy(words, &x0, kVector);
    for (uint64_t word : words) sum ^= word;
    for (; bytes > 0; bytes -= bytes < 8 ? bytes : 8, p += 8) {
        uint64_t word = 0;
        memcpy(&word, p, bytes < 8 ? bytes : 8);
        sum ^= word;
    }
    return sum;
}

// to[i] ^= from[i]
template <class Vector, int kAhead>
void exchange(const unsigned char* from, unsigned char* to, size_t bytes) {
    for (; bytes >= kBytes; bytes -= kBytes, from += kBytes, to += kBytes) {
        prefetch<kAhead>(from);
        prefetch<kAhead>(to);
        UNROLL for (size_t at = 0; at < kBytes; at += sizeof(Vector)) {
            const Vector x = load<Vector>(from + at) ^ load<Vector>(to + at);
            memcpy(to + at, &x, sizeof x);
        }
    }
    for (size_t i = 0; i < bytes; ++i) to[i] ^= from[i];
}

struct Variant {
    const char* name;
    uint64_t (*read)(const unsigned char* p, size_t bytes);
    void (*exchange)(const unsigned char* from, unsigned char* to, size_t bytes);
};

#define VARIANT(Vector, ahead) {#Vector ", prefetch " #ahead, read<Vector, ahead>, exchange<Vector, ahead>}
#define VARIANTS(Vector) VARIANT(Vector, 0), VARIANT(Vector, 512), VARIANT(Vector, 4096)

using Word = uint64_t;
using Bytes16 = uint64_t __attribute__((vector_size(16)));
using Bytes32 = uint64_t __attribute__((vector_size(32)));
using Bytes64 = uint64_t __attribute__((vector_size(64)));

const Variant kVariants[] = {
#if defined(__SSE2__) || defined(__ARM_NEON)
    VARIANTS(Bytes16),
#else
    VARIANTS(Word),
#endif
#if defined(__AVX2__)
    VARIANTS(Bytes32),
#endif
#if defined(__AVX512F__)
    VARIANTS(Bytes64),
#endif
};
constexpr size_t kCount = sizeof kVariants / sizeof kVariants[0];

// What a thread takes at a time. A read only looks at `from`.
struct Piece {
    const unsigned char* from;
    unsigned char* to;
    uint64_t bytes;
};

// Calls work(piece) for all pieces, on up to so many threads. They are made anew at each call: some 20 µs.
template <class Work>
void each(const Piece* pieces, size_t n, int threads, const Work& work) {
    std::atomic<size_t> next{0};
    const auto run = [&] {
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) work(pieces[i]);
    };
    std::vector<std::thread> others;
    for (int k = 1; k < threads; ++k) others.emplace_back(run);
    run();
    for (std::thread& other : others) other.join();
}

}  // namespace

extern "C" {

// Null for one past the last.
const char* variant_name(size_t variant) { return variant < kCount ? kVariants[variant].name : nullptr; }

uint64_t read_all(size_t variant, const Piece* pieces, size_t n, int threads) {
    std::atomic<uint64_t> sum{0};
    each(pieces, n, threads, [&](const Piece& piece) { sum ^= kVariants[variant].read(piece.from, piece.bytes); });
    return sum;
}

void exchange_all(size_t variant, const Piece* pieces, size_t n, int threads) {
    each(pieces, n, threads,
         [&](const Piece& piece) { kVariants[variant].exchange(piece.from, piece.to, piece.bytes); });
}

}  // extern "C"
