// The sums of one buffer whose elements come piece by piece. Whole blocks are summed where they lie; only the elements
// of a block that one chunk begins and a later one ends are copied, so that a small chunk costs little more than its
// copy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "borrow.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/sweep.hpp"
#include "cpu/walk.hpp"
#include "layout.hpp"
#include "lock.hpp"
#include "module.hpp"
#include "signals.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

// From here on a call lets other Python threads run, and looks at signals.
constexpr uint64_t kFewestBlocksUnlocked = 8, kBlocksBetweenChecks = 512;

// Adds the sums of one block, and with `largest` takes its largest magnitude.
void add_block(ExactSums& sums, const Kernels& kernels, DType dtype, const unsigned char* block, uint64_t count,
               bool largest) {
    BlockSums found;
    if (largest) {
        const uint64_t bits = kernels[dtype].sums_and_largest(block, int(count), &found);
        with_type(dtype, [&](auto type) { sums.add_largest(canon::widened_magnitude<decltype(type)>(bits)); });
    } else {
        kernels[dtype].block_sums(block, count, &found);
    }
    sums.add(found);
}

uint64_t to_next_block(uint64_t at, DType dtype) {
    const uint64_t each = uint64_t(block_elements(dtype));
    return (each - at % each) % each;
}

// What is known of elements [start, start + size) of a buffer: its head, raw elements of the block that it begins in
// the middle of; the sums of the whole blocks after that; its tail, raw elements of the block that it ends in the
// middle of. Each may be empty. All is head where it begins and ends in the middle of the same block.
struct Part {
    std::optional<DType> dtype;  // unknown until there are elements
    bool largest = false;        // whether the largest magnitudes are looked for
    uint64_t start = 0, size = 0;
    ExactSums blocks;
    unsigned char head[kBlockBytes], tail[kBlockBytes];

    uint64_t end() const { return start + size; }
    uint64_t each() const { return uint64_t(block_elements(*dtype)); }
    uint64_t bytes(uint64_t count) const { return dtype ? count * uint64_t(itemsize(*dtype)) : 0; }
    uint64_t head_size() const { return dtype ? std::min(size, to_next_block(start, *dtype)) : 0; }
    uint64_t tail_size() const { return dtype ? (size - head_size()) % each() : 0; }
    uint64_t whole_blocks() const { return dtype ? (size - head_size()) / each() : 0; }

    // Takes so many elements, all of the same block.
    void take(Walk& from, uint64_t count, const Kernels& kernels) {
        if (count == 0) return;
        const uint64_t before = tail_size();
        const bool to_head = size < to_next_block(start, *dtype);
        from.gather(to_head ? head + bytes(size) : tail + bytes(before), int(count));
        size += count;
        if (!to_head && before + count == each()) add_block(blocks, kernels, *dtype, tail, each(), largest);
    }

    // Those of whole blocks, which begin at the end of the part.
    void add(const ExactSums& sums, uint64_t count) {
        blocks.add(sums);
        size += count;
    }
};

// Of `count` elements of a span from the `first` one on: whole blocks.
ExactSums sums_of_whole_blocks(const Span& span, uint64_t first, uint64_t count, bool largest, int threads,
                               const Kernels& kernels) {
    ExactSums sums;
    if (count == 0) return sums;
    const uint64_t each = uint64_t(block_elements(span.dtype));
    std::optional<Unlocked> unlocked;
    if (count / each >= kFewestBlocksUnlocked) unlocked.emplace();
    if (span.rank == 0 && !span.swapped) {
        const Span part{span.data + first * uint64_t(itemsize(span.dtype)), count, nullptr, 0, span.dtype, false};
        const Line line(&part, 1);
        std::vector<ExactSums> cut;
        double largest_of_all;
        sum({&part, line, threads, kernels, check_signals}, cut,
            {nullptr, nullptr, nullptr, &sums, largest ? &largest_of_all : nullptr});
        return sums;
    }
    const DefaultFloatEnvironment environment;
    Walk walk(span, first);
    unsigned char block[kBlockBytes];
    bool check = true;
    for (uint64_t k = 0; k < count / each; ++k) {
        walk.gather(block, int(each));
        add_block(sums, kernels, span.dtype, block, each, largest);
        if (check && k % kBlocksBetweenChecks == kBlocksBetweenChecks - 1) check = check_signals();
    }
    return sums;
}

class Stream {
public:
    Stream(const std::string& dtype, uint64_t start, bool largest) {
        if (!dtype.empty()) part_.dtype = dtype_named(dtype);
        part_.start = start;
        part_.largest = largest;
    }

    // From what parts() gave.
    static std::unique_ptr<Stream> from(const std::string& dtype, uint64_t start, uint64_t size,
                                        const py::array_t<int64_t, py::array::c_style>& limbs,
                                        std::optional<double> largest, const std::string& head,
                                        const std::string& tail) {
        auto stream = std::make_unique<Stream>(dtype, start, largest.has_value());
        Part& part = stream->part_;
        if (size && !part.dtype) throw py::value_error("size: got " + std::to_string(size) + " elements of no dtype");
        check_end(start, size);
        part.size = size;
        const auto copy = [&](const char* what, const std::string& from, uint64_t count, unsigned char* to) {
            if (from.size() != part.bytes(count))
                throw py::value_error(std::string(what) + ": got " + std::to_string(from.size()) + " bytes; wanted " +
                                      std::to_string(part.bytes(count)) + ", by dtype, start and size");
            std::copy(from.begin(), from.end(), to);
        };
        copy("head", head, part.head_size(), part.head);
        copy("tail", tail, part.tail_size(), part.tail);
        if (limbs.size() != 2 * kLimbs) throw py::value_error("limbs: wanted 2 x " + std::to_string(kLimbs));
        part.blocks.abs.add_limbs(limbs.data());
        part.blocks.square.add_limbs(limbs.data() + kLimbs);
        const uint64_t blocks = part.whole_blocks();
        for (Exact* sum : {&part.blocks.abs, &part.blocks.square}) {
            const int64_t* const own = sum->canonical_limbs();
            const bool zero = std::all_of(own, own + kLimbs, [](int64_t limb) { return limb == 0; });
            if ((blocks == 0 && !zero) || uint64_t(own[kDigits]) > blocks || uint64_t(own[kDigits + 1]) > blocks)
                throw py::value_error("limbs: got the sums of more than " + std::to_string(blocks) +
                                      " blocks; wanted no more, by dtype, start and size");
        }
        if (largest) {
            if (blocks == 0 && *largest != 0)
                throw py::value_error("largest: got " + std::to_string(*largest) +
                                      "; wanted 0 where no block is whole");
            part.blocks.largest =
                canon::widened_magnitude<canon::Float64>(canon::largest<canon::Float64>(&*largest, 1));
        }
        return stream;
    }

    void update(const py::object& chunk, const py::object& threads) {
        const int at_most = checked_threads(threads);
        Spans spans;
        const Items items("chunk", py::make_tuple(chunk), py::none(), true, Use::read,
                          [&](const Items&, size_t, const View& view) { spans.add(view); });
        if (items.device() >= 0 || spans.size() == 0)
            throw py::value_error("chunk: is on " + name_of(items.library().device) + "; wanted it on the CPU");
        const Turn turn(*this);
        const Span& span = spans[0];
        const Kernels& kernels = active_kernels();
        check_dtype("chunk", span.dtype);
        if (span.count == 0) return;
        check_end(part_.end(), span.count);
        // The elements that end a block which was begun, those of whole blocks, and those that begin another one.
        const uint64_t first = std::min(to_next_block(part_.end(), span.dtype), span.count);
        const uint64_t last = (span.count - first) % uint64_t(block_elements(span.dtype));
        const uint64_t whole = span.count - first - last;
        const ExactSums sums = sums_of_whole_blocks(span, first, whole, part_.largest, at_most, kernels);
        // That may have raised; what follows cannot.
        Walk begin(span, 0), end(span, span.count - last);
        const DefaultFloatEnvironment environment;
        const std::lock_guard<std::mutex> lock(changing_);
        part_.dtype = span.dtype;
        part_.take(begin, first, kernels);
        if (whole) part_.add(sums, whole);
        part_.take(end, last, kernels);
    }

    void merge(const Stream& other) {
        const Part next = other.part();
        const Turn turn(*this);
        if (next.largest != part_.largest)
            throw py::value_error(
                std::string("other: made with largest=") + (next.largest ? "True" : "False") +
                "; wanted a stream like this one, made with largest=" + (part_.largest ? "True" : "False"));
        if (next.start != part_.end())
            throw py::value_error("other: starts at element " + std::to_string(next.start) + "; wanted " +
                                  std::to_string(part_.end()) + ", where this stream ends");
        if (next.dtype) check_dtype("other", *next.dtype);
        if (next.size == 0) return;
        check_end(next.start, next.size);
        const Kernels& kernels = active_kernels();
        const uint64_t head = next.head_size(), tail = next.tail_size();
        const Span spans[2] = {{next.head, head, nullptr, 0, *next.dtype, false},
                               {next.tail, tail, nullptr, 0, *next.dtype, false}};
        Walk from_head(spans[0], 0), from_tail(spans[1], 0);
        const DefaultFloatEnvironment environment;
        const std::lock_guard<std::mutex> lock(changing_);
        part_.dtype = next.dtype;
        part_.take(from_head, head, kernels);
        part_.add(next.blocks, next.size - head - tail);
        part_.take(from_tail, tail, kernels);
    }

    // Of the part as a buffer of its own, or of one that is cut at blocks: its limbs (1, 2, kLimbs), its largest
    // magnitude if it is looked for, and how many elements it has.
    py::tuple limbs() const {
        Part part = this->part();
        if (part.head_size())
            throw py::value_error("the stream starts at element " + std::to_string(part.start) +
                                  ", in the middle of a block of " + std::to_string(part.each()) +
                                  " elements; wanted it merged into the stream of those before");
        if (const uint64_t tail = part.tail_size()) {
            const DefaultFloatEnvironment environment;
            add_block(part.blocks, active_kernels(), *part.dtype, part.tail, tail, part.largest);
        }
        return py::make_tuple(limbs_of(part.blocks), largest_of(part), part.size);
    }

    py::tuple parts() const {
        Part part = this->part();
        const auto raw = [&](const unsigned char* elements, uint64_t count) {
            return py::bytes(reinterpret_cast<const char*>(elements), part.bytes(count));
        };
        return py::make_tuple(part.dtype ? name_of(*part.dtype) : "", part.start, part.size, limbs_of(part.blocks),
                              largest_of(part), raw(part.head, part.head_size()), raw(part.tail, part.tail_size()));
    }

    std::optional<std::string> dtype() const {
        const std::lock_guard<std::mutex> lock(changing_);
        if (!part_.dtype) return {};
        return name_of(*part_.dtype);
    }
    uint64_t start() const { return part_.start; }
    uint64_t size() const {
        const std::lock_guard<std::mutex> lock(changing_);
        return part_.size;
    }

private:
    // The one call at a time that may change the stream. Others that want to are told so: had they waited, the order of
    // the elements would be chance. A signal's handler may come in the middle of a call, and would wait for ever.
    class Turn {
    public:
        explicit Turn(Stream& stream) : taken_(stream.taken_) {
            if (taken_.exchange(true))
                throw std::runtime_error(
                    "this stream is being updated by another call, in another thread or below a signal's handler; "
                    "wanted one after the other");
        }
        ~Turn() { taken_ = false; }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

    private:
        std::atomic<bool>& taken_;
    };

    static void check_end(uint64_t start, uint64_t size) {
        constexpr uint64_t kMost = uint64_t(std::numeric_limits<int64_t>::max());
        if (start > kMost || size > kMost - start)
            throw py::value_error("size: got more than 2^63 - 1 elements, with those before the start");
    }

    void check_dtype(const char* what, DType dtype) const {
        if (part_.dtype && *part_.dtype != dtype)
            throw py::type_error(std::string(what) + ": dtype " + name_of(dtype) + "; wanted " + name_of(*part_.dtype) +
                                 ", the stream's");
    }

    // As the last call left it that changed it. One that is at work changes it at its end, under the lock, in a moment.
    Part part() const {
        const std::lock_guard<std::mutex> lock(changing_);
        return part_;
    }

    static py::array_t<int64_t> limbs_of(ExactSums& sums) {
        py::array_t<int64_t> limbs({py::ssize_t(1), py::ssize_t(2), py::ssize_t(kLimbs)});
        std::copy_n(sums.abs.canonical_limbs(), kLimbs, limbs.mutable_data());
        std::copy_n(sums.square.canonical_limbs(), kLimbs, limbs.mutable_data() + kLimbs);
        return limbs;
    }

    static std::optional<double> largest_of(const Part& part) {
        if (!part.largest) return {};
        return limbs::double_of_bits(part.blocks.largest);
    }

    Part part_;
    std::atomic<bool> taken_{false};
    mutable std::mutex changing_;  // held for moments only, in which no Python code runs
};

}  // namespace

void define_stream(py::module_& m) {
    using py::arg;
    py::class_<Stream>(m, "Stream")
        .def(py::init<const std::string&, uint64_t, bool>(), arg("dtype"), arg("start"), arg("largest"))
        .def_static("from_parts", &Stream::from, arg("dtype"), arg("start"), arg("size"), arg("limbs"), arg("largest"),
                    arg("head"), arg("tail"))
        .def_property_readonly("dtype", &Stream::dtype)
        .def_property_readonly("start", &Stream::start)
        .def_property_readonly("size", &Stream::size)
        .def("update", &Stream::update, arg("chunk"), arg("threads"))
        .def("merge", &Stream::merge, arg("other"))
        .def("limbs", &Stream::limbs)
        .def("parts", &Stream::parts);
}

}  // namespace fused_penalties
