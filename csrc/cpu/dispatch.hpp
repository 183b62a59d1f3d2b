// Which instruction set runs: chosen once, best first, or by name.
#pragma once

#include <string>
#include <vector>

#include "../span.hpp"

namespace fused_penalties {

// Best first; "scalar", the reference, is always the last.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// The kernels in use. The first call chooses them: the set that FUSED_PENALTIES_ISA names, else the best one.
// Throws std::runtime_error if that name is unknown or this processor cannot run it.
const Kernels& active_kernels();

// Makes `name` the set in use.
void use_isa(const std::string& name);

}  // namespace fused_penalties
