#include "borrow.hpp"

#include <algorithm>
#include <atomic>
#include <set>
#include <tuple>

namespace fused_penalties {
namespace {

constexpr const char* kWantedDtypes = "float16, bfloat16, float32 or float64";

// NumPy's type numbers; those of other packages' types start at kFirstUserType and are given at run time.
constexpr int kHalf = 23, kSingle = 11, kDouble = 12, kFirstUserType = 256;
constexpr int kContiguous = 1 | 2;  // C or Fortran order: dense either way

[[noreturn]] void wrong_dtype(const std::string& label, const std::string& dtype) {
    throw py::type_error(label + ": dtype " + dtype + " is not supported; wanted " + kWantedDtypes);
}

bool is_bfloat16(int type_number, py::handle dtype) {
    static std::atomic<int> known{-1};
    if (type_number == known.load(std::memory_order_relaxed)) return true;
    if (py::str(dtype.attr("name")).cast<std::string>() != "bfloat16") return false;
    known.store(type_number, std::memory_order_relaxed);
    return true;
}

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    const py::object capsule = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    if (!capsule || !PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        PyErr_Clear();
        return nullptr;
    }
    const auto* api =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return api->version.major == 1 && api->tensor_from_object ? api : nullptr;
}

bool on_host(const dlpack::Device& device) {
    return device.type == dlpack::kCpu || device.type == dlpack::kCudaHost || device.type == dlpack::kRocmHost;
}

std::string name_of(const dlpack::Device& device) {
    if (on_host(device)) return "the CPU";
    const std::string id = ":" + std::to_string(device.id);
    switch (device.type) {
        case dlpack::kCuda:
        case 13: return "cuda" + id;
        case 8: return "metal" + id;
        case 10: return "rocm" + id;
        case 14: return "oneapi" + id;
        default: return "device " + std::to_string(device.type) + id;
    }
}

// Joins neighbours that one longer axis can replace.
void merge_neighbours(std::vector<Axis>& axes) {
    size_t kept = 0;
    for (size_t k = 1; k < axes.size(); ++k) {
        Axis& outer = axes[kept];
        if (outer.stride == axes[k].extent * axes[k].stride) {
            outer = {outer.extent * axes[k].extent, axes[k].stride};
        } else {
            axes[++kept] = axes[k];
        }
    }
    if (!axes.empty()) axes.resize(kept + 1);
}

}  // namespace

Borrowed::Borrowed(const py::object& items, const py::object& names, bool single, bool unique)
    : items_(items), names_(names), single_(single), array_type_(py::detail::npy_api::get().PyArray_Type_) {
    const size_t n = items_.size();
    spans_.reserve(n);
    for (size_t i = 0; i < n; ++i) add(py::handle(PyTuple_GET_ITEM(items_.ptr(), Py_ssize_t(i))), i);
    check_devices();
    if (unique) drop_repeats();
}

void Borrowed::add(py::handle item, size_t i) {
    if (Py_TYPE(item.ptr()) == array_type_) return add_array(item, i);
    if (Py_TYPE(item.ptr()) != exchange_type_) {
        exchange_type_ = Py_TYPE(item.ptr());
        exchange_ = exchange_api(exchange_type_);
    }
    dlpack::Tensor tensor;
    if (exchange_) {
        if (exchange_->tensor_from_object(item.ptr(), &tensor) == 0) return add_tensor(tensor, i);
        PyErr_Clear();  // the slow way may still know one, and says better what is wrong
    }
    add_adapted(item, i);
}

void Borrowed::add_array(py::handle item, size_t i) {
    const auto* array = py::detail::array_proxy(item.ptr());
    const auto* dtype = py::detail::array_descriptor_proxy(array->descr);
    Span span{};
    if (dtype->type_num == kSingle) {
        span.dtype = DType::float32;
    } else if (dtype->type_num == kDouble) {
        span.dtype = DType::float64;
    } else if (dtype->type_num == kHalf) {
        span.dtype = DType::float16;
    } else if (dtype->type_num >= kFirstUserType && is_bfloat16(dtype->type_num, array->descr)) {
        span.dtype = DType::bfloat16;
    } else {
        wrong_dtype(label(i), py::str(py::handle(array->descr)).cast<std::string>());
    }
    span.data = reinterpret_cast<const unsigned char*>(array->data);
    span.swapped = dtype->byteorder == (PY_BIG_ENDIAN ? '<' : '>');
    static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "64-bit only");
    const auto* shape = reinterpret_cast<const int64_t*>(array->dimensions);
    const auto* strides = reinterpret_cast<const int64_t*>(array->strides);
    if (array->flags & kContiguous) {
        span.count = 1;
        for (int k = 0; k < array->nd; ++k) span.count *= uint64_t(shape[k]);
        spans_.push_back(span);
    } else {
        add_layout(span, array->nd, shape, strides);
    }
}

void Borrowed::add_tensor(const dlpack::Tensor& tensor, size_t i) {
    Span span{};
    if (!on_host(tensor.device)) {
        devices_.resize(i, {dlpack::kCpu, 0});
        devices_.push_back(tensor.device);
        spans_.push_back(span);
        return;
    }
    const dlpack::DataType type = tensor.dtype;
    if (type.lanes == 1 && type.code == dlpack::kFloat && type.bits == 32) {
        span.dtype = DType::float32;
    } else if (type.lanes == 1 && type.code == dlpack::kFloat && type.bits == 64) {
        span.dtype = DType::float64;
    } else if (type.lanes == 1 && type.code == dlpack::kFloat && type.bits == 16) {
        span.dtype = DType::float16;
    } else if (type.lanes == 1 && type.code == dlpack::kBfloat && type.bits == 16) {
        span.dtype = DType::bfloat16;
    } else {
        const py::handle item(PyTuple_GET_ITEM(items_.ptr(), Py_ssize_t(i)));
        wrong_dtype(label(i), py::str(py::getattr(item, "dtype", py::str("of this array"))).cast<std::string>());
    }
    if (tensor.ndim > kMaxRank)
        throw py::value_error(label(i) + ": has " + std::to_string(tensor.ndim) + " dimensions; wanted at most " +
                              std::to_string(kMaxRank));
    span.data = static_cast<const unsigned char*>(tensor.data) + tensor.byte_offset;
    int64_t strides[kMaxRank];
    int64_t dense = itemsize(span.dtype);
    uint64_t count = 1;
    for (int k = tensor.ndim; k-- > 0;) {
        strides[k] = tensor.strides ? tensor.strides[k] * itemsize(span.dtype) : dense;
        dense *= tensor.shape[k];
        count *= uint64_t(tensor.shape[k]);
    }
    if (count > 0 && !tensor.data) throw py::value_error(label(i) + ": has a shape but no data to read");
    add_layout(span, tensor.ndim, tensor.shape, strides);
}

// Whatever is neither a plain NumPy array nor of a type with an exchange table: Python turns it into one, into
// a DLPack capsule, or into the (type, id) of the device that it is on.
void Borrowed::add_adapted(py::handle item, size_t i) {
    py::object adapted = py::module_::import("fused_penalties._weights").attr("adapt")(item, label(i));
    if (PyTuple_Check(adapted.ptr())) {
        const auto device = adapted.cast<std::pair<int, int>>();
        return add_tensor({nullptr, {device.first, device.second}, 0, {}, nullptr, nullptr, 0}, i);
    }
    kept_.push_back(adapted);
    if (PyCapsule_IsValid(adapted.ptr(), "dltensor_versioned"))
        return add_tensor(
            static_cast<dlpack::VersionedTensor*>(PyCapsule_GetPointer(adapted.ptr(), "dltensor_versioned"))->tensor,
            i);
    if (PyCapsule_IsValid(adapted.ptr(), "dltensor"))
        return add_tensor(static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(adapted.ptr(), "dltensor"))->tensor,
                          i);
    add_array(adapted, i);
}

// The order in which the contract reads a view: by increasing address if its axes nest, and as its C-order copy
// if they do not (it repeats elements, or interleaves them).
void Borrowed::add_layout(Span span, int rank, const int64_t* shape, const int64_t* strides) {
    span.count = 1;
    std::vector<Axis> axes;
    for (int k = 0; k < rank; ++k) {
        span.count *= uint64_t(shape[k]);
        if (shape[k] != 1) axes.push_back({shape[k], strides[k]});
    }
    if (span.count > 1) {
        std::vector<Axis> nested = axes;
        const unsigned char* lowest = span.data;
        for (Axis& axis : nested) {
            if (axis.stride >= 0) continue;
            lowest += (axis.extent - 1) * axis.stride;
            axis.stride = -axis.stride;
        }
        std::sort(nested.begin(), nested.end(), [](const Axis& x, const Axis& y) { return x.stride > y.stride; });
        bool nests = true;
        int64_t reach = itemsize(span.dtype);
        for (size_t k = nested.size(); k-- > 0;) {
            nests = nests && nested[k].stride >= reach;
            reach += (nested[k].extent - 1) * nested[k].stride;
        }
        if (nests) {
            axes = std::move(nested);
            span.data = lowest;
        }
        merge_neighbours(axes);
        if (axes.size() > 1 || axes[0].stride != itemsize(span.dtype)) {
            axes_.push_back(std::move(axes));
            span.axes = axes_.back().data();
            span.rank = int(axes_.back().size());
        }
    }
    spans_.push_back(span);
}

void Borrowed::check_devices() const {
    if (devices_.empty()) return;
    const size_t n = spans_.size();
    const auto device = [&](size_t i) { return i < devices_.size() ? devices_[i] : dlpack::Device{dlpack::kCpu, 0}; };
    for (size_t i = 1; i < n; ++i) {
        const dlpack::Device first = device(0), other = device(i);
        const bool same = (on_host(first) && on_host(other)) || (first.type == other.type && first.id == other.id);
        if (!same)
            throw py::value_error(label(i) + ": is on " + name_of(other) + " but " + label(0) + " is on " +
                                  name_of(first) + "; wanted all on one device");
    }
    throw std::runtime_error(label(0) + ": is on " + name_of(device(0)) +
                             "; this build of fused-penalties has no CUDA and reads the CPU's memory only");
}

void Borrowed::drop_repeats() {
    std::set<std::tuple<const unsigned char*, uint64_t, DType, bool, std::vector<int64_t>>> seen;
    for (Span& span : spans_) {
        std::vector<int64_t> layout;
        for (int k = 0; k < span.rank; ++k) {
            layout.push_back(span.axes[k].extent);
            layout.push_back(span.axes[k].stride);
        }
        if (!seen.emplace(span.data, span.count, span.dtype, span.swapped, std::move(layout)).second) span.count = 0;
    }
}

std::string Borrowed::label(size_t i) const {
    if (single_) return "weights";
    if (names_.is_none()) return "weights[" + std::to_string(i) + "]";
    return "weights[" + py::repr(names_[py::int_(i)]).cast<std::string>() + "]";
}

}  // namespace fused_penalties
