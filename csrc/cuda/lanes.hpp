// A warp, written so that the same source runs on a GPU and, for tests, on the host.
//
// A program for one warp is a sequence of phases. What happens in all lanes is in each_lane; what a lane keeps between
// phases is PerLane. On the GPU every lane runs the program; on the host one thread does, with the lanes in a loop.
// A phase must not read what another lane writes in it, nor, in memory, what one wrote since the last barrier.
#pragma once

#include <cmath>
#include <cstdint>

#include "../canon.hpp"

#if defined(__CUDACC__)
#define FUSED_PENALTIES_DEVICE __device__ __forceinline__
#define FUSED_PENALTIES_INLINE __attribute__((always_inline))
#define FUSED_PENALTIES_UNROLLED _Pragma("unroll")
#define FUSED_PENALTIES_ROLLED _Pragma("unroll 1")
#else
#define FUSED_PENALTIES_DEVICE inline
#define FUSED_PENALTIES_INLINE
#define FUSED_PENALTIES_UNROLLED
#define FUSED_PENALTIES_ROLLED
#endif

namespace fused_penalties {
namespace cuda {

constexpr int kLanes = 32;

#if defined(__CUDA_ARCH__)

template <class T>
class PerLane {
public:
    FUSED_PENALTIES_DEVICE T& operator[](int) { return value_; }
    FUSED_PENALTIES_DEVICE const T& operator[](int) const { return value_; }

private:
    T value_;
};

template <class Phase>
FUSED_PENALTIES_DEVICE void each_lane(const Phase& phase) {
    phase(int(threadIdx.x) % kLanes);
}

// Orders what the lanes write to memory before what they read after.
FUSED_PENALTIES_DEVICE void barrier() { __syncwarp(); }

// Tells the compiler that an address is one of device memory. It cannot know that of an address that was itself read
// from memory, and makes slower accesses to what might also be shared memory.
template <class T>
FUSED_PENALTIES_DEVICE T* in_device_memory(T* address) {
    __builtin_assume(__isGlobal(address));
    return address;
}

// Not canon's, by the bits: an instruction that computes with |x| takes x, and drops the sign at no cost.
FUSED_PENALTIES_DEVICE float magnitude(float x) { return fabsf(x); }
FUSED_PENALTIES_DEVICE double magnitude(double x) { return fabs(x); }

// The larger one of two magnitudes; of a NaN and a number the number.
FUSED_PENALTIES_DEVICE float larger(float x, float y) { return fmaxf(x, y); }
FUSED_PENALTIES_DEVICE double larger(double x, double y) { return fmax(x, y); }

// x·y + z, rounded once.
FUSED_PENALTIES_DEVICE float fused(float x, float y, float z) { return __fmaf_rn(x, y, z); }
FUSED_PENALTIES_DEVICE double fused(double x, double y, double z) { return __fma_rn(x, y, z); }

// Tells the compiler that a value is not zero, so that it leaves out the code for zero.
template <class Real>
FUSED_PENALTIES_DEVICE Real not_zero(Real value) {
    __builtin_assume(value != 0);
    return value;
}

// Within a phase: keeps the compiler from working on what follows before it is done with what is before, which
// would need more registers than there are.
FUSED_PENALTIES_DEVICE void in_order() { __syncwarp(); }

FUSED_PENALTIES_DEVICE void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// For each lane the value of its partner, the lane whose number differs from its own in the bits of `mask`.
template <class T>
FUSED_PENALTIES_DEVICE PerLane<T> partner(const PerLane<T>& values, int mask) {
    PerLane<T> other;
    other[0] = __shfl_xor_sync(0xffffffffu, values[0], mask);
    return other;
}

// Bit k is lane k's.
FUSED_PENALTIES_DEVICE uint32_t ballot(const PerLane<bool>& values) { return __ballot_sync(0xffffffffu, values[0]); }

FUSED_PENALTIES_DEVICE int count_ones(uint32_t bits) { return __popc(bits); }
FUSED_PENALTIES_DEVICE int leading_zeros(uint32_t bits) { return __clz(int(bits)); }

FUSED_PENALTIES_DEVICE void atomic_add(int64_t* to, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
FUSED_PENALTIES_DEVICE void atomic_max(uint64_t* to, uint64_t value) {
    atomicMax(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
// Adds one and returns what was there.
FUSED_PENALTIES_DEVICE uint32_t atomic_next(uint32_t* counter) { return atomicAdd(counter, 1u); }
// Orders this thread's writes before those that follow, for every reader on the device.
FUSED_PENALTIES_DEVICE void fence() { __threadfence(); }
// Reads what atomics of other multiprocessors wrote, past the cache of this one, which may have an older value.
FUSED_PENALTIES_DEVICE int64_t fresh(const int64_t* from) { return __ldcg(reinterpret_cast<const long long*>(from)); }

#else

template <class T>
class PerLane {
public:
    T& operator[](int lane) { return values_[lane]; }
    const T& operator[](int lane) const { return values_[lane]; }

private:
    T values_[kLanes];
};

// Lanes have no order among themselves: every other phase runs them backwards, so that a phase in which one
// depends on another cannot pass the tests.
template <class Phase>
inline void each_lane(const Phase& phase) {
    static thread_local bool backwards = false;
    backwards = !backwards;
    for (int k = 0; k < kLanes; ++k) phase(backwards ? kLanes - 1 - k : k);
}

inline void barrier() {}
inline void in_order() {}
// Reads a byte, so that the address sanitizer ends the program where there is no memory.
inline void prefetch(const void* address) { (void)*static_cast<const volatile unsigned char*>(address); }
template <class Real>
inline Real not_zero(Real value) {
    return value;
}
using canon::magnitude;
inline float larger(float x, float y) { return std::fmax(x, y); }
inline double larger(double x, double y) { return std::fmax(x, y); }
inline float fused(float x, float y, float z) { return std::fma(x, y, z); }
inline double fused(double x, double y, double z) { return std::fma(x, y, z); }
template <class T>
inline T* in_device_memory(T* address) {
    return address;
}

template <class T>
inline PerLane<T> partner(const PerLane<T>& values, int mask) {
    PerLane<T> other;
    for (int lane = 0; lane < kLanes; ++lane) other[lane] = values[lane ^ mask];
    return other;
}

inline uint32_t ballot(const PerLane<bool>& values) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(values[lane]) << lane;
    return bits;
}

inline int count_ones(uint32_t bits) {
    int count = 0;
    for (; bits; bits &= bits - 1) ++count;
    return count;
}
inline int leading_zeros(uint32_t bits) {
    int count = 32;
    for (; bits; bits >>= 1) --count;
    return count;
}

inline void atomic_add(int64_t* to, int64_t value) { *to += value; }
inline void atomic_max(uint64_t* to, uint64_t value) {
    if (value > *to) *to = value;
}
inline uint32_t atomic_next(uint32_t* counter) { return (*counter)++; }
inline void fence() {}
inline int64_t fresh(const int64_t* from) { return *from; }

#endif

}  // namespace cuda
}  // namespace fused_penalties
