// The parts of the program, by what they test.
#pragma once

namespace fused_penalties {

void trees();      // blocks.cpp: both sums of blocks of every length, as they lie on 16 bytes, beside them, and strided
void changes();    // blocks.cpp: gradients, and replaced elements
void search();     // line.cpp: which buffer a block is of, in tables of any shape
void sweeps();     // line.cpp: that all warps together take every block once
void limb_rows();  // limbs.cpp: limbs that are carried and rounded by a warp
void lists();      // lists.cpp: whole kernels: lists of buffers, summed and differentiated by any number of warps

}  // namespace fused_penalties
