#include "tensors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>

namespace fused_penalties {
namespace {

// A subclass of torch's tensor may make its values when an operation asks for them (masked, distributed and fake
// tensors do): its memory is not what it stands for. One that is not initialized yet gets its memory later.
bool has_own_values(py::handle type) {
    const py::object dispatch = py::getattr(type, "__torch_dispatch__", py::none());
    return dispatch.is_none() || (PyCFunction_Check(dispatch.ptr()) && !py::hasattr(type, "materialize"));
}

}  // namespace

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    const py::object capsule = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    if (!capsule || !PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        PyErr_Clear();
        return nullptr;
    }
    const auto* api =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api->version.major != 1 || !api->tensor_from_object) return nullptr;
    return has_own_values(reinterpret_cast<PyObject*>(type)) ? api : nullptr;
}

PyObject* cupy_type() {
    const py::object cupy = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("cupy").ptr()));
    const py::object type = cupy ? py::getattr(cupy, "ndarray", py::none()) : py::none();
    return type.is_none() ? nullptr : type.ptr();
}

bool on_host(const dlpack::Device& device) {
    return device.type == dlpack::kCpu || device.type == dlpack::kCudaHost || device.type == dlpack::kRocmHost;
}

bool on_cuda(const dlpack::Device& device) {
    return device.type == dlpack::kCuda || device.type == dlpack::kCudaManaged;
}

dlpack::Device plain(const dlpack::Device& device) {
    if (on_host(device)) return {dlpack::kCpu, 0};
    if (on_cuda(device)) return {dlpack::kCuda, device.id};
    return device;
}

std::string name_of(const dlpack::Device& device) {
    if (on_host(device)) return "the CPU";
    const std::string id = ":" + std::to_string(device.id);
    switch (device.type) {
        case dlpack::kCuda:
        case dlpack::kCudaManaged: return "cuda" + id;
        case 8: return "metal" + id;
        case 10: return "rocm" + id;
        case 14: return "oneapi" + id;
        default: return "device " + std::to_string(device.type) + id;
    }
}

const char* lay_out(const dlpack::Tensor& tensor, View& view, int64_t* strides) {
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    constexpr const char* kTooFar = "has elements beyond the end of memory";
    if (view.rank > 0 && !view.shape) return "has dimensions but no shape";
    const int64_t* const end = view.shape + view.rank;
    if (std::any_of(view.shape, end, [](int64_t extent) { return extent < 0; })) return "has a negative shape";
    view.data = static_cast<unsigned char*>(tensor.data);
    view.dense = true;
    std::fill_n(strides, view.rank, 0);
    if (std::find(view.shape, end, 0) != end) return nullptr;
    if (!tensor.data) return "has a shape but no data to read";

    const int64_t item = itemsize(view.dtype);
    int64_t dense_stride = item;
    uint64_t below = 0, above = uint64_t(item);  // bytes that the elements reach from the first one
    for (int k = view.rank; k-- > 0;) {
        const int64_t extent = view.shape[k];
        if (extent == 1) continue;  // its stride means nothing, and is whatever it is
        strides[k] = dense_stride;
        if (tensor.strides) {
            if (tensor.strides[k] > kMost / item || tensor.strides[k] < -(kMost / item)) return kTooFar;
            strides[k] = tensor.strides[k] * item;
        }
        view.dense = view.dense && strides[k] == dense_stride;
        const int64_t step = std::abs(strides[k]);
        if (step > kMost / (extent - 1)) return kTooFar;
        uint64_t& reach = strides[k] < 0 ? below : above;
        reach += uint64_t(step * (extent - 1));
        if (reach > uint64_t(kMost)) return kTooFar;
        if (dense_stride > kMost / extent) return "has more elements than fit in memory";
        dense_stride *= extent;
    }
    const auto start = reinterpret_cast<uintptr_t>(tensor.data);
    if (tensor.byte_offset > UINTPTR_MAX - start) return kTooFar;
    const uintptr_t first = start + uintptr_t(tensor.byte_offset);
    if (below > first || above > UINTPTR_MAX - first) return kTooFar;
    view.data += tensor.byte_offset;
    return nullptr;
}

uint64_t View::count() const {
    uint64_t count = 1;
    for (int k = 0; k < rank; ++k) count *= uint64_t(shape[k]);
    return count;
}

}  // namespace fused_penalties
