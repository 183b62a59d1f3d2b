#include "signals.hpp"

#include <pybind11/pybind11.h>

#include "lock.hpp"

namespace fused_penalties {
namespace {

namespace py = pybind11;

bool on_main_thread() {
    const py::object main = py::module_::import("threading").attr("main_thread")();
    return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
}

bool check_and_say(const char* addition) {
    const Locked lock;
    if (PyErr_CheckSignals() == 0) return on_main_thread();
    py::error_already_set error;
    if (addition) {
        const py::object raised = error.value(), arguments = raised.attr("args");
        raised.attr("args") = arguments + py::make_tuple(addition);
    }
    throw error;
}

}  // namespace

bool check_signals() { return check_and_say(nullptr); }
bool check_signals_in_change() {
    return check_and_say("the change is half done: some elements have been changed, others have not");
}

}  // namespace fused_penalties
