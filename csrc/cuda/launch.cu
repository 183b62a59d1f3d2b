#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "launch.hpp"
#include "program.hpp"

namespace fused_penalties {
namespace cuda {
namespace {

constexpr int kWarps = 4;  // of a block of threads
constexpr int kThreads = kWarps * kLanes;
// With so many blocks of threads on a multiprocessor, enough bytes are in flight to fill the memory's latency. The
// gradient reads two buffers at a time and has more to keep.
constexpr int kResident = 4, kResidentGradient = 3;
// Small enough that the last chunks end together, large enough that adding a chunk's sums to the buffer's, with
// atomics, is nothing.
constexpr uint64_t kChunksPerWarp = 4, kMostBlocksPerChunk = 8;

__global__ void __launch_bounds__(kThreads, kResident) sum_kernel(const __grid_constant__ SumArguments arguments) {
    __shared__ Shared shared[kWarps];
    const uint32_t warp = threadIdx.x / kLanes;
    sum(arguments, shared[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
}

__global__ void __launch_bounds__(kThreads, kResidentGradient)
    gradient_kernel(const __grid_constant__ GradientArguments arguments) {
    __shared__ Shared shared[kWarps];
    const uint32_t warp = threadIdx.x / kLanes;
    gradient(arguments, shared[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
}

__global__ void __launch_bounds__(kThreads, kResident)
    update_kernel(const __grid_constant__ UpdateArguments arguments) {
    __shared__ alignas(16) unsigned char stages[kWarps][kLanes * kStage];
    const uint32_t warp = threadIdx.x / kLanes;
    update(arguments, stages[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
}

__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ FinishArguments arguments) {
    __shared__ int64_t rows[kWarps][kRow], totals[kWarps][kRow];
    const uint32_t warp = threadIdx.x / kLanes;
    finish(arguments, rows[warp], totals[warp], blockIdx.x * kWarps + warp, gridDim.x * kWarps);
}

// Throws, and takes the error off the runtime's record, where the next call would find it.
void check(cudaError_t error, int line) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error("csrc/cuda/launch.cu:" + std::to_string(line) + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

#define CHECK(call) check(call, __LINE__)

// Makes a device the current one, and the one before afterwards.
class OnDevice {
public:
    explicit OnDevice(int device) {
        CHECK(cudaGetDevice(&before_));
        if (before_ != device) CHECK(cudaSetDevice(device));
        changed_ = before_ != device;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

cudaStream_t stream_of(const Queue& queue) { return static_cast<cudaStream_t>(queue.stream); }

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
void start_range(const Queue& queue, void (*kernel)(Arguments), Arguments arguments, int resident, uint64_t first,
                 uint64_t end) {
    if (first == end) return;
    const uint64_t warps = multiprocessors(queue.device) * uint64_t(resident) * kWarps;
    const uint64_t step =
        std::min(std::max<uint64_t>((end - first) / (warps * kChunksPerWarp), 1), kMostBlocksPerChunk);
    arguments.range = {first, end, step};
    start(queue, kernel, arguments, (end - first + step - 1) / step, resident);
}

template <class Arguments>
void start_change(const Queue& queue, void (*kernel)(Arguments), const Arguments& arguments, int resident,
                  const HostTable& table) {
    const OnDevice device(queue.device);
    if (!table.in_turn()) return start_range(queue, kernel, arguments, resident, 0, table.blocks());
    for (size_t i = 0; i < table.buffers(); ++i)
        start_range(queue, kernel, arguments, resident, table.begin(i), table.end(i));
}

}  // namespace

std::string toolkit() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::string unavailable() {
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    cudaFuncAttributes attributes;
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, sum_kernel);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

bool capturing(const Queue& queue) {
    const OnDevice device(queue.device);
    cudaStreamCaptureStatus status;
    CHECK(cudaStreamIsCapturing(stream_of(queue), &status));
    return status != cudaStreamCaptureStatusNone;
}

void upload(const Queue& queue, void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    const OnDevice device(queue.device);
    CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(queue)));
}

void clear(const Queue& queue, void* to, size_t bytes) {
    const OnDevice device(queue.device);
    CHECK(cudaMemsetAsync(to, 0, bytes, stream_of(queue)));
}

void launch(const Queue& queue, const HostTable& table, SumArguments arguments) {
    const OnDevice device(queue.device);
    start_range(queue, sum_kernel, arguments, kResident, 0, table.blocks());
}

void launch(const Queue& queue, const HostTable& table, GradientArguments arguments) {
    start_change(queue, gradient_kernel, arguments, kResidentGradient, table);
}

void launch(const Queue& queue, const HostTable& table, UpdateArguments arguments) {
    start_change(queue, update_kernel, arguments, kResident, table);
}

void launch(const Queue& queue, const FinishArguments& arguments) {
    const OnDevice device(queue.device);
    start(queue, finish_kernel, arguments, arguments.table.n, 1);
}

Turns::~Turns() {
    if (event_) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Turns::wait(const Queue& queue) {
    // The default stream of each thread has one name for all of them.
    if (!event_ || (last_ == queue.stream && queue.stream != cudaStreamPerThread)) return;
    const OnDevice device(queue.device);
    CHECK(cudaStreamWaitEvent(stream_of(queue), static_cast<cudaEvent_t>(event_)));
}

void Turns::done(const Queue& queue) {
    const OnDevice device(queue.device);
    if (!event_) {
        cudaEvent_t event;
        CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        event_ = event;
    }
    CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream_of(queue)));
    last_ = queue.stream;
}

}  // namespace cuda
}  // namespace fused_penalties
