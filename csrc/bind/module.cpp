// The extension module: its table of contents, and the few functions that Python calls.
#include "module.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "borrow.hpp"
#include "bound.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/pool.hpp"
#include "facts.hpp"
#include "jax/penalty.hpp"
#include "results.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

using Doubles = py::array_t<double>;
using Limbs = py::array_t<int64_t, py::array::c_style>;  // of no other dtype, which would be rounded

// The plan of weights on a GPU; null for those on the CPU, which are left alone.
py::object device_plan(BoundWeights& weights) {
#if defined(FUSED_PENALTIES_CUDA)
    if (weights.items().device() >= 0) return make_device_plan(std::move(weights));
#endif
    (void)weights;
    return {};
}

// The one way in: any weights as the plan that their memory asks for.
py::object bind(const py::object& items, const py::object& names, bool single, const py::object& threads, bool keep,
                bool unique, bool wide) {
    const int at_most = checked_threads(threads);
    BoundWeights weights(items, names, single, keep, wide);
    if (unique) weights.drop_repeats();
    if (const py::object plan = device_plan(weights)) return plan;
    return make_host_plan(std::move(weights), at_most);
}

// bind(...).sums(largest) for weights on the CPU, without a Python object for the plan, which would cost as much as 16
// KB of weights in cache; for others their plan.
py::object sums(const py::object& items, const py::object& names, bool single, const py::object& threads, bool unique,
                bool largest) {
    const int at_most = checked_threads(threads);
    BoundWeights weights(items, names, single, false, false);
    if (unique) weights.drop_repeats();
    if (const py::object plan = device_plan(weights)) return plan;
    return sums_on_host(std::move(weights), at_most, largest);
}

// Of one array; errors begin with the label.
std::string dtype_of(const py::object& array, const std::string& label) {
    std::string name;
    const Items items(label.c_str(), py::make_tuple(array), py::none(), true, Use::read,
                      [&](const Items&, size_t, const View& view) { name = name_of(view.dtype); });
    return name;
}

// Where tensors are, and what they are there: while their memory is kept, the same bytes mean the same elements. None
// if one has no table that could be asked.
py::object place_of(const py::list& tensors) {
    std::vector<int64_t> facts;
    facts.reserve(8 * tensors.size());  // enough for most
    const auto take = [&](int64_t fact) { facts.push_back(fact); };
    PyTypeObject* type = nullptr;
    const dlpack::ExchangeApi* api = nullptr;
    for (const py::handle item : tensors) {
        if (Py_TYPE(item.ptr()) != type) {
            type = Py_TYPE(item.ptr());
            api = exchange_api(type);
        }
        dlpack::Tensor tensor;
        if (!api || api->tensor_from_object(item.ptr(), &tensor) != 0) {
            PyErr_Clear();
            return py::none();
        }
        take(int64_t(tensor.device.type) << 32 | uint32_t(tensor.device.id));
        tensor_facts(tensor, take);
    }
    return py::bytes(reinterpret_cast<const char*>(facts.data()), facts.size() * sizeof facts[0]);
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

// Of one buffer, in float64, from its sums and coefficients that are not rounded yet.
double term(const std::string& dtype, double abs, double square, double l1, double l2) {
    const DefaultFloatEnvironment environment;
    const DType of = dtype_named(dtype);
    return canon::term(rounded_coefficient(l1, of), rounded_coefficient(l2, of), abs, square);
}

// Of many, whose coefficients are rounded.
Doubles terms(const Doubles& abs, const Doubles& square, const std::vector<double>& l1, const std::vector<double>& l2) {
    const py::ssize_t n = abs.size();
    if (square.size() != n || py::ssize_t(l1.size()) != n || py::ssize_t(l2.size()) != n)
        throw py::value_error("terms: wanted as many of each");
    const auto a = abs.unchecked<1>(), s = square.unchecked<1>();
    Doubles out(n);
    double* const to = out.mutable_data();
    const DefaultFloatEnvironment environment;
    for (py::ssize_t i = 0; i < n; ++i) to[i] = canon::term(l1[size_t(i)], l2[size_t(i)], a(i), s(i));
    return out;
}

double coefficient(const std::string& dtype, double value) {
    const DefaultFloatEnvironment environment;
    return rounded_coefficient(value, dtype_named(dtype));
}

double total(const std::vector<double>& terms) {
    const DefaultFloatEnvironment environment;
    return total_of(terms);
}

// For each element type by its name, whether its penalties are float64, not float32.
py::dict result_is_float64() {
    py::dict of;
    for (int i = 0; i < kDTypes; ++i) of[name_of(DType(i))] = computed_in_double(DType(i));
    return of;
}

std::string switch_isa(const std::string& name) {
    const std::string previous = active_kernels().name;
    use_isa(name);
    return previous;
}

}  // namespace

DType dtype_named(const std::string& name) {
    for (int i = 0; i < kDTypes; ++i)
        if (name == name_of(DType(i))) return DType(i);
    throw py::value_error("dtype: got " + name);
}

}  // namespace fused_penalties

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    using namespace fused_penalties;
    using py::arg;

    m.attr("__version__") = FUSED_PENALTIES_VERSION;
    m.attr("LIMBS") = kLimbs;

    m.def("bind", &bind, arg("items"), arg("names"), arg("single"), arg("threads"), arg("keep"), arg("unique"),
          arg("wide"));
    m.def("sums", &sums, arg("items"), arg("names"), arg("single"), arg("threads"), arg("unique"), arg("largest"));
    m.def("dtype_of", &dtype_of, arg("array"), arg("label"));
    m.def("place_of", &place_of, arg("tensors"));
    m.def("canonical_limbs", &canonical_limbs, arg("limbs"));
    m.def("sums_of_limbs", &sums_of_limbs, arg("limbs"));

    m.attr("RESULT_IS_FLOAT64") = result_is_float64();
    m.def("coefficient", &coefficient, arg("dtype"), arg("value"));
    m.def("term", &term, arg("dtype"), arg("abs"), arg("square"), arg("l1"), arg("l2"));
    m.def("terms", &terms, arg("abs"), arg("square"), arg("l1"), arg("l2"));
    m.def("total", &total, arg("terms"));
    m.def("scalar", &numpy_scalar, arg("value"), arg("wide"));

    m.def("compiled_isas", &compiled_isas);
    m.def("supported_isas", &supported_isas);
    m.def("active_isa", [] { return active_kernels().name; });
    m.def("why_isa", &why_isa);
    m.def("use_isa", &switch_isa, arg("name"));
    m.def("default_threads", &default_threads);
    m.def("checked_threads", &checked_threads, arg("threads"));

    // For the handler that is compiled apart: csrc/jax/interface.hpp.
    m.attr("JAX_INTERFACE") = kJaxInterface;
    m.attr("PENALTY_OF_ROWS") = reinterpret_cast<uintptr_t>(&penalty_of_rows);

    define_host_plan(m);
    define_stream(m);
    define_file_map(m);
#if defined(FUSED_PENALTIES_CUDA)
    define_device_plan(m);
#endif
}
