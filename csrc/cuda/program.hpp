// What one warp does in the kernels that sum and change: it walks its part of the line of blocks, sums or changes each
// block, and adds the sums up.
#pragma once

#include "changes.hpp"
#include "largest.hpp"
#include "line.hpp"
#include "partial.hpp"

namespace fused_penalties {
namespace cuda {

// What benchmarks may choose: whether the gradient asks for the next block's memory before it works on this one.
#if !defined(FUSED_PENALTIES_GPU_GRADIENT_PREFETCH)
#define FUSED_PENALTIES_GPU_GRADIENT_PREFETCH 0
#endif
constexpr bool kGradientPrefetch = FUSED_PENALTIES_GPU_GRADIENT_PREFETCH != 0;

FUSED_PENALTIES_DEVICE double value_of(const Number& number) {
    if (!number.on_device) return number.known;
    return number.wide ? *static_cast<const double*>(number.on_device) : *static_cast<const float*>(number.on_device);
}

FUSED_PENALTIES_DEVICE bool penalized(const Coefficients& coefficients, uint32_t i) {
    return coefficients.l1[i] != 0 || coefficients.l2[i] != 0;
}

// The wide rule for a block of bfloat16.
FUSED_PENALTIES_DEVICE PerLane<double> wide_tree(const Table& table, const Buffer& buffer, uint64_t first, int n,
                                                 unsigned char* stage) {
    bool wide;
    return tree<canon::WideBFloat16>(Elements<uint16_t>(buffer.weights, table.axes, first, n), stage, wide);
}

// The sums of all blocks of the range, into the workspace, and the largest magnitudes if LargestArguments ask for them;
// `bring_together` has to follow.
template <class Arguments>
FUSED_PENALTIES_DEVICE void sum(const Arguments& arguments, typename LargestFor<Arguments>::Memory& memory,
                                uint32_t warp, uint32_t warps) {
    const Table& table = arguments.table;
    Partial partial(arguments.workspace, memory);
    LargestFor<Arguments> largest(arguments, memory);
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              if (arguments.coefficients.l1 && !penalized(arguments.coefficients, i)) return;
              partial.begin(i, buffer);
              largest.begin(i);
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  PerLane<double> sums;
                  bool wide = false;
                  with_type(buffer.weights.dtype, [&](auto type) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      const Elements<typename Type::Element> elements(buffer.weights, table.axes, first, n);
                      PerLane<Accumulators<Type, decltype(largest)::kSought>> accumulators;
                      accumulate(elements, memory.stage, accumulators);
                      largest.take(accumulators);
                      sums = sums_of(accumulators, wide);
                  });
                  largest.take_nan(sums);
                  partial.add(wide ? wide_tree(table, buffer, first, n, memory.stage) : sums);
              });
          });
    largest.end();
}

// Calls run(type, target) with the types of a buffer's weights and of its gradient.
template <class Run>
FUSED_PENALTIES_DEVICE void with_types(const Buffer& buffer, const Run& run) {
    with_type(buffer.weights.dtype, [&](auto type) FUSED_PENALTIES_INLINE {
        if constexpr (canon::is_narrow<decltype(type)>)
            if (buffer.target.dtype == DType::float32) return run(type, canon::Float32{});
        run(type, type);
    });
}

// Asks for elements [first, end) of a buffer, if they are contiguous, to be brought to the GPU's second cache.
FUSED_PENALTIES_DEVICE void prefetch_elements(const Place& place, uint64_t first, uint64_t end) {
    constexpr uint64_t kSector = 32;  // the least that is brought
    if (place.rank != 0) return;
    const unsigned char* from = place.data + first * uint64_t(itemsize(place.dtype));
    const uint64_t bytes = (end - first) * uint64_t(itemsize(place.dtype));
    each_lane([&](int lane) {
        for (uint64_t at = uint64_t(lane) * kSector; at < bytes; at += kLanes * kSector) prefetch(from + at);
    });
}

// The gradient, and the sums in the same read; `bring_together` has to follow.
FUSED_PENALTIES_DEVICE void gradient(const GradientArguments& arguments, WarpMemory& memory, uint32_t warp,
                                     uint32_t warps) {
    const Table& table = arguments.table;
    const double upstream = value_of(arguments.upstream);
    Partial partial(arguments.workspace, memory);
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              const double l1 = arguments.coefficients.l1[i], l2 = arguments.coefficients.l2[i];
              if (l1 == 0 && l2 == 0) return;
              const Factors factors = canon::factors_of(ChangeKind::gradient, l1, l2, upstream);
              const DType dtype = buffer.weights.dtype;
              const bool idle = !buffer.target.data || canon::is_idle(ChangeKind::gradient, dtype, factors);
              if (idle && !arguments.sum) return;
              partial.begin(i, buffer);
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  if constexpr (kGradientPrefetch) {
                      const uint64_t each = uint64_t(block_elements(dtype)), next = first + each;
                      if (next < end * each) {
                          const uint64_t stop = next + each < buffer.count ? next + each : buffer.count;
                          prefetch_elements(buffer.weights, next, stop);
                          if (!idle) prefetch_elements(buffer.target, next, stop);
                      }
                  }
                  PerLane<double> sums;
                  bool wide = false;
                  with_types(buffer, [&](auto type, auto target) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      using Target = decltype(target);
                      const Elements<typename Type::Element> weights(buffer.weights, table.axes, first, n);
                      const Elements<typename Target::Element> grads(buffer.target, table.axes, first, n);
                      sums = differentiate<Type, Target>(weights, grads, factors, idle, memory.stage, wide);
                  });
                  if (!arguments.sum) return;
                  partial.add(wide ? wide_tree(table, buffer, first, n, memory.stage) : sums);
              });
          });
}

// A change that takes no sums.
FUSED_PENALTIES_DEVICE void update(const UpdateArguments& arguments, unsigned char* stage, uint32_t warp,
                                   uint32_t warps) {
    const Table& table = arguments.table;
    const ChangeKind kind = arguments.kind;
    const double number = value_of(arguments.number);
    if (kind == ChangeKind::clip && number == 1) return;
    sweep(table, arguments.range, warp, warps,
          [&](uint32_t i, const Buffer& buffer, uint64_t begin, uint64_t end) FUSED_PENALTIES_INLINE {
              if (!buffer.target.data) return;  // a gradient that is not there
              double l1 = 0, l2 = 0;
              if (arguments.coefficients.l1) {
                  l1 = arguments.coefficients.l1[i];
                  l2 = arguments.coefficients.l2[i];
              }
              if (!concerns(kind, l1, l2)) return;
              const Factors factors = canon::factors_of(kind, l1, l2, number);
              if (canon::is_idle(kind, buffer.weights.dtype, factors)) return;
              each_block(buffer, begin, end, [&](uint64_t first, int n) FUSED_PENALTIES_INLINE {
                  if (kind == ChangeKind::stored_gradient)
                      return with_types(buffer, [&](auto type, auto target) FUSED_PENALTIES_INLINE {
                          using Type = decltype(type);
                          using Target = decltype(target);
                          const Elements<typename Type::Element> weights(buffer.weights, table.axes, first, n);
                          const Elements<typename Target::Element> grads(buffer.target, table.axes, first, n);
                          store_gradient<Type, Target>(weights, grads, factors, stage);
                      });
                  with_type(buffer.weights.dtype, [&](auto type) FUSED_PENALTIES_INLINE {
                      using Type = decltype(type);
                      using Real = canon::Compute<Type>;
                      const Real x = Real(factors.x), y = Real(factors.y);
                      const Elements<typename Type::Element> elements(buffer.target, table.axes, first, n);
                      const auto change = [&](const auto& formula) FUSED_PENALTIES_INLINE {
                          replace<Type, Type>(elements, elements, stage, formula);
                      };
                      switch (kind) {
                          case ChangeKind::gradient:         // has a kernel of its own
                          case ChangeKind::stored_gradient:  // reads weights
                              return;
                          case ChangeKind::proximal: return change([&](Real w) { return canon::proximal(w, x, y); });
                          case ChangeKind::decay:
                          case ChangeKind::clip: return change([&](Real w) { return canon::scale(w, x); });
                      }
                  });
              });
          });
}

}  // namespace cuda
}  // namespace fused_penalties
