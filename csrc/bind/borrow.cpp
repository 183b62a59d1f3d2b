#include "borrow.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <optional>

namespace fused_penalties {
namespace {

#if defined(FUSED_PENALTIES_CUDA)
constexpr bool kReadsCuda = true;
#else
constexpr bool kReadsCuda = false;
#endif

[[noreturn]] void wrong_dtype(const std::string& label, const std::string& dtype) {
    std::string wanted;
    for (int i = 0; i < kDTypes; ++i)
        wanted += (i == 0 ? "" : i == kDTypes - 1 ? " or " : ", ") + std::string(name_of(DType(i)));
    throw py::type_error(label + ": dtype " + dtype + " is not supported; wanted " + wanted);
}

// NumPy's type numbers of other packages' types start here and are given at run time.
constexpr int kFirstUserType = 256;

// True if a NumPy dtype, which has this number, is of this row of the table.
template <class Type>
bool is_numpy(int number, py::handle dtype) {
    if (Type::numpy_number >= 0 || number < kFirstUserType) return number == Type::numpy_number;
    static std::atomic<int> known{-1};
    if (number == known.load(std::memory_order_relaxed)) return true;
    if (py::str(dtype.attr("name")).cast<std::string>() != name_of(Type::dtype)) return false;
    known.store(number, std::memory_order_relaxed);
    return true;
}

template <class Type>
bool is_dlpack(const dlpack::DataType& type) {
    return type.lanes == 1 && type.code == Type::dlpack_code && type.bits == 8 * sizeof(typename Type::Element);
}

// A subclass of torch's tensor may make its values when an operation asks for them (masked, distributed and fake
// tensors do): its memory is not what it stands for. One that is not initialized yet gets its memory later.
bool has_own_values(py::handle type) {
    const py::object dispatch = py::getattr(type, "__torch_dispatch__", py::none());
    return dispatch.is_none() || (PyCFunction_Check(dispatch.ptr()) && !py::hasattr(type, "materialize"));
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
    if (api->version.major != 1 || !api->tensor_from_object) return nullptr;
    return has_own_values(reinterpret_cast<PyObject*>(type)) ? api : nullptr;
}

// CuPy's array, which the module keeps alive; null if CuPy has not been imported.
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

// One name for each memory that kernels can read.
dlpack::Device plain(const dlpack::Device& device) {
    if (on_host(device)) return {dlpack::kCpu, 0};
    if (on_cuda(device)) return {dlpack::kCuda, device.id};
    return device;
}

// Each calls take(number) with whatever tells where an array's elements are, and which they are.
template <class Take>
void tensor_facts(const dlpack::Tensor& tensor, const Take& take) {
    take(reinterpret_cast<intptr_t>(tensor.data) + int64_t(tensor.byte_offset));
    take(int64_t(tensor.dtype.code) << 32 | int64_t(tensor.dtype.lanes) << 8 | tensor.dtype.bits);
    take(tensor.ndim);
    for (int k = 0; k < tensor.ndim; ++k) take(tensor.shape[k]);
    for (int k = 0; tensor.strides && k < tensor.ndim; ++k) take(tensor.strides[k]);
}

template <class Take>
void view_facts(const View& view, const Take& take) {
    take(reinterpret_cast<intptr_t>(view.data));
    take(int64_t(view.dtype) << 1 | int64_t(view.swapped));
    take(view.rank);
    for (int k = 0; k < view.rank; ++k) take(view.shape[k]);
    for (int k = 0; k < view.rank; ++k) take(view.strides[k]);
}

bool is_view_of_array(PyObject* base, PyTypeObject* array_type) {
    return base && (Py_TYPE(base) == array_type || PyObject_TypeCheck(base, array_type));
}

// A NumPy array can change in place as well, and so can the one that it is a view of.
template <class Take>
void array_facts(py::handle object, PyTypeObject* array_type, const Take& take) {
    const auto* array = py::detail::array_proxy(object.ptr());
    take(reinterpret_cast<intptr_t>(array->descr));
    while (true) {
        take(reinterpret_cast<intptr_t>(array->data));
        take(array->nd);
        for (int k = 0; k < array->nd; ++k) take(array->dimensions[k]);
        for (int k = 0; k < array->nd; ++k) take(array->strides[k]);
        const bool more = is_view_of_array(array->base, array_type);
        take(more);
        if (!more) return;
        array = py::detail::array_proxy(array->base);
    }
}

// True if these facts still hold. Every call of a plan asks this of every array, so it is written for speed.
bool array_facts_hold(py::handle object, PyTypeObject* array_type, const int64_t* facts) {
    const auto* array = py::detail::array_proxy(object.ptr());
    if (*facts++ != reinterpret_cast<intptr_t>(array->descr)) return false;
    while (true) {
        const int rank = array->nd;
        if (facts[0] != reinterpret_cast<intptr_t>(array->data) || facts[1] != rank) return false;
        const int64_t *shape = facts + 2, *strides = shape + rank;
        for (int k = 0; k < rank; ++k)
            if (shape[k] != array->dimensions[k] || strides[k] != array->strides[k]) return false;
        const bool more = is_view_of_array(array->base, array_type);
        facts = strides + rank;
        if (*facts++ != int64_t(more)) return false;
        if (!more) return true;
        array = py::detail::array_proxy(array->base);
    }
}

// Compares facts with those before.
struct Compare {
    const int64_t*& before;
    const int64_t* end;
    bool& same;
    void operator()(int64_t fact) const { same = same && before != end && *before++ == fact; }
};

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

// Fills in where the elements of a tensor lie, its rank and shape being in the view already; or says what is wrong
// with it. After that neither a count nor an address of an element wraps around.
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

// Takes the tensor out of a capsule, as the protocol has it: nobody else may do so then. Returns what keeps it alive.
template <class Managed>
py::capsule take(py::handle capsule, Managed* managed, const char* used) {
    if (PyCapsule_SetName(capsule.ptr(), used) != 0) throw py::error_already_set();
    return py::capsule(managed, [](void* taken) {
        auto* managed = static_cast<Managed*>(taken);
        if (managed->deleter) managed->deleter(managed);
    });
}

}  // namespace

bool Library::current_stream(void** stream) const {
    if (!api || !api->current_stream) return false;
    if (api->current_stream(device.type, device.id, stream) == 0) return true;
    throw py::error_already_set();
}

DeviceArrays::DeviceArrays(const py::object& example)
    : type_(py::type::of(example)), api_(exchange_api(Py_TYPE(example.ptr()))) {}

void* DeviceArrays::find(py::handle array, int device, size_t bytes) const {
    uint64_t found = 0;
    dlpack::Device where{dlpack::kCuda, 0};
    void* data = nullptr;
    if (!py::type::handle_of(array).is(type_)) throw py::type_error("memory: got an array of another library");
    if (api_) {
        dlpack::Tensor tensor;
        if (api_->tensor_from_object(array.ptr(), &tensor) != 0) throw py::error_already_set();
        data = static_cast<unsigned char*>(tensor.data) + tensor.byte_offset;
        where = tensor.device;
        found = tensor.dtype.bits / 8;
        for (int k = 0; k < tensor.ndim; ++k) found *= uint64_t(tensor.shape[k]);
    } else {
        const py::object pointer = array.attr("data");
        data = PyLong_AsVoidPtr(pointer.attr("ptr").ptr());
        where.id = pointer.attr("device_id").cast<int32_t>();
        found = array.attr("nbytes").cast<uint64_t>();
    }
    if (plain(where).type != dlpack::kCuda || where.id != device || found < bytes)
        throw py::value_error("memory: got " + std::to_string(found) + " bytes on " + name_of(where) + "; wanted " +
                              std::to_string(bytes) + " on cuda:" + std::to_string(device));
    return data;
}

Seen::Seen(const py::list& items) {
    const PyObject* cupy = cupy_type();
    all_.reserve(items.size());
    for (const py::handle item : items) {
        One one{{}, nullptr, Py_TYPE(item.ptr()), 0};
        if (reinterpret_cast<const PyObject*>(one.type) == cupy) {
            one.array = py::weakref(item);
        } else if (!item.is_none()) {
            const bool again = !all_.empty() && all_.back().type == one.type;
            one.api = again ? all_.back().api : exchange_api(one.type);
            if (!one.api) return;
        }
        if (!look(one, item, facts_)) return;
        one.end = facts_.size();
        all_.push_back(std::move(one));
    }
    complete_ = true;
}

bool Seen::look(const One& one, py::handle item, std::vector<int64_t>& facts) const {
    if (one.array) {
        static PyObject* const names[] = {PyUnicode_InternFromString("data"), PyUnicode_InternFromString("ptr"),
                                          PyUnicode_InternFromString("shape")};
        const auto data = py::reinterpret_steal<py::object>(PyObject_GetAttr(item.ptr(), names[0]));
        const auto ptr = py::reinterpret_steal<py::object>(data ? PyObject_GetAttr(data.ptr(), names[1]) : nullptr);
        const auto shape = py::reinterpret_steal<py::object>(ptr ? PyObject_GetAttr(item.ptr(), names[2]) : nullptr);
        facts.push_back(ptr ? reinterpret_cast<intptr_t>(PyLong_AsVoidPtr(ptr.ptr())) : 0);
        const Py_ssize_t rank = shape ? PyTuple_Size(shape.ptr()) : 0;
        for (Py_ssize_t k = 0; k < rank; ++k) facts.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), k)));
    } else if (one.api) {
        dlpack::Tensor tensor;
        if (one.api->tensor_from_object(item.ptr(), &tensor) == 0) {
            tensor_facts(tensor, [&](int64_t fact) { facts.push_back(fact); });
        }
    }
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

bool Seen::again(const py::list& items, const std::vector<bool>* needed) const {
    if (!complete_ || items.size() != all_.size()) return false;
    std::vector<int64_t> facts;
    size_t from = 0;
    for (size_t i = 0; i < all_.size(); ++i) {
        const One& one = all_[i];
        const py::handle item = PyList_GET_ITEM(items.ptr(), Py_ssize_t(i));
        if (Py_TYPE(item.ptr()) != one.type || (item.is_none() && needed && (*needed)[i])) return false;
        // While it lives no other array has its address.
        if (one.array && !py::reinterpret_steal<py::object>(PyObject_CallNoArgs(one.array.ptr())).is(item))
            return false;
        facts.clear();
        if (!look(one, item, facts)) return false;
        if (!std::equal(facts.begin(), facts.end(), facts_.begin() + from, facts_.begin() + one.end)) return false;
        from = one.end;
    }
    return true;
}

uint64_t View::count() const {
    uint64_t count = 1;
    for (int k = 0; k < rank; ++k) count *= uint64_t(shape[k]);
    return count;
}

Items::Items(const char* what, const py::object& items, const py::object& names, bool single, Use use,
             const Visit& visit)
    : what_(what),
      items_(items),
      names_(names),
      single_(single),
      use_(use),
      array_type_(py::detail::npy_api::get().PyArray_Type_) {
    const size_t n = items_.size();
    for (size_t i = 0; i < n; ++i)
        if (!(use_ == Use::write && item(i).is_none())) visit_item(i, visit);
    check_readable();
    check_copies();
}

void Items::found_on(size_t i, const dlpack::Device& device, bool empty) {
    const dlpack::Device here = plain(device);
    const bool first = first_ == size_t(-1);
    if (!first && here.type == where_.type && here.id == where_.id) return;  // as most items are
    if (empty) {                                                             // which is as good as anywhere
        if (first) where_ = here;
        return;
    }
    if (!first)
        throw py::value_error(label(i) + ": is on " + name_of(here) + " but " + label(first_) + " is on " +
                              name_of(where_) + "; wanted all on one device");
    first_ = i;
    where_ = here;
}

void Items::check_readable() const {
    if (readable_ || first_ == size_t(-1)) return;
    const py::object why = py::module_::import("fused_penalties.cuda").attr("refusal")(where_.type);
    throw std::runtime_error(label(first_) + ": is on " + name_of(where_) + "; " + why.cast<std::string>());
}

void Items::check_beside(const Items& others) const {
    if (first_ == size_t(-1) || others.first_ == size_t(-1)) return;
    if (where_.type != others.where_.type || where_.id != others.where_.id)
        throw py::value_error(label(first_) + ": is on " + name_of(where_) + " but " + others.label(others.first_) +
                              " is on " + name_of(others.where_) + "; wanted both on one device");
}

void Items::visit_item(size_t i, const Visit& visit) {
    PyObject* object = item(i).ptr();
    if (Py_TYPE(object) != array_type_) return visit_other(i, object, visit);
    if (use_ == Use::keep) watch_array(i);
    visit_array(i, object, true, visit);
}

void Items::visit_other(size_t i, PyObject* object, const Visit& visit) {
    const Type& type = type_of(object);
    dlpack::Tensor tensor;
    if (type.api) {
        check_sign(i, type);
        if (type.api->tensor_from_object(object, &tensor) == 0) {
            if (!library_) library_ = type.api;
            visit_tensor(i, tensor, true, visit);
            if (use_ != Use::keep) return;
            tensor_facts(tensor, [this](int64_t fact) { facts_.push_back(fact); });
            return watched_.push_back({i, false, type.api, facts_.size()});
        }
        PyErr_Clear();  // the slow way may still know one, and says better what is wrong
    } else if (kReadsCuda && is_cupy(object)) {
        return visit_cupy(i, object, true, visit);
    }
    if (use_ != Use::keep) return visit_adapted(i, visit);
    visit_adapted(i, [&](const Items& items, size_t, const View& view) {
        watch_adapted(i, view);
        visit(items, i, view);
    });
}

void Items::watch_array(size_t i) {
    array_facts(item(i), array_type_, [this](int64_t fact) { facts_.push_back(fact); });
    watched_.push_back({i, true, nullptr, facts_.size()});
}

void Items::watch_adapted(size_t i, const View& view) {
    if (PyObject_TypeCheck(item(i).ptr(), array_type_)) return watch_array(i);
    if (device() >= 0) return;  // to ask again there is to wait for a stream
    const py::object number = py::module_::import("numpy").attr("generic");
    if (PyFloat_Check(item(i).ptr()) || PyLong_Check(item(i).ptr()) || py::isinstance(item(i), number))
        return;  // which never changes
    view_facts(view, [this](int64_t fact) { facts_.push_back(fact); });
    watched_.push_back({i, false, nullptr, facts_.size()});
}

const Items::Type& Items::type_of(py::handle item) {
    PyTypeObject* const wanted = Py_TYPE(item.ptr());
    for (const Type& type : types_)
        if (type.type == wanted) return type;
    Type& type = types_[oldest_type_++ % std::size(types_)];
    const py::handle asked = reinterpret_cast<PyObject*>(wanted);
    type = {wanted, exchange_api(wanted), use_ == Use::read ? py::none() : py::getattr(asked, "is_neg", py::none())};
    return type;
}

// The sums of a read don't mind a sign, and its types have no is_neg. A subclass's may do anything to the tensor: ask
// before its memory is looked at.
void Items::check_sign(size_t i, const Type& type) const {
    if (type.is_neg.is_none()) return;
    const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(type.is_neg.ptr(), item(i).ptr()));
    if (!negated) throw py::error_already_set();
    if (negated.ptr() == Py_True)
        throw py::type_error(label(i) + ": got a tensor whose sign is flipped lazily; wanted resolve_neg()");
}

DType Items::dtype_of(size_t i, py::handle dtype) const {
    const int number = py::detail::array_descriptor_proxy(dtype.ptr())->type_num;
    std::optional<DType> found;
    each_type([&](auto type) {
        if (is_numpy<decltype(type)>(number, dtype)) found = type.dtype;
    });
    if (!found) wrong_dtype(label(i), py::str(dtype).cast<std::string>());
    return *found;
}

void Items::visit_array(size_t i, py::handle object, bool own, const Visit& visit) {
    const auto* array = py::detail::array_proxy(object.ptr());
    const auto* dtype = py::detail::array_descriptor_proxy(array->descr);
    View view;
    view.dtype = dtype_of(i, array->descr);
    static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "64-bit only");
    view.data = reinterpret_cast<unsigned char*>(array->data);
    view.swapped = dtype->byteorder == (PY_BIG_ENDIAN ? '<' : '>');
    view.writable = own && (array->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_);
    view.dense = array->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
    view.rank = array->nd;
    view.shape = reinterpret_cast<const int64_t*>(array->dimensions);
    view.strides = reinterpret_cast<const int64_t*>(array->strides);
    found_on(i, {dlpack::kCpu, 0}, view.count() == 0);
    visit(*this, i, view);
}

void Items::visit_tensor(size_t i, const dlpack::Tensor& tensor, bool writable, const Visit& visit) {
    std::optional<DType> found;
    each_type([&](auto type) {
        if (is_dlpack<decltype(type)>(tensor.dtype)) found = type.dtype;
    });
    if (!found)
        wrong_dtype(label(i), py::str(py::getattr(item(i), "dtype", py::str("of this array"))).cast<std::string>());
    check_rank(i, tensor.ndim);
    View view;
    view.dtype = *found;
    int64_t strides[kMaxRank];
    view.rank = tensor.ndim;
    view.shape = tensor.shape;
    view.strides = strides;
    if (const char* fault = lay_out(tensor, view, strides)) throw py::value_error(label(i) + ": " + fault);
    view.swapped = false;
    view.writable = writable;
    if (on_cuda(tensor.device) && tensor.device.id < 0)
        throw py::value_error(label(i) + ": is on " + name_of(tensor.device) + ", which is no device");
    found_on(i, tensor.device, view.count() == 0);
    if (!on_host(tensor.device) && !(kReadsCuda && on_cuda(tensor.device))) readable_ = false;
    if (on_cuda(tensor.device)) check_aligned(i, view);
    if (readable_) visit(*this, i, view);
}

// CuPy's own attributes: its DLPack and its array interface take ten times as long.
void Items::visit_cupy(size_t i, py::handle array, bool writable, const Visit& visit) {
    static PyObject* const names[] = {PyUnicode_InternFromString("data"),    PyUnicode_InternFromString("ptr"),
                                      PyUnicode_InternFromString("dtype"),   PyUnicode_InternFromString("shape"),
                                      PyUnicode_InternFromString("strides"), PyUnicode_InternFromString("device_id")};
    const auto get = [](py::handle from, int name) {
        const py::object found = py::reinterpret_steal<py::object>(PyObject_GetAttr(from.ptr(), names[name]));
        if (!found) throw py::error_already_set();
        return found;
    };
    const py::object data = get(array, 0), shape = get(array, 3), strides = get(array, 4);
    int64_t extents[kMaxRank], steps[kMaxRank];
    View view;
    view.dtype = dtype_of(i, get(array, 2));
    view.rank = int(PyTuple_Size(shape.ptr()));
    check_rank(i, view.rank);
    view.dense = true;
    int64_t dense_stride = itemsize(view.dtype);
    for (int k = view.rank; k-- > 0;) {
        extents[k] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), k));
        steps[k] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), k));
        view.dense = view.dense && (steps[k] == dense_stride || extents[k] == 1);
        dense_stride *= extents[k];
    }
    view.data = static_cast<unsigned char*>(PyLong_AsVoidPtr(get(data, 1).ptr()));
    view.swapped = false;  // CuPy has no such arrays
    view.writable = writable;
    view.shape = extents;
    view.strides = steps;
    const long device = PyLong_AsLong(get(data, 5).ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    found_on(i, {dlpack::kCuda, int32_t(device)}, view.count() == 0);
    check_aligned(i, view);
    visit(*this, i, view);
}

void Items::check_rank(size_t i, int rank) const {
    if (rank < 0 || rank > kMaxRank)
        throw py::value_error(label(i) + ": has " + std::to_string(rank) + " dimensions; wanted at most " +
                              std::to_string(kMaxRank));
}

// A GPU reads an element only at a multiple of its size.
void Items::check_aligned(size_t i, const View& view) const {
    uintptr_t bits = reinterpret_cast<uintptr_t>(view.data);
    for (int k = 0; k < view.rank; ++k)
        if (view.shape[k] > 1) bits |= uintptr_t(view.strides[k]);
    if (bits % uintptr_t(itemsize(view.dtype)) != 0 && view.count() > 0)
        throw py::value_error(label(i) +
                              ": has elements at addresses that are no multiples of their size; wanted them "
                              "aligned");
}

bool Items::is_cupy(py::handle object) {
    if (!cupy_type_) cupy_type_ = cupy_type();
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == cupy_type_;
}

// Whatever is neither a plain NumPy or CuPy array nor of a type with an exchange table: Python turns it into a NumPy
// array, a DLPack capsule, a CuPy array and whether it may be written, or the (type, id) of a device that it cannot be
// read on. What an object's own __dlpack__ returned comes here as it is, and may be anything.
void Items::visit_adapted(size_t i, const Visit& visit) {
    const py::object adapted = py::module_::import("fused_penalties._weights").attr("adapt")(item(i), label(i));
    check_sign(i, type_of(item(i)));  // not before: adapt says better what else is wrong with it
    PyObject* const object = adapted.ptr();
    if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2) {
        const py::handle first = PyTuple_GET_ITEM(object, 0), second = PyTuple_GET_ITEM(object, 1);
        if (PyLong_Check(first.ptr()) && PyLong_Check(second.ptr())) {
            readable_ = false;
            return found_on(i, {first.cast<int>(), second.cast<int>()}, false);
        }
        if (kReadsCuda && is_cupy(first)) {
            kept_.push_back(adapted);
            return visit_cupy(i, first, second.is(py::bool_(true)), visit);
        }
    }
    if (PyCapsule_IsValid(object, "dltensor_versioned")) {
        auto* versioned = static_cast<dlpack::VersionedTensor*>(PyCapsule_GetPointer(object, "dltensor_versioned"));
        if (versioned->version.major != 1)
            throw py::type_error(label(i) + ": DLPack " + std::to_string(versioned->version.major) + "." +
                                 std::to_string(versioned->version.minor) + " is not supported; wanted 1 or 0");
        kept_.push_back(take(adapted, versioned, "used_dltensor_versioned"));
        return visit_tensor(i, versioned->tensor, !(versioned->flags & dlpack::kReadOnly), visit);
    }
    if (PyCapsule_IsValid(object, "dltensor")) {
        auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(object, "dltensor"));
        kept_.push_back(take(adapted, managed, "used_dltensor"));
        return visit_tensor(i, managed->tensor, false, visit);  // cannot say whether it may be written
    }
    if (!py::isinstance<py::array>(adapted)) {
        const bool used = PyCapsule_CheckExact(object);
        const std::string got = used ? "a capsule that is used already" : "a " + std::string(Py_TYPE(object)->tp_name);
        throw py::type_error(label(i) + ": its __dlpack__ returned " + got + "; wanted a new capsule");
    }
    kept_.push_back(adapted);
    // A view of the item's own memory, such as a memmap's, may be written to; a converted copy may not.
    visit_array(i, adapted, py::isinstance<py::array>(item(i)), visit);
}

bool Items::unmoved(const Watched& one, const int64_t* facts) const {
    const py::handle object = item(one.i);
    const int64_t* const end = facts_.data() + one.end;
    bool same = true;
    const Compare compare{facts, end, same};
    dlpack::Tensor tensor;
    if (!one.api) {
        const std::string what = label(one.i);
        Items(what.c_str(), py::make_tuple(object), py::none(), true, Use::read,
              [&](const Items&, size_t, const View& view) { view_facts(view, compare); });
    } else if (one.api->tensor_from_object(object.ptr(), &tensor) == 0) {
        tensor_facts(tensor, compare);
    } else {
        PyErr_Clear();  // wherever it is now, it has left
        return false;
    }
    return same && facts == end;
}

void Items::check_unmoved() const {
    const int64_t* facts = facts_.data();
    for (const Watched& one : watched_) {
        if (!(one.array ? array_facts_hold(item(one.i), array_type_, facts) : unmoved(one, facts)))
            throw std::runtime_error(label(one.i) +
                                     ": its memory has moved, or its shape or dtype has changed; wanted "
                                     "a new plan for it");
        facts = facts_.data() + one.end;
    }
}

// What gives other memory each time that it is asked gives copies, which don't change with it.
void Items::check_copies() const {
    size_t from = 0;
    for (const Watched& one : watched_) {
        if (!one.array && !one.api && !unmoved(one, facts_.data() + from))
            throw py::type_error(label(one.i) + ": a " + Py_TYPE(item(one.i).ptr())->tp_name +
                                 " gives copies of its values, and a plan would not see it change; wanted an array in "
                                 "memory (sums and penalty take this one: they read it at each call)");
        from = one.end;
    }
}

std::string Items::label(size_t i) const {
    if (single_) return what_;
    const std::string what(what_);
    if (names_.is_none()) return what + "[" + std::to_string(i) + "]";
    return what + "[" + py::repr(names_[py::int_(i)]).cast<std::string>() + "]";
}

}  // namespace fused_penalties
