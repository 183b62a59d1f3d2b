#include <algorithm>
#include <atomic>

#include "finish.hpp"
#include "launch.hpp"
#include "program.hpp"
#include "runtime.hpp"

namespace fused_penalties {
namespace cuda {
namespace {

constexpr const char* kFile = "csrc/cuda/launch.cu";

constexpr int kWarps = 4;  // of a block of threads
constexpr int kThreads = kWarps * kLanes;
// Blocks of threads on one multiprocessor: with so many, enough loads are under way at a time to keep the memory busy.
constexpr int kResident = 4;
// So few that all warps read in one neighbourhood, so many that the search for a chunk's buffer takes little of the
// time.
constexpr uint64_t kBlocksPerChunk = 8;

__global__ void __launch_bounds__(kThreads, kResident) sum_kernel(const __grid_constant__ SumArguments arguments) {
    __shared__ WarpMemory memory[kWarps];
    const uint32_t warp = threadIdx.x / kLanes;
    sum(arguments, memory[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
    __syncthreads();
    bring_together(arguments.workspace, memory, kWarps, warp);
}

__global__ void __launch_bounds__(kThreads, kResident)
    sum_and_largest_kernel(const __grid_constant__ LargestArguments arguments) {
    __shared__ LargestMemory memory[kWarps];
    const uint32_t warp = threadIdx.x / kLanes;
    sum(arguments, memory[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
    __syncthreads();
    bring_together(arguments.workspace, memory, kWarps, warp);
}

__global__ void __launch_bounds__(kThreads, kResident)
    gradient_kernel(const __grid_constant__ GradientArguments arguments) {
    __shared__ WarpMemory memory[kWarps];
    const uint32_t warp = threadIdx.x / kLanes;
    gradient(arguments, memory[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
    __syncthreads();
    bring_together(arguments.workspace, memory, kWarps, warp);
}

__global__ void __launch_bounds__(kThreads, kResident)
    update_kernel(const __grid_constant__ UpdateArguments arguments) {
    __shared__ alignas(16) unsigned char stages[kWarps][kLanes * kStage];
    const uint32_t warp = threadIdx.x / kLanes;
    update(arguments, stages[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
}

__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ FinishArguments arguments) {
    __shared__ int64_t rows[kWarps][kBothLimbs], totals[kWarps][kBothLimbs];
    const uint32_t warp = threadIdx.x / kLanes;
    finish(arguments, rows[warp], totals[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
    __syncthreads();
    if (warp == 0) finish_totals(arguments, totals, kWarps, rows[0], gridDim.x);
}

uint64_t multiprocessors(int device) {
    constexpr int kDevices = 64;
    static std::atomic<int> known[kDevices];
    if (device < kDevices && known[device] > 0) return uint64_t(known[device]);
    int count = 0;
    CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    if (device < kDevices) known[device] = count;
    return uint64_t(count);
}

// Launches a kernel with enough warps for `work`, but no more than `most` blocks of threads on a multiprocessor.
template <class Arguments>
void start(const Queue& queue, void (*kernel)(Arguments), Arguments arguments, uint64_t work, int most) {
    const uint64_t wanted = (work + kWarps - 1) / kWarps;
    const uint64_t blocks = std::max<uint64_t>(1, std::min(wanted, multiprocessors(queue.device) * uint64_t(most)));
    void* parameters[] = {&arguments};
    CHECK(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(kThreads), parameters, 0,
                           stream_of(queue)));
}

// Launches a kernel for the blocks [first, end) of the table.
template <class Arguments>
void start_range(const Queue& queue, void (*kernel)(Arguments), Arguments arguments, uint64_t first, uint64_t end) {
    if (first == end) return;
    const uint64_t blocks = end - first, warps = multiprocessors(queue.device) * kResident * kWarps;
    // Every warp gets as many chunks as any other.
    const uint64_t rounds = (blocks + warps * kBlocksPerChunk - 1) / (warps * kBlocksPerChunk);
    arguments.range = {first, end, std::min(blocks, warps * rounds)};
    start(queue, kernel, arguments, arguments.range.chunks, kResident);
}

template <class Arguments>
void start_change(const Queue& queue, void (*kernel)(Arguments), const Arguments& arguments, const HostTable& table) {
    const OnDevice device(queue.device);
    if (!table.one_by_one()) return start_range(queue, kernel, arguments, 0, table.blocks());
    for (size_t i = 0; i < table.buffers(); ++i) start_range(queue, kernel, arguments, table.begin(i), table.end(i));
}

}  // namespace

std::string toolkit() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

void prepare(int device) {
    const OnDevice on(device);
    cudaFuncAttributes attributes;
    CHECK(cudaFuncGetAttributes(&attributes, sum_kernel));
    CHECK(cudaFuncGetAttributes(&attributes, sum_and_largest_kernel));
    CHECK(cudaFuncGetAttributes(&attributes, gradient_kernel));
    CHECK(cudaFuncGetAttributes(&attributes, update_kernel));
    CHECK(cudaFuncGetAttributes(&attributes, finish_kernel));
}

void launch(const Queue& queue, const HostTable& table, SumArguments arguments) {
    const OnDevice device(queue.device);
    start_range(queue, sum_kernel, arguments, 0, table.blocks());
}

void launch(const Queue& queue, const HostTable& table, LargestArguments arguments) {
    const OnDevice device(queue.device);
    start_range(queue, sum_and_largest_kernel, arguments, 0, table.blocks());
}

void launch(const Queue& queue, const HostTable& table, GradientArguments arguments) {
    start_change(queue, gradient_kernel, arguments, table);
}

void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments) {
    start_change(queue, update_kernel, arguments, table);
}

void launch(const Queue& queue, const FinishArguments& arguments) {
    const OnDevice device(queue.device);
    start(queue, finish_kernel, arguments, arguments.table.n, 2);
}

}  // namespace cuda
}  // namespace fused_penalties
