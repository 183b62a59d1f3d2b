#include "device_arrays.hpp"

#include <algorithm>
#include <string>

#include "facts.hpp"
#include "tensors.hpp"

namespace fused_penalties {

bool Library::current_stream(void** stream) const {
    if (!api || !api->current_stream) return false;
    if (api->current_stream(device.type, device.id, stream) == 0) return true;
    throw py::error_already_set();
}

DeviceArrays::DeviceArrays(const py::object& example)
    : type_(py::type::of(example)), api_(exchange_api(Py_TYPE(example.ptr()))) {
    if (!api_ && type_.ptr() != cupy_type())
        throw py::type_error("memory: got " + std::string(Py_TYPE(example.ptr())->tp_name) +
                             "; wanted a torch tensor or a CuPy array");
}

DeviceArrays::Memory DeviceArrays::find(py::handle array, int device, size_t bytes) const {
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
        data = PyLong_AsVoidPtr(py::object(pointer.attr("ptr")).ptr());
        if (PyErr_Occurred()) throw py::error_already_set();
        where.id = pointer.attr("device_id").cast<int32_t>();
        found = array.attr("nbytes").cast<uint64_t>();
    }
    if (plain(where).type != dlpack::kCuda || where.id != device || found < bytes)
        throw py::value_error("memory: got " + std::to_string(found) + " bytes on " + name_of(where) + "; wanted " +
                              std::to_string(bytes) + " on cuda:" + std::to_string(device));
    return {data, found};
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

}  // namespace fused_penalties
