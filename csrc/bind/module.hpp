// What the other files of the binding add to the extension module.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace fused_penalties {

class BoundWeights;
class Spans;

// How many elements each buffer has.
pybind11::array_t<int64_t> sizes_of(const Spans& spans);

void define_plan(pybind11::module_& m);

// With CUDA only.
void define_device_plan(pybind11::module_& m);
pybind11::object make_device_plan(BoundWeights weights);

}  // namespace fused_penalties
