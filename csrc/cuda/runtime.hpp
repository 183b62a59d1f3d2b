// CUDA's runtime, with its errors thrown.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "queue.hpp"

namespace fused_penalties {
namespace cuda {

// Throws, and takes the error off the runtime's record, where the next call would find it.
inline void check(cudaError_t error, const char* file, int line) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

// In a file that says in kFile which one it is: __FILE__ would name the folder of the build.
#define CHECK(call) check(call, kFile, __LINE__)

inline cudaStream_t stream_of(const Queue& queue) { return static_cast<cudaStream_t>(queue.stream); }

}  // namespace cuda
}  // namespace fused_penalties
