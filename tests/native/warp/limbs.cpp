// From limbs to numbers: limbs that a warp carries and rounds.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cases.hpp"
#include "cuda/finish.hpp"
#include "exact.hpp"
#include "parts.hpp"

namespace fused_penalties {
namespace {

using namespace cuda;

void check_row(std::vector<int64_t> row, const char* what) {
    Exact wanted[2];
    for (int which = 0; which < 2; ++which) wanted[which].add_limbs(row.data() + which * kLimbs);
    const PerLane<double> sums = round_row(row.data());
    for (int which = 0; which < 2; ++which) {
        const double sum = wanted[which].value();
        CHECK(same(sums[16 * which], sum), "%s: got %a, wanted %a", what, sums[16 * which], sum);
        CHECK(memcmp(wanted[which].canonical_limbs(), row.data() + which * kLimbs, kLimbs * sizeof(int64_t)) == 0, "%s",
              what);
    }
}

}  // namespace

void limb_rows() {
    for (int turn = 0; turn < 20000; ++turn) {
        std::vector<int64_t> row(kBothLimbs);
        const uint64_t lowest = any(0x7fe), span = any(3) ? 1 + any(60) : 0x7ff;
        for (int which = 0; which < 2; ++which)
            for (uint64_t n = any(50); n > 0; --n) {
                const uint64_t exponent = any(400) == 0 ? 0x7ff : std::min<uint64_t>(lowest + any(span), 0x7fe);
                limbs::deposit(row.data() + which * kLimbs, limbs::double_of_bits(exponent << 52 | dice() >> 12));
            }
        check_row(row, "deposited");
    }
    for (int turn = 0; turn < 20000; ++turn) {
        // Carries that were never moved, over digits that lie anywhere, and long rows of ones.
        std::vector<int64_t> row(kBothLimbs);
        for (int which = 0; which < 2; ++which) {
            const int first = int(any(kDigits)), last = first + int(any(uint64_t(kDigits - first + 1)));
            for (int k = first; k < last; ++k) {
                const uint64_t most = any(3) ? 0xffffffffu : (uint64_t(1) << 62);
                row[size_t(which * kLimbs + k)] = int64_t(any(2) ? any(most) : any(2) ? most : 0);
            }
            if (any(20) == 0) row[size_t(which * kLimbs + kDigits)] = int64_t(any(3));
            if (any(20) == 0) row[size_t(which * kLimbs + kDigits + 1)] = int64_t(any(3));
        }
        check_row(row, "any limbs");
    }
}

}  // namespace fused_penalties
