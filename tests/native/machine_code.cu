// The parts of the kernels one by one, for test_machine_code.py to see what the compiler made of each: in the kernels
// themselves the code of all element types lies together. Nothing here is ever run.
#include "cuda/program.hpp"

namespace fused_penalties {
namespace cuda {

struct Block {
    Place place;
    const Axis* axes;
    uint64_t first;
    int n;

    template <class Type>
    FUSED_PENALTIES_DEVICE Elements<typename Type::Element> elements() const {
        return {place, axes, first, n};
    }
};

FUSED_PENALTIES_DEVICE void keep(double* to, const PerLane<double>& sums, bool wide) {
    each_lane([&](int lane) { to[lane] = wide ? 0 : sums[lane]; });
}

#define SUMS(Type)                                                                                         \
    extern "C" __global__ void sums_##Type(const __grid_constant__ Block block, double* to) {              \
        __shared__ WarpMemory memory;                                                                      \
        bool wide = false;                                                                                 \
        const PerLane<double> sums = tree<canon::Type>(block.elements<canon::Type>(), memory.stage, wide); \
        keep(to, sums, wide);                                                                              \
    }

#define LARGEST(Type)                                                                               \
    extern "C" __global__ void largest_##Type(const __grid_constant__ Block block, double* to,      \
                                              const __grid_constant__ LargestArguments arguments) { \
        __shared__ LargestMemory memory;                                                            \
        bool wide = false;                                                                          \
        Largest largest(arguments, memory);                                                         \
        PerLane<Accumulators<canon::Type, true>> accumulators;                                      \
        accumulate(block.elements<canon::Type>(), memory.stage, accumulators);                      \
        largest.take(accumulators);                                                                 \
        const PerLane<double> sums = sums_of(accumulators, wide);                                   \
        largest.take_nan(sums);                                                                     \
        largest.end();                                                                              \
        keep(to, sums, wide);                                                                       \
    }

#define DIFFERENTIATE(Type, Target)                                                                                \
    extern "C" __global__ void differentiate_##Type##_##Target(                                                    \
        const __grid_constant__ Block weights, const __grid_constant__ Block grads, Factors factors, double* to) { \
        __shared__ WarpMemory memory;                                                                              \
        bool wide = false;                                                                                         \
        const PerLane<double> sums = differentiate<canon::Type, canon::Target>(                                    \
            weights.elements<canon::Type>(), grads.elements<canon::Target>(), factors, false, memory.stage, wide); \
        keep(to, sums, wide);                                                                                      \
    }

#define STORE_GRADIENT(Type, Target)                                                                                 \
    extern "C" __global__ void store_##Type##_##Target(const __grid_constant__ Block weights,                        \
                                                       const __grid_constant__ Block grads, Factors factors) {       \
        __shared__ WarpMemory memory;                                                                                \
        store_gradient<canon::Type, canon::Target>(weights.elements<canon::Type>(), grads.elements<canon::Target>(), \
                                                   factors, memory.stage);                                           \
    }

// The formulas alone, one element to a thread. `quotient` is the division of `proximal` and nothing else.
#define FORMULA(name, Type, formula)                                                                         \
    extern "C" __global__ void name##_##Type(const canon::Type::Element* from, canon::Type::Element* to,     \
                                             canon::Compute<canon::Type> x, canon::Compute<canon::Type> y) { \
        const canon::Compute<canon::Type> w = canon::Type::read(from[threadIdx.x]);                          \
        const canon::Compute<canon::Type> g = canon::Type::read(to[threadIdx.x]);                            \
        to[threadIdx.x] = canon::Type::write(formula);                                                       \
    }
#define FORMULAS(Type)                                                                                              \
    FORMULA(gradient, Type, canon::gradient(w, g, x, y))                                                            \
    FORMULA(stored, Type, canon::stored_gradient(w, x, y))                                                          \
    FORMULA(scale, Type, canon::scale(w, x))                                                                        \
    FORMULA(proximal, Type, canon::proximal(w, x, y))                                                               \
    FORMULA(quotient, Type, canon::quiet(w / y))                                                                    \
    extern "C" __global__ void replace_##Type(const __grid_constant__ Block block, canon::Compute<canon::Type> x) { \
        __shared__ WarpMemory memory;                                                                               \
        const auto elements = block.elements<canon::Type>();                                                        \
        replace<canon::Type, canon::Type>(elements, elements, memory.stage,                                         \
                                          [&](canon::Compute<canon::Type> w) { return canon::scale(w, x); });       \
    }

#define PARTS(dtype, Type)     \
    SUMS(Type)                 \
    LARGEST(Type)              \
    DIFFERENTIATE(Type, Type)  \
    STORE_GRADIENT(Type, Type) \
    FORMULAS(Type)
FUSED_PENALTIES_DTYPES(PARTS)
SUMS(WideBFloat16)
DIFFERENTIATE(Float16, Float32)
DIFFERENTIATE(BFloat16, Float32)
STORE_GRADIENT(Float16, Float32)
STORE_GRADIENT(BFloat16, Float32)

}  // namespace cuda
}  // namespace fused_penalties
