// A number as the NumPy scalar that users get for weights on the CPU.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "convention.hpp"
#include "cpu/float_environment.hpp"

namespace fused_penalties {

// A number rounded to float32, or to float64 where it is `wide`. What does not fit is inf, without a warning.
inline pybind11::object numpy_scalar(double value, bool wide) {
    namespace py = pybind11;
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::array<py::object, 2>> types;
    const auto find = [] {
        const py::module_ numpy = py::module_::import("numpy");
        return std::array<py::object, 2>{numpy.attr("float32"), numpy.attr("float64")};
    };
    const py::object& type = types.call_once_and_store_result(find).get_stored()[wide];
    const DefaultFloatEnvironment environment;  // also for NumPy, which makes the float32 of it
    const double number = rounded(value, wide);
    const auto result = py::reinterpret_steal<py::object>(PyObject_CallOneArg(type.ptr(), py::float_(number).ptr()));
    if (!result) throw py::error_already_set();
    return result;
}

}  // namespace fused_penalties
