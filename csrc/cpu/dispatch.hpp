// Which instruction set runs: chosen once, the fastest one, or by name.
#pragma once

#include <string>
#include <vector>

#include "../span.hpp"

namespace fused_penalties {

// The widest registers first; "scalar", the reference, is always the last.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// The kernels in use. The first call chooses them: the set that FUSED_PENALTIES_ISA names, else the fastest.
// Throws std::runtime_error if that name is unknown or this processor cannot run it.
const Kernels& active_kernels();

// Why these are in use, in words.
std::string why_isa();

// Makes `name` the set in use.
void use_isa(const std::string& name);

}  // namespace fused_penalties
