// Python's arrays as memory, found without copying.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device_arrays.hpp"
#include "dlpack.hpp"
#include "view.hpp"

namespace fused_penalties {

namespace py = pybind11;

// What the arrays of a list are borrowed for.
enum class Use {
    read,   // once, in this call
    keep,   // by every later call too, which has to find out if they have other memory by then
    write,  // once, in this call; None stands for no array
};

// The items of a list of arrays, kept alive so that the GIL may be released. It must be made and destroyed with
// the GIL held.
class Items {
public:
    using Visit = std::function<void(const Items& items, size_t i, const View& view)>;

    // `what` is the argument's name. `names` is None or has a name for each item; with `single` the list holds
    // the one array that was passed. Calls visit for every item, but for None among those that are written.
    // Throws TypeError, ValueError or RuntimeError that say which item is at fault.
    Items(const char* what, const py::object& items, const py::object& names, bool single, Use use, const Visit& visit);

    // The CUDA device that all of them are on, or -1 for the CPU.
    int device() const { return where_.type == dlpack::kCpu ? -1 : where_.id; }

    // The library of the first tensor.
    Library library() const { return {library_, where_}; }

    // Throws ValueError if these are on another device than those.
    void check_beside(const Items& others) const;

    // Throws RuntimeError if an item that is kept has other memory than before, or another shape or dtype there. Asks
    // those first that Python code has to be run for: it may do anything to the memory of the others.
    void check_unmoved() const;
    // The same without those.
    void check_unmoved_without_python() const;

    // True if Python code was run to find some of them.
    bool ran_python() const { return !adapted_.empty(); }

    // How errors call an item: "weights['kernel']".
    std::string label(size_t i) const;

private:
    void prepare(size_t i);
    py::object adapt(size_t i) const;
    void visit_item(size_t i, const Visit& visit);
    void visit_other(size_t i, PyObject* object, const Visit& visit);
    void visit_array(size_t i, py::handle array, bool own, const Visit& visit);
    void visit_tensor(size_t i, const dlpack::Tensor& tensor, bool writable, const Visit& visit);
    void visit_cupy(size_t i, py::handle array, bool writable, const Visit& visit);
    void visit_adapted(size_t i, const Visit& visit);
    DType dtype_of(size_t i, py::handle dtype) const;
    bool is_cupy(py::handle object);
    void check_aligned(size_t i, const View& view) const;
    void check_rank(size_t i, int rank) const;
    void found_on(size_t i, const dlpack::Device& device, bool empty);
    void check_readable() const;
    py::handle item(size_t i) const { return PyTuple_GET_ITEM(items_.ptr(), Py_ssize_t(i)); }
    void watch_array(size_t i);
    void watch_adapted(size_t i, const View& view);
    void check_copies() const;

    const char* what_;
    py::tuple items_;
    py::object names_;
    bool single_;
    Use use_;
    PyTypeObject* array_type_;
    std::vector<py::object> adapted_;  // for each item what stands in for it; empty if there is none
    std::vector<py::object> kept_;     // what keeps that memory
    // An item that is kept, and how to find out where it is: of a NumPy array that can be read, a tensor's type has a
    // table to ask, anything else has to be adapted again.
    struct Watched {
        size_t i;
        bool array;
        const dlpack::ExchangeApi* api;
        size_t end;  // of its facts
        bool runs_python() const { return !array && !api; }
    };
    bool unmoved(const Watched& one, const int64_t* facts) const;
    void check_unmoved(bool running_python) const;

    std::vector<Watched> watched_;
    std::vector<int64_t> facts_;
    const dlpack::ExchangeApi* library_ = nullptr;  // of the first tensor
    // Where the first item is that has elements, and which item that is.
    dlpack::Device where_{dlpack::kCpu, 0};
    size_t first_ = size_t(-1);
    bool readable_ = true;           // where they are
    PyObject* cupy_type_ = nullptr;  // CuPy's array, once CuPy has been imported

    // A type of items, asked once.
    struct Type {
        PyTypeObject* type = nullptr;
        const dlpack::ExchangeApi* api = nullptr;
        py::object is_neg;  // torch's method
    };
    const Type& type_of(py::handle item);
    // Throws TypeError for a tensor that torch negates only when it is read.
    void check_sign(size_t i, const Type& type) const;

    std::vector<Type> types_;
    size_t last_type_ = 0;
};

}  // namespace fused_penalties
