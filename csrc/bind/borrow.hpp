// Python's weights as spans, found without copying.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <deque>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "span.hpp"

namespace fused_penalties {

namespace py = pybind11;

// Borrows every item of a list of weights. It keeps them alive, so that the GIL may be released; it must be
// made and destroyed with the GIL held.
class Borrowed {
public:
    // `names` is None or has a name for each item; with `single` the list holds the one array that was passed.
    // With `unique` every piece of memory stays in at its first place only; a repeat counts as empty.
    // Throws TypeError, ValueError or RuntimeError that say which item is at fault.
    Borrowed(const py::object& items, const py::object& names, bool single, bool unique);

    const std::vector<Span>& spans() const { return spans_; }

private:
    void add(py::handle item, size_t i);
    void add_array(py::handle array, size_t i);
    void add_tensor(const dlpack::Tensor& tensor, size_t i);
    void add_adapted(py::handle item, size_t i);
    void add_layout(Span span, int rank, const int64_t* shape, const int64_t* strides);
    void check_devices() const;
    void drop_repeats();
    std::string label(size_t i) const;

    py::tuple items_;
    py::object names_;
    bool single_;
    PyTypeObject* array_type_;
    std::vector<py::object> kept_;  // what stands in for items that could not be borrowed as they are
    std::vector<Span> spans_;
    std::deque<std::vector<Axis>> axes_;
    std::vector<dlpack::Device> devices_;
    PyTypeObject* exchange_type_ = nullptr;  // the last type asked for its exchange table
    const dlpack::ExchangeApi* exchange_ = nullptr;
};

}  // namespace fused_penalties
