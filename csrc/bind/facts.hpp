// What tells where an array's elements are, and which they are: numbers to be compared with those of before. A plan
// asks whether its weights have moved, at every call.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "dlpack.hpp"
#include "view.hpp"

namespace fused_penalties {

namespace py = pybind11;

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

inline bool is_view_of_array(PyObject* base, PyTypeObject* array_type) {
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
inline bool array_facts_hold(py::handle object, PyTypeObject* array_type, const int64_t* facts) {
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

}  // namespace fused_penalties
