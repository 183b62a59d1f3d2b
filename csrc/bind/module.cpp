// The extension module: its table of contents, and the few functions that Python calls.
#include "module.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "borrow.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/pool.hpp"
#include "cpu/sweep.hpp"
#include "layout.hpp"
#include "lock.hpp"
#include "signals.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

using Doubles = py::array_t<double>;
using Limbs = py::array_t<int64_t, py::array::c_style>;  // of no other dtype, which would be rounded

// The weights of one call.
struct Weights {
    Spans spans;
    Items items;

    Weights(const py::object& items, const py::object& names, bool single)
        : items("weights", items, names, single, Use::read,
                [this](const Items&, size_t, const View& view) { spans.add(view); }) {}
};

py::module_ device_module() { return py::module_::import("fused_penalties._device"); }

py::object sums(const py::object& items, const py::object& names, bool single, const py::object& threads, bool unique) {
    const int at_most = checked_threads(threads);
    Weights weights(items, names, single);
    if (weights.items.device() >= 0) return device_module().attr("sums")(items, names, single, unique);
    Spans& spans = weights.spans;
    if (unique) spans.drop_repeats();
    const Line line(spans.data(), spans.size());
    const Work work{spans.data(), line, at_most, active_kernels(), check_signals};
    Doubles abs(py::ssize_t(spans.size())), square(py::ssize_t(spans.size()));
    ExactSums total;
    const SumsOut out{abs.mutable_data(), square.mutable_data(), nullptr, &total};
    {
        const Unlocked unlocked;
        std::vector<ExactSums> cut;
        sum(work, cut, out);
    }
    return py::make_tuple(abs, square, total.abs.value(), total.square.value(), sizes_of(spans));
}

py::object partial_sums(const py::object& items, const py::object& names, bool single, const py::object& threads) {
    const int at_most = checked_threads(threads);
    const Weights weights(items, names, single);
    if (weights.items.device() >= 0) return device_module().attr("partial_sums")(items, names, single);
    const Spans& spans = weights.spans;
    const Line line(spans.data(), spans.size());
    const Work work{spans.data(), line, at_most, active_kernels(), check_signals};
    Limbs limbs({py::ssize_t(spans.size()), py::ssize_t(2), py::ssize_t(kLimbs)});
    const SumsOut out{nullptr, nullptr, limbs.mutable_data(), nullptr};
    {
        const Unlocked unlocked;
        std::vector<ExactSums> cut;
        sum(work, cut, out);
    }
    return limbs;
}

// Of one array; errors begin with the label.
std::string dtype_of(const py::object& array, const std::string& label) {
    std::string name;
    const Items items(label.c_str(), py::make_tuple(array), py::none(), true, Use::read,
                      [&](const Items&, size_t, const View& view) { name = name_of(view.dtype); });
    return name;
}

// Calls visit(row, accumulator) for each row of limbs (n, 2, kLimbs), whose shape is checked here: an array's can be
// changed at any time.
template <class Visit>
void each_limbs(const Limbs& limbs, const Visit& visit) {
    if (limbs.ndim() != 3 || limbs.shape(1) != 2 || limbs.shape(2) != kLimbs)
        throw py::value_error("limbs: got an array of shape " + py::repr(limbs.attr("shape")).cast<std::string>() +
                              "; wanted (n, 2, " + std::to_string(kLimbs) + ")");
    const py::ssize_t rows = limbs.size() / kLimbs;
    for (py::ssize_t row = 0; row < rows; ++row) {
        Exact sum;
        sum.add_limbs(limbs.data() + row * kLimbs);
        const int64_t* canonical = sum.canonical_limbs();
        if (std::min({canonical[kDigits - 1], canonical[kDigits], canonical[kDigits + 1]}) < 0)
            throw py::value_error("limbs: got a negative sum; wanted sums of non-negative values");
        visit(row, sum);
    }
}

Limbs canonical_limbs(const Limbs& limbs) {
    Limbs out(std::vector<py::ssize_t>(limbs.shape(), limbs.shape() + limbs.ndim()));
    int64_t* to = out.mutable_data();
    each_limbs(limbs,
               [&](py::ssize_t row, Exact& sum) { std::copy_n(sum.canonical_limbs(), kLimbs, to + row * kLimbs); });
    return out;
}

py::tuple sums_of_limbs(const Limbs& limbs) {
    const py::ssize_t n = limbs.ndim() ? limbs.shape(0) : 0;
    Doubles abs(n), square(n);
    double* to[2] = {abs.mutable_data(), square.mutable_data()};
    Exact total[2];
    each_limbs(limbs, [&](py::ssize_t row, Exact& sum) {
        to[row % 2][row / 2] = sum.value();
        total[row % 2].add(sum);
    });
    return py::make_tuple(abs, square, total[0].value(), total[1].value());
}

std::string switch_isa(const std::string& name) {
    const std::string previous = active_kernels().name;
    use_isa(name);
    return previous;
}

}  // namespace

py::array_t<int64_t> sizes_of(const Spans& spans) {
    py::array_t<int64_t> sizes(py::ssize_t(spans.size()));
    std::transform(spans.begin(), spans.end(), sizes.mutable_data(),
                   [](const Span& span) { return int64_t(span.count); });
    return sizes;
}

}  // namespace fused_penalties

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    using namespace fused_penalties;
    using py::arg;

    m.attr("__version__") = FUSED_PENALTIES_VERSION;
    m.attr("LIMBS") = kLimbs;

    m.def("sums", &sums, arg("items"), arg("names"), arg("single"), arg("threads"), arg("unique"));
    m.def("partial_sums", &partial_sums, arg("items"), arg("names"), arg("single"), arg("threads"));
    m.def("dtype_of", &dtype_of, arg("array"), arg("label"));
    m.def("canonical_limbs", &canonical_limbs, arg("limbs"));
    m.def("sums_of_limbs", &sums_of_limbs, arg("limbs"));

    m.def("compiled_isas", &compiled_isas);
    m.def("supported_isas", &supported_isas);
    m.def("active_isa", [] { return active_kernels().name; });
    m.def("why_isa", &why_isa);
    m.def("use_isa", &switch_isa, arg("name"));
    m.def("default_threads", &default_threads);
    m.def("checked_threads", &checked_threads, arg("threads"));

    define_plan(m);
#if defined(FUSED_PENALTIES_CUDA)
    define_device_plan(m);
#endif
}
