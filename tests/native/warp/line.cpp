// The line of blocks: which buffer a block is of, and who takes which blocks.

#include "cuda/line.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "parts.hpp"

namespace fused_penalties {
namespace {

using namespace cuda;

// A table of nothing but the ends.
struct Ends {
    std::vector<uint64_t> ends;
    Table table() const { return {ends.data(), nullptr, nullptr, uint32_t(ends.size())}; }
};

void search_in(const Ends& ends, const char* what) {
    const auto& all = ends.ends;
    const auto wanted = [&](uint64_t block) {
        return uint32_t(std::upper_bound(all.begin(), all.end(), block) - all.begin());
    };
    const auto check = [&](uint64_t block) {
        const uint32_t i = wanted(block);
        const uint32_t lows[] = {0, i, i ? i - 1 : 0, i / 2, uint32_t(any(uint64_t(i) + 1))};
        for (uint32_t low : lows)
            CHECK(buffer_of(ends.table(), low, block) == i,
                  "%s, %zu buffers, block %" PRIu64 " from %u: got %u, wanted %u", what, all.size(), block, low,
                  buffer_of(ends.table(), low, block), i);
    };
    for (size_t i = 0; i < all.size(); ++i) {
        const uint64_t begin = i ? all[i - 1] : 0;
        if (begin == all[i]) continue;
        check(begin);
        check(all[i] - 1);
        check(begin + any(all[i] - begin));
    }
}

void sweep_over(const std::vector<uint64_t>& counts, uint64_t first, uint64_t end, uint64_t chunks, uint32_t warps) {
    std::vector<Span> spans;
    for (uint64_t count : counts) spans.push_back({nullptr, count, nullptr, 0, DType::float32, false});
    const HostTable host(spans.data(), nullptr, spans.size(), false);
    // What was uploaded lies as it likes.
    std::vector<uint64_t> memory(host.bytes().size() / 8 + 1);
    if (!host.bytes().empty()) memcpy(memory.data(), host.bytes().data(), host.bytes().size());
    const Table table = host.at(memory.data());
    end = std::min(end, host.blocks());
    if (first >= end) return;  // then nothing is launched
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    for (uint32_t warp = 0; warp < warps; ++warp)
        sweep(table, {first, end, chunks}, warp, warps,
              [&](uint32_t i, const Buffer& buffer, uint64_t from, uint64_t to) {
                  CHECK(buffer.slot == table.buffers[i].slot && from < to && buffer.count == counts[i], "buffer %u", i);
                  uint64_t elements = 0, blocks = 0;
                  if (to - from < 100)
                      each_block(buffer, from, to, [&](uint64_t at, int n) {
                          CHECK(at == (from + blocks) * 2048 && n > 0 && n <= 2048, "element %" PRIu64, at);
                          ++blocks;
                          elements += uint64_t(n);
                      });
                  if (to - from < 100)
                      CHECK(blocks == to - from && elements == std::min(to * 2048, buffer.count) - from * 2048,
                            "buffer %u", i);
                  taken.push_back({host.begin(i) + from, host.begin(i) + to});
              });
    std::sort(taken.begin(), taken.end());
    uint64_t at = first;
    for (const auto& [from, to] : taken) {
        CHECK(from == at, "block %" PRIu64 " after %" PRIu64, from, at);
        at = to;
    }
    CHECK(at == end, "%" PRIu64 " of %" PRIu64, at, end);
}

}  // namespace

void search() {
    // The sizes of buffers, in blocks, by their place.
    const std::map<std::string, uint64_t (*)(size_t i, size_t n)> shapes = {
        {"one block each", [](size_t, size_t) -> uint64_t { return 1; }},
        {"few blocks", [](size_t, size_t) { return 1 + any(5); }},
        {"some empty", [](size_t, size_t) { return any(3) ? any(4) : 0; }},
        {"nearly all empty", [](size_t, size_t) -> uint64_t { return any(50) == 0; }},
        {"empty at the start", [](size_t i, size_t n) -> uint64_t { return i > n / 2; }},
        {"empty at the end", [](size_t i, size_t n) -> uint64_t { return i <= n / 3; }},
        {"empty in the middle", [](size_t i, size_t n) -> uint64_t { return i < n / 3 || i > n / 3 * 2; }},
        {"only the last", [](size_t i, size_t n) -> uint64_t { return i == n - 1 ? 7 : 0; }},
        {"only the first", [](size_t i, size_t) -> uint64_t { return i == 0 ? 7 : 0; }},
        {"huge", [](size_t, size_t) { return any(uint64_t(1) << 40); }},
        {"one huge", [](size_t i, size_t n) { return i == n / 2 ? uint64_t(1) << 45 : any(2); }},
        {"at the edge of 32 bits", [](size_t i, size_t) { return i == 0 ? 0xfffffffeu : any(2); }},
    };
    for (const auto& [what, size] : shapes)
        for (size_t n : {1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 1023, 1024, 1025, 1056, 1057, 5000, 32769, 70000}) {
            Ends ends;
            uint64_t end = 0;
            for (size_t i = 0; i < n; ++i) ends.ends.push_back(end += size(i, n));
            search_in(ends, what.c_str());
        }
    for (size_t n = 1; n <= 300; ++n) {
        Ends ends;
        uint64_t end = 0;
        for (size_t i = 0; i < n; ++i) ends.ends.push_back(end += any(3));
        search_in(ends, "any");
    }
}

void sweeps() {
    for (int turn = 0; turn < 400; ++turn) {
        std::vector<uint64_t> counts(any(60));
        for (uint64_t& count : counts) {
            const uint64_t most[] = {1, 2000, 2049, 30000};
            count = any(most[any(4)]);
        }
        const uint64_t first = any(2) ? 0 : any(10);
        const uint64_t end = any(2) ? ~uint64_t(0) : first + any(30);
        sweep_over(counts, first, std::max(first, end), 1 + any(8), 1 + uint32_t(any(50)));
    }
    // Beyond 2^32 blocks, some of them.
    const uint64_t huge = (uint64_t(1) << 33) * 2048;
    for (uint64_t chunks = 1; chunks <= 8; ++chunks)
        sweep_over({5, huge, 0, 0, 7000, 1}, (uint64_t(1) << 33) - 200, ~uint64_t(0), chunks, 1 + uint32_t(any(500)));
}

}  // namespace fused_penalties
