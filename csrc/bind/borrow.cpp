#include "borrow.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "facts.hpp"
#include "tensors.hpp"

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
    // Without the name of its library, as "torch.int64" has one.
    throw py::type_error(label + ": dtype " + dtype.substr(dtype.rfind('.') + 1) + " is not supported; wanted " +
                         wanted);
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

Items::Items(const char* what, const py::object& items, const py::object& names, bool single, Use use,
             const Visit& visit)
    : what_(what),
      items_(items),
      names_(names),
      single_(single),
      use_(use),
      array_type_(py::detail::npy_api::get().PyArray_Type_) {
    const size_t n = items_.size();
    if (!names_.is_none() && py::len(names_) != n)
        throw py::value_error("names: got " + std::to_string(py::len(names_)) + "; wanted " + std::to_string(n));
    const auto absent = [&](size_t i) { return use_ == Use::write && item(i).is_none(); };
    const auto visit_all = [&](size_t end) {
        for (size_t i = 0; i < end; ++i)
            if (!absent(i)) visit_item(i, visit);
    };
    size_t prepared = 0;
    try {
        for (; prepared < n; ++prepared)
            if (!absent(prepared)) prepare(prepared);
    } catch (...) {
        visit_all(prepared);  // of several faults the first item's is told
        throw;
    }
    visit_all(n);
    check_readable();
    check_copies();
}

void Items::found_on(size_t i, const dlpack::Device& device, bool empty) {
    const dlpack::Device here = plain(device);
    const bool first = first_ == size_t(-1);
    if (!first && here.type == where_.type && here.id == where_.id) return;  // as most items are
    if (empty) {  // which is as good as anywhere, but if all are empty a GPU counts
        if (first && here.type != dlpack::kCpu) where_ = here;
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

// All that may run Python code, before any memory is looked at: it may do anything to that.
void Items::prepare(size_t i) {
    PyObject* object = item(i).ptr();
    if (Py_TYPE(object) == array_type_) return;
    const Type& type = type_of(object);
    if (type.api) return check_sign(i, type);
    if (kReadsCuda && is_cupy(object)) return;
    adapted_.resize(items_.size());
    adapted_[i] = adapt(i);
    check_sign(i, type_of(object));  // not before: adapt says better what else is wrong with it
}

py::object Items::adapt(size_t i) const {
    return py::module_::import("fused_penalties._weights").attr("adapt")(item(i), label(i));
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
        if (type.api->tensor_from_object(object, &tensor) == 0) {
            if (!library_) library_ = type.api;
            visit_tensor(i, tensor, true, visit);
            if (use_ != Use::keep) return;
            tensor_facts(tensor, [this](int64_t fact) { facts_.push_back(fact); });
            return watched_.push_back({i, false, type.api, facts_.size()});
        }
        PyErr_Clear();
        adapt(i);  // which says what is wrong
        throw py::type_error(label(i) + ": the exchange table of " + Py_TYPE(object)->tp_name + " does not find it");
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
    if (last_type_ < types_.size() && types_[last_type_].type == wanted) return types_[last_type_];
    for (last_type_ = 0; last_type_ < types_.size(); ++last_type_)
        if (types_[last_type_].type == wanted) return types_[last_type_];
    const py::handle asked = reinterpret_cast<PyObject*>(wanted);
    types_.push_back(
        {wanted, exchange_api(wanted), use_ == Use::read ? py::none() : py::getattr(asked, "is_neg", py::none())});
    return types_.back();
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
    const py::object adapted = adapted_[i];
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
    if (ran_python()) check_unmoved(true);
    check_unmoved(false);
}

void Items::check_unmoved_without_python() const { check_unmoved(false); }

void Items::check_unmoved(bool running_python) const {
    const int64_t* facts = facts_.data();
    for (const Watched& one : watched_) {
        const bool asked = one.runs_python() == running_python;
        if (asked && !(one.array ? array_facts_hold(item(one.i), array_type_, facts) : unmoved(one, facts)))
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
        if (one.runs_python() && !unmoved(one, facts_.data() + from))
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
