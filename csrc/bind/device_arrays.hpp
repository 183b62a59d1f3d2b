// Arrays on a device: whose stream they are on, where those lie that results are written to, and whether a list of them
// has been looked up before.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dlpack.hpp"

namespace fused_penalties {

namespace py = pybind11;

// Whose tensors a list has, to be asked for its stream.
struct Library {
    const dlpack::ExchangeApi* api = nullptr;
    dlpack::Device device{dlpack::kCpu, 0};

    // The stream that it works on at this moment; false if it does not say.
    bool current_stream(void** stream) const;
};

// The arrays of a list, to tell by a look at each whether another list has the same. None is kept alive. It must be
// made and destroyed with the GIL held.
class Seen {
public:
    Seen() = default;
    explicit Seen(const py::list& items);

    bool complete() const { return complete_; }
    // True if every item of the list is the same as before, and where it was: the same CuPy array with the same
    // address and shape, which can be set and on which its strides depend; a tensor with the same memory, shape and
    // strides; None where None was. False if one is None that is `needed`, if that is given: to look it up is an error.
    bool again(const py::list& items, const std::vector<bool>* needed) const;

private:
    struct One {
        py::object array;                // a weak reference to a CuPy array,
        const dlpack::ExchangeApi* api;  // or the table of a tensor's type, or neither
        PyTypeObject* type;
        size_t end;  // of its facts
    };
    // Appends what tells one array from another. False if that cannot be found out.
    bool look(const One& one, py::handle item, std::vector<int64_t>& facts) const;

    std::vector<One> all_;
    std::vector<int64_t> facts_;
    bool complete_ = false;  // else there are other kinds of arrays too
};

// Where arrays of one library, torch or CuPy, lie on a device: those that results are written to.
class DeviceArrays {
public:
    DeviceArrays() = default;
    explicit DeviceArrays(const py::object& example);

    struct Memory {
        void* data;
        uint64_t bytes;
    };
    // Throws ValueError unless it is on that device, and has at least so many bytes.
    Memory find(py::handle array, int device, size_t bytes) const;

private:
    py::object type_;                           // theirs
    const dlpack::ExchangeApi* api_ = nullptr;  // null for CuPy
};

}  // namespace fused_penalties
