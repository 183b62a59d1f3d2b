// Tensors as DLPack describes them: whether a type has a table that finds them without Python, on which device they
// are, and where their elements lie, with every field checked before it is used.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "dlpack.hpp"
#include "view.hpp"

namespace fused_penalties {

namespace py = pybind11;

// The table of a type whose tensors' memory is what they stand for, or null.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type);

// CuPy's array, which the module keeps alive; null if CuPy has not been imported.
PyObject* cupy_type();

bool on_host(const dlpack::Device& device);
bool on_cuda(const dlpack::Device& device);
// One name for each memory that kernels can read.
dlpack::Device plain(const dlpack::Device& device);
std::string name_of(const dlpack::Device& device);

// Fills in where the elements of a tensor lie, its rank and shape being in the view already; or says what is wrong
// with it. After that neither a count nor an address of an element wraps around.
const char* lay_out(const dlpack::Tensor& tensor, View& view, int64_t* strides);

}  // namespace fused_penalties
