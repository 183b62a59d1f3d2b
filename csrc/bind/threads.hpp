// The `threads` argument that calls share.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

namespace fused_penalties {

// 0 for None, which stands for default_threads(). It may run Python code, and so comes before a call looks at
// anything else.
inline int checked_threads(const pybind11::object& threads) {
    namespace py = pybind11;
    constexpr long kMost = 1024;  // more is taken for that many: the result is the same
    if (threads.is_none()) return 0;
    const auto message = [](py::handle got) {
        return "threads: got " + py::repr(got).cast<std::string>() + "; wanted a positive integer or None";
    };
    if (!PyIndex_Check(threads.ptr()) || PyBool_Check(threads.ptr())) throw py::type_error(message(threads));
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(threads.ptr()));
    if (!number) throw py::error_already_set();
    int overflow = 0;
    const long n = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
    if (overflow > 0) return kMost;
    if (n < 1) throw py::value_error(message(number));
    return int(std::min(n, kMost));
}

}  // namespace fused_penalties
