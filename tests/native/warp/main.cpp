// Runs the programs of one warp without Python and without a GPU, against the plain code of canon.hpp, changes.hpp
// and exact.hpp, or against a search that looks at every place. Blocks lie in memory of just their size, so that the
// address sanitizer sees what goes beyond them.
//
// warp PART SEED    PART is trees, changes, search, sweep, limbs or lists, as parts.hpp says.
//
// Prints how many cases there were; the first that fails is described and ends it with status 1.

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "cases.hpp"
#include "parts.hpp"

using namespace fused_penalties;

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    dice.seed(strtoull(argv[2], nullptr, 10));
    const std::map<std::string, void (*)()> parts = {{"trees", trees},  {"changes", changes}, {"search", search},
                                                     {"sweep", sweeps}, {"limbs", limb_rows}, {"lists", lists}};
    parts.at(argv[1])();
    printf("%" PRIu64 " cases\n", cases);
    return 0;
}
