// What the other files of the binding add to the extension module.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "dtype.hpp"

namespace fused_penalties {

class BoundWeights;

// Throws ValueError if there is none.
DType dtype_named(const std::string& name);

void define_host_plan(pybind11::module_& m);
pybind11::object make_host_plan(BoundWeights weights, int threads);
pybind11::tuple sums_on_host(BoundWeights weights, int threads, bool largest);

void define_stream(pybind11::module_& m);
void define_file_map(pybind11::module_& m);

// With CUDA only.
void define_device_plan(pybind11::module_& m);
pybind11::object make_device_plan(BoundWeights weights);

}  // namespace fused_penalties
