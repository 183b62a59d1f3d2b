#include "queue.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "runtime.hpp"

namespace fused_penalties {
namespace cuda {
namespace {

constexpr const char* kFile = "csrc/cuda/queue.cpp";

// Functions of the driver, whose library may not be linked, since it is only there where a GPU is. They return numbers
// of the runtime's errors.
struct Driver {
    int (*retain)(void** context, int device);
    int (*release)(int device);
    int (*push)(void* context);
    int (*pop)(void** context);

    Driver() {
        find(retain, "cuDevicePrimaryCtxRetain");
        find(release, "cuDevicePrimaryCtxRelease");
        find(push, "cuCtxPushCurrent");
        find(pop, "cuCtxPopCurrent");
    }

private:
    template <class Function>
    static void find(Function& function, const char* name) {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
        // As CUDA 12.0 has them: a driver refuses to look for what a newer one than itself would have.
        CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result));
        if (!found) CHECK(cudaErrorSymbolNotFound);
        function = reinterpret_cast<Function>(found);
    }
};

const Driver& driver() {
    static const Driver driver;
    return driver;
}

// While this lives, the thread may make calls that CUDA otherwise refuses as long as any thread captures a graph in the
// strict mode. A refused call would also spoil that graph.
class Relaxed {
public:
    Relaxed() : before_(exchange_capture_mode(kRelaxedCapture)) {}
    ~Relaxed() {
        auto before = static_cast<cudaStreamCaptureMode>(before_);
        cudaThreadExchangeStreamCaptureMode(&before);
    }
    Relaxed(const Relaxed&) = delete;
    Relaxed& operator=(const Relaxed&) = delete;

private:
    int before_;
};

struct DestroyEvent {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};

using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

Event new_event() {
    cudaEvent_t event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return Event(event);
}

bool passed(cudaEvent_t event) {
    const Relaxed relaxed;
    const cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady) CHECK(error);
    return error == cudaSuccess;
}

// Pinned memory that an upload is copied from: a copy from any other may wait for the stream. It is used again when its
// last copy is done, and never given back, which would wait for the device. To pin more may do that too; it is done
// only where all that is pinned, and large enough, is still copied from.
struct Staging {
    int device;
    size_t size;
    void* memory;
    Event copied;
};

struct Stagings {
    std::mutex mutex;
    std::deque<Staging> all;
};

Stagings& stagings() {
    static Stagings& stagings = *new Stagings;  // never destroyed: CUDA may be gone before
    return stagings;
}

Staging take_staging(int device, size_t bytes) {
    {
        Stagings& known = stagings();
        const std::lock_guard<std::mutex> lock(known.mutex);
        for (auto each = known.all.begin(); each != known.all.end(); ++each) {
            if (each->device != device || each->size < bytes || !passed(each->copied.get())) continue;
            Staging found = std::move(*each);
            known.all.erase(each);
            return found;
        }
    }
    Staging made{device, 4096, nullptr, new_event()};
    while (made.size < bytes) made.size *= 2;
    const Relaxed relaxed;
    CHECK(cudaMallocHost(&made.memory, made.size));
    return made;
}

// The number of the capture that a stream takes part in; 0 if it is in none.
unsigned long long capture_of(const Queue& queue) {
    cudaStreamCaptureStatus status;
    unsigned long long id = 0;
    CHECK(cudaStreamGetCaptureInfo(stream_of(queue), &status, &id));
    if (status == cudaStreamCaptureStatusInvalidated) return ~0ull;  // an error spoiled it, and it has no number
    return status == cudaStreamCaptureStatusNone ? 0 : id;
}

// A number that no other stream of the current device gets in this process. A handle is given to another stream once
// its own is destroyed.
unsigned long long id_of(const Queue& queue) {
    unsigned long long id = 0;
    CHECK(cudaStreamGetId(stream_of(queue), &id));
    return id;
}

// The default stream is never captured. CUDA may refuse to say so while another stream is, so it is not asked.
bool is_legacy(void* stream) { return stream == nullptr || stream == cudaStreamLegacy; }

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::string unavailable() {
    int devices = 0, major = 0, minor = 0, newest = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    for (int device = 0; device < devices && error == cudaSuccess; ++device) {
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
        newest = std::max(newest, 10 * major + minor);
    }
    if (error == cudaSuccess && newest >= 75) return "";
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0;
        cudaDriverGetVersion(&driver);
        return (driver ? "the GPU's driver is one for CUDA " + version(driver) : "there is no driver for a GPU") +
               "; wanted one for CUDA " + version(CUDART_VERSION / 1000 * 1000) + " (" + cudaGetErrorName(error) + ")";
    }
    return "there is no GPU to run on (" +
           (error != cudaSuccess ? std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error)
                                 : "its compute capability is " + std::to_string(newest / 10) + "." +
                                       std::to_string(newest % 10) + "; wanted at least 7.5") +
           ")";
}

// By the driver's stack of contexts: cudaSetDevice, to return to the device before, would make a context there, for
// which a thread that never used that device would pay with hundreds of megabytes of its memory.
OnDevice::OnDevice(int device) {
    int before;
    CHECK(cudaGetDevice(&before));
    if (before == device) return;
    void* context = nullptr;
    CHECK(static_cast<cudaError_t>(driver().retain(&context, device)));
    const auto error = static_cast<cudaError_t>(driver().push(context));
    if (error != cudaSuccess) driver().release(device);
    CHECK(error);
    switched_to_ = device;
}

OnDevice::~OnDevice() {
    if (switched_to_ < 0) return;
    void* context = nullptr;
    driver().pop(&context);
    driver().release(switched_to_);
}

int exchange_capture_mode(int mode) {
    static_assert(kRelaxedCapture == cudaStreamCaptureModeRelaxed, "CUDA's number");
    auto exchanged = static_cast<cudaStreamCaptureMode>(mode);
    CHECK(cudaThreadExchangeStreamCaptureMode(&exchanged));
    return exchanged;
}

bool capturing(const Queue& queue) {
    const OnDevice device(queue.device);
    return capture_of(queue) != 0;
}

bool wait(const Queue& queue, void* stream) {
    const OnDevice device(queue.device);
    const unsigned long long ours = capture_of(queue);
    const unsigned long long others = ours && is_legacy(stream) ? 0 : capture_of({queue.device, stream});
    if (ours && !others) return false;
    if (ours != others)
        throw std::runtime_error(
            "a stream that has to be waited for is captured into a graph, of which this call would become a part: the "
            "stream of this call is not captured, or into another one; wanted the same capture for both, or none");
    const Event event = new_event();
    CHECK(cudaEventRecord(event.get(), static_cast<cudaStream_t>(stream)));
    CHECK(cudaStreamWaitEvent(stream_of(queue), event.get()));
    return true;
}

void upload(const Queue& queue, void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    const OnDevice device(queue.device);
    Staging staging = take_staging(queue.device, bytes);
    memcpy(staging.memory, from, bytes);
    CHECK(cudaMemcpyAsync(to, staging.memory, bytes, cudaMemcpyHostToDevice, stream_of(queue)));
    CHECK(cudaEventRecord(staging.copied.get(), stream_of(queue)));
    // After an error it is not used again, since it may be copied from later.
    const std::lock_guard<std::mutex> lock(stagings().mutex);
    stagings().all.push_back(std::move(staging));
}

void clear(const Queue& queue, void* to, size_t bytes) {
    const OnDevice device(queue.device);
    CHECK(cudaMemsetAsync(to, 0, bytes, stream_of(queue)));
}

Turns::~Turns() {
    if (!event_) return;
    try {
        const OnDevice device(device_);
        cudaEventDestroy(static_cast<cudaEvent_t>(event_));
    } catch (const std::runtime_error&) {  // nothing works any more
    }
}

void Turns::wait(const Queue& queue) {
    if (!event_) return;
    const OnDevice device(queue.device);
    if (last_ == id_of(queue)) return;
    CHECK(cudaStreamWaitEvent(stream_of(queue), static_cast<cudaEvent_t>(event_)));
}

void Turns::done(const Queue& queue) {
    const OnDevice device(queue.device);
    const unsigned long long id = id_of(queue);
    if (!event_) event_ = new_event().release();
    device_ = queue.device;
    CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream_of(queue)));
    last_ = id;
}

void Turns::failed(const Queue& queue) noexcept {
    try {
        const OnDevice device(queue.device);
        try {
            done(queue);
        } catch (const std::runtime_error&) {  // no event stands for what is under way, and only waiting is left
            CHECK(cudaStreamSynchronize(stream_of(queue)));
        }
    } catch (const std::runtime_error&) {  // nothing works any more
    }
}

bool Turns::passed() const {
    if (!event_) return true;
    const OnDevice device(device_);
    return cuda::passed(static_cast<cudaEvent_t>(event_));
}

}  // namespace cuda
}  // namespace fused_penalties
