// The kernels as the binding sees them: put on a stream, and not waited for.
#pragma once

#include <string>

#include "arguments.hpp"
#include "queue.hpp"

namespace fused_penalties {
namespace cuda {

// The toolkit that this was compiled with, "13.0".
std::string toolkit();

// Loads the kernels onto the device: CUDA would do so at the first launch, and may not while a graph is captured.
void prepare(int device);

// Each works on all blocks of its table; the arguments' range is set here.
void launch(const Queue& queue, const HostTable& table, SumArguments arguments);
void launch(const Queue& queue, const HostTable& table, LargestArguments arguments);
void launch(const Queue& queue, const HostTable& table, GradientArguments arguments);
void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments);
void launch(const Queue& queue, const FinishArguments& arguments);

}  // namespace cuda
}  // namespace fused_penalties
