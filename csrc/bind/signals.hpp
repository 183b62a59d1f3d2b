// Ctrl-C, and whatever else the program handles signals for, in the middle of a long call.
#pragma once

namespace fused_penalties {

// For Work::check, of work that only reads and of work that changes memory. They run the handlers of the signals that
// came, and throw what these raise, as pybind11::error_already_set; the second adds to its arguments that the change is
// half done. Python runs handlers on its main thread only: on another one, both return false.
bool check_signals();
bool check_signals_in_change();

}  // namespace fused_penalties
