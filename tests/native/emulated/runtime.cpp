// The functions of cuda_runtime.h, over the emulated streams.
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <utility>

#include "cuda_runtime.h"
#include "streams.hpp"

using namespace fused_penalties::emulation;

struct CUevent_st : Event {};

const char* cudaGetErrorName(cudaError_t error) {
    constexpr const char* kNames[] = {"cudaSuccess",
                                      "cudaErrorInvalidValue",
                                      "cudaErrorMemoryAllocation",
                                      "cudaErrorInsufficientDriver",
                                      "cudaErrorInvalidResourceHandle",
                                      "cudaErrorSymbolNotFound",
                                      "cudaErrorNotReady",
                                      "cudaErrorLaunchFailure",
                                      "cudaErrorStreamCaptureUnsupported",
                                      "cudaErrorStreamCaptureMerge",
                                      "cudaErrorStreamCaptureImplicit",
                                      "cudaErrorStreamCaptureIsolation",
                                      "cudaErrorCapturedEvent"};
    return kNames[error];
}

const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

// Calls run(stream) for a stream of the current device.
template <class Run>
cudaError_t on_stream(cudaStream_t handle, const Run& run) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    Stream* stream = find_stream(current_device(), handle);
    return stream ? run(*stream) : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaGetDeviceCount(int* count) {
    notice();
    if (driver_version < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
    *count = kDevices;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    notice();
    *value = 9;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    notice();
    *version = driver_version;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    notice();
    *device = current_device();
    return cudaSuccess;
}

// The driver's contexts are named by the address of the number of their device.

static int numbers[kDevices] = {0, 1};

static int retain(void** context, int device) {
    const Lock lock(mutex);
    notice();
    contexts.insert(device);
    *context = &numbers[device];
    return 0;
}

static int release(int) {
    notice();
    return 0;
}

static int push(void* context) {
    notice();
    pushed.push_back(*static_cast<int*>(context));
    return 0;
}

static int pop(void** context) {
    notice();
    *context = &numbers[pushed.back()];
    pushed.pop_back();
    return 0;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    notice();
    if (int(version) > driver_version) return cudaErrorInvalidValue;
    const std::map<std::string, void*> known = {{"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(retain)},
                                                {"cuDevicePrimaryCtxRelease", reinterpret_cast<void*>(release)},
                                                {"cuCtxPushCurrent", reinterpret_cast<void*>(push)},
                                                {"cuCtxPopCurrent", reinterpret_cast<void*>(pop)}};
    *function = known.at(name);
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    const Lock lock(mutex);
    notice_on_device();
    const auto before = static_cast<cudaStreamCaptureMode>(capture_mode);
    capture_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id) {
    return on_stream(handle, [&](const Stream& stream) {
        if (joins_capture(stream)) return cudaErrorStreamCaptureImplicit;
        *status = stream.graph ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
        if (stream.graph) *id = stream.graph->id;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
    return on_stream(handle, [&](const Stream& stream) {
        *id = stream.id;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        if (stream.graph) return cudaErrorStreamCaptureUnsupported;
        run_all(stream);
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    *event = new CUevent_st{{current_device()}};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const Lock lock(mutex);
    notice_on_device();
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) { return record(*event, stream); });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event) {
    return on_stream(handle, [&](Stream& stream) { return put_wait(stream, *event); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    if (spoils()) return cudaErrorStreamCaptureUnsupported;
    if (event->graph) return cudaErrorCapturedEvent;
    return !event->stream || *event->reached ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    const Lock lock(mutex);
    if (const cudaError_t error = attempt()) return error;
    if (spoils()) return cudaErrorStreamCaptureUnsupported;
    *memory = new char[bytes];
    pinned[static_cast<char*>(*memory)] = bytes;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        const auto after = pinned.upper_bound(static_cast<const char*>(from));
        const auto* start = static_cast<const char*>(from);
        if (after != pinned.begin() && start + bytes <= std::prev(after)->first + std::prev(after)->second) {
            put(stream, [=] { memcpy(to, from, bytes); });
            return cudaSuccess;
        }
        if (stream.graph) return cudaErrorStreamCaptureUnsupported;
        constexpr size_t kAtOnce = 64 << 10;
        if (bytes > kAtOnce) run_all(stream);
        put(stream, [to, copy = std::string(start, bytes)] { memcpy(to, copy.data(), copy.size()); });
        return cudaSuccess;
    });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
    return on_stream(handle, [&](Stream& stream) {
        put(stream, [=] { memset(to, value, bytes); });
        return cudaSuccess;
    });
}
