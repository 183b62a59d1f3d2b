// What the other files of the binding add to the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace fused_penalties {

void define_plan(pybind11::module_& m);

}  // namespace fused_penalties
