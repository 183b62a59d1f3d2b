// Weights that stay where they are: found once, then summed, differentiated and changed at every step.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <memory>
#include <vector>

#include "borrow.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/sweep.hpp"
#include "layout.hpp"
#include "module.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

const char* name_of(DType dtype) {
    constexpr const char* kNames[] = {"float16", "bfloat16", "float32", "float64"};
    return kNames[int(dtype)];
}

std::string text_of(int rank, const int64_t* shape) {
    py::tuple sizes(static_cast<size_t>(rank));
    for (int k = 0; k < rank; ++k) sizes[size_t(k)] = shape[k];
    return py::repr(sizes);
}

// Memory that a change may be written to once for each element.
void check_writable(const Items& items, size_t i, const View& view) {
    if (!view.writable)
        throw py::value_error(items.label(i) + ": is read-only, or a copy; wanted memory that can be written");
    if (repeats(view))
        throw py::value_error(items.label(i) + ": repeats its elements (a broadcast view, say); wanted each one once");
}

bool overlap(const Reach& x, const Reach& y) { return std::max(x.first, y.first) < std::min(x.second, y.second); }

// A coefficient that is zero leaves its term out, whatever it is multiplied by.
double times(double coefficient, double factor) { return coefficient != 0 ? coefficient * factor : 0; }

// Without the empty ones, which overlap nothing but would stand between others that do.
void collect(std::vector<Reach>& reaches, const Reach& reach) {
    if (reach.first < reach.second) reaches.push_back(reach);
}

// Sorts them on the way.
bool overlapping(std::vector<Reach>& reaches) {
    std::sort(reaches.begin(), reaches.end());
    for (size_t k = 1; k < reaches.size(); ++k)
        if (overlap(reaches[k - 1], reaches[k])) return true;
    return false;
}

class Plan {
public:
    Plan(const py::object& items, const py::object& names, bool single) : names_(names), single_(single) {
        items_ =
            std::make_unique<Items>("weights", items, names, single, [this](const Items&, size_t, const View& view) {
                Weight& weight = weights_.emplace_back(
                    Weight{view, {view.shape, view.shape + view.rank}, {view.strides, view.strides + view.rank}, {}});
                weight.view.shape = weight.shape.data();
                weight.view.strides = weight.strides.data();
                weight.reach = reach(weight.view);
                spans_.add(weight.view);
            });
        line_ = Line(spans_.data(), spans_.size());
        set_coefficients(std::vector<double>(spans_.size()), std::vector<double>(spans_.size()));
    }

    ~Plan() { delete spare_.load(); }

    std::vector<std::string> dtypes() const {
        std::vector<std::string> names;
        for (const Span& span : spans_) names.push_back(name_of(span.dtype));
        return names;
    }

    void set_coefficients(const std::vector<double>& l1, const std::vector<double>& l2) {
        const size_t n = spans_.size();
        if (l1.size() != n || l2.size() != n)
            throw py::value_error("coefficients: got " + std::to_string(l1.size()) + " and " +
                                  std::to_string(l2.size()) + "; wanted " + std::to_string(n));
        for (size_t i = 0; i < n; ++i)
            if (l1[i] < 0 || l2[i] < 0) throw py::value_error(items_->label(i) + ": got a negative coefficient");
        l1_ = l1;
        l2_ = l2;
        active_.clear();
        active_spans_.clear();
        for (size_t i = 0; i < n; ++i) {
            if (l1[i] == 0 && l2[i] == 0) continue;
            active_.push_back(i);
            active_spans_.push_back(spans_[i]);
        }
        active_line_ = Line(active_spans_.data(), active_spans_.size());
        std::vector<Reach> reaches;
        for (size_t i : active_) collect(reaches, weights_[i].reach);
        tied_ = overlapping(reaches);
    }

    py::tuple sums(const py::object& threads) {
        const py::ssize_t n = py::ssize_t(spans_.size());
        py::array_t<double> abs(n), square(n);
        ExactSums total;
        const SumsOut out{abs.mutable_data(), square.mutable_data(), nullptr, &total};
        const Work work{spans_.data(), line_, checked_threads(threads), active_kernels()};
        Borrowed space(*this);
        {
            const py::gil_scoped_release release;
            sum(work, space->cut, out);
        }
        return py::make_tuple(abs, square, total.abs.value(), total.square.value());
    }

    double value(const py::object& threads) {
        const Work work = active_work(active_spans_.data(), threads);
        Borrowed space(*this);
        const py::gil_scoped_release release;
        return weighed(work, *space, nullptr);
    }

    py::array_t<double> values(const py::object& threads) {
        const Work work = active_work(active_spans_.data(), threads);
        py::array_t<double> values(py::ssize_t(spans_.size()));
        double* out = values.mutable_data();
        Borrowed space(*this);
        const py::gil_scoped_release release;
        weighed(work, *space, nullptr);
        const DefaultFloatEnvironment environment;
        std::fill_n(out, spans_.size(), 0.0);
        for (size_t k = 0; k < active_.size(); ++k) out[active_[k]] = term(k, *space);
        return values;
    }

    void add_grad(const py::object& grads, double upstream, const py::object& threads) {
        with_gradients(grads, upstream, threads,
                       [](const Work& work, Workspace&, const Change& gradient) { change(work, gradient); });
    }

    double value_and_grad(const py::object& grads, double upstream, const py::object& threads) {
        double value = 0;
        with_gradients(grads, upstream, threads, [&](const Work& work, Workspace& space, const Change& gradient) {
            value = weighed(work, space, &gradient);
        });
        return value;
    }

    void prox(double step, const py::object& threads) {
        change_weights(Change::proximal, threads,
                       [&](size_t i) { return Factors{step * l1_[i], 1 + 2 * step * l2_[i]}; });
    }

    void decay(double rate, const py::object& threads) {
        change_weights(Change::scale, threads, [&](size_t i) { return Factors{1 - 2 * rate * l2_[i], 0}; });
    }

    double clip_grad_norm(const py::object& grads, double max_norm, const py::object& threads) {
        Borrowed space(*this);
        Spans spans;
        std::vector<Reach> reaches;
        const Items items(
            "grads", checked_grads(grads), names_, single_,
            [&](const Items& given, size_t i, const View& grad) {
                check_grad(given, i, grad);
                spans.add(grad);
                collect(reaches, reach(grad));
            },
            true);
        const Line line(spans.data(), spans.size());
        const Work work{spans.data(), line, safe_threads(line, reaches, threads), active_kernels()};
        const py::gil_scoped_release release;
        ExactSums total;
        sum(work, space->cut, {nullptr, nullptr, nullptr, &total});
        const DefaultFloatEnvironment environment;
        const double norm = std::sqrt(total.square.value()), factor = max_norm / (norm + 1e-6);
        if (factor >= 1) return norm;
        space->factors.assign(spans.size(), {factor, 0});
        change(work, {Change::scale, spans.data(), space->factors.data()});
        return norm;
    }

    // Not a method of training: the limit that bench/plan.py compares with.
    void exchange_all(const py::object& grads, const py::object& threads) {
        const Bound bound = bind(grads);
        const Work work = active_work(bound.weights.data(), threads);
        const py::gil_scoped_release release;
        exchange(work, bound.grads.data());
    }

private:
    struct Weight {
        View view;
        std::vector<int64_t> shape, strides;  // what the view points to
        Reach reach;
    };

    // Gradients and weights in step with each other, of the buffers that have a penalty.
    struct Bound {
        std::unique_ptr<Items> items;
        Spans weights, grads;
        std::vector<Reach> reaches;  // of the gradients
    };

    // What a call needs room for.
    struct Workspace {
        std::vector<double> abs, square;
        std::vector<ExactSums> cut;
        std::vector<Factors> factors;
    };

    // A workspace for one call. One is kept for the next, so that calls that do not overlap allocate nothing.
    class Borrowed {
    public:
        explicit Borrowed(Plan& plan) : plan_(plan) {
            plan.items_->check_unmoved();  // here, because every call passes here before it looks at memory
            space_.reset(plan.spare_.exchange(nullptr));
            if (!space_) space_ = std::make_unique<Workspace>();
        }
        ~Borrowed() { delete plan_.spare_.exchange(space_.release()); }
        Workspace& operator*() { return *space_; }
        Workspace* operator->() { return space_.get(); }

    private:
        Plan& plan_;
        std::unique_ptr<Workspace> space_;
    };

    Work active_work(const Span* spans, const py::object& threads) const {
        return {spans, active_line_, checked_threads(threads), active_kernels()};
    }

    // The float64 penalty of the k-th active buffer; a coefficient that is zero leaves its term out.
    double term(size_t k, const Workspace& space) const {
        const double l1 = l1_[active_[k]], l2 = l2_[active_[k]];
        return times(l1, space.abs[k]) + times(l2, space.square[k]);
    }

    // Sums the active buffers, with a change in the same read, and adds their penalties exactly.
    double weighed(const Work& work, Workspace& space, const Change* change) const {
        space.abs.resize(active_.size());
        space.square.resize(active_.size());
        ExactSums ignored;
        sum(work, space.cut, {space.abs.data(), space.square.data(), nullptr, &ignored}, change);
        const DefaultFloatEnvironment environment;
        Exact total;
        for (size_t k = 0; k < active_.size(); ++k) total.add(term(k, space));
        return total.value();
    }

    py::object checked_grads(const py::object& grads) const {
        if (py::len(grads) == spans_.size()) return grads;
        throw py::value_error("grads: got " + std::to_string(py::len(grads)) + "; wanted one for each of " +
                              std::to_string(spans_.size()) + " weights");
    }

    void check_grad(const Items& items, size_t i, const View& grad) const {
        const Weight& weight = weights_[i];
        const DType wanted = weight.view.dtype;
        if (grad.dtype != wanted && !(itemsize(wanted) == 2 && grad.dtype == DType::float32))
            throw py::type_error(items.label(i) + ": got dtype " + name_of(grad.dtype) + "; wanted " + name_of(wanted) +
                                 (itemsize(wanted) == 2 ? ", the weight's, or float32" : ", the weight's"));
        if (!std::equal(grad.shape, grad.shape + grad.rank, weight.shape.begin(), weight.shape.end()))
            throw py::value_error(items.label(i) + ": got shape " + text_of(grad.rank, grad.shape) + "; wanted " +
                                  text_of(weight.view.rank, weight.view.shape) + ", the weight's");
        check_writable(items, i, grad);
        if (overlap(reach(grad), weight.reach))
            throw py::value_error(items.label(i) + ": overlaps the memory of " + items_->label(i));
    }

    Bound bind(const py::object& grads) const {
        Bound bound;
        std::vector<bool> given(spans_.size());
        bound.weights.reserve(active_.size());
        bound.grads.reserve(active_.size());
        bound.items = std::make_unique<Items>(
            "grads", checked_grads(grads), names_, single_,
            [&](const Items& given_items, size_t i, const View& grad) {
                check_grad(given_items, i, grad);
                given[i] = true;
                if (l1_[i] == 0 && l2_[i] == 0) return;
                bound.weights.add(weights_[i].view, grad, &bound.grads);
                collect(bound.reaches, reach(grad));
            },
            true);
        for (size_t i : active_)
            if (!given[i]) throw py::type_error(bound.items->label(i) + ": got None; wanted an array");
        return bound;
    }

    // One thread where targets share memory, or another buffer's weights would change under a reader: then the
    // buffers are taken one after the other.
    int safe_threads(const Line& line, std::vector<Reach>& reaches, const py::object& threads) const {
        const int most = threads_for(line, checked_threads(threads));
        if (most == 1) return 1;
        if (overlapping(reaches)) return 1;
        for (const Weight& weight : weights_) {
            const Reach read = weight.reach;
            const auto after = std::lower_bound(reaches.begin(), reaches.end(), Reach{read.second, read.second});
            if (after != reaches.begin() && overlap(*(after - 1), read)) return 1;
        }
        return most;
    }

    template <class Run>
    void with_gradients(const py::object& grads, double upstream, const py::object& threads, const Run& run) {
        Borrowed space(*this);
        Bound bound = bind(grads);
        const int at_most = safe_threads(active_line_, bound.reaches, threads);
        const DefaultFloatEnvironment environment;
        space->factors.clear();
        for (size_t i : active_) space->factors.push_back({times(l1_[i], upstream), times(l2_[i], 2 * upstream)});
        const Work work{bound.weights.data(), active_line_, at_most, active_kernels()};
        const Change gradient{Change::gradient, bound.grads.data(), space->factors.data()};
        const py::gil_scoped_release release;
        run(work, *space, gradient);
    }

    template <class Make>
    void change_weights(Change::Kind kind, const py::object& threads, const Make& make) {
        for (size_t i : active_)
            if (kind == Change::proximal || l2_[i] != 0) check_writable(*items_, i, weights_[i].view);
        Borrowed space(*this);
        const DefaultFloatEnvironment environment;
        space->factors.clear();
        for (size_t i : active_) space->factors.push_back(make(i));
        Work work = active_work(active_spans_.data(), threads);
        if (tied_) work.threads = 1;
        const py::gil_scoped_release release;
        change(work, {kind, active_spans_.data(), space->factors.data()});
    }

    py::object names_;
    bool single_;
    std::deque<Weight> weights_;
    Spans spans_;
    Line line_;
    std::vector<double> l1_, l2_;
    std::vector<size_t> active_;  // the buffers that have a penalty
    std::vector<Span> active_spans_;
    Line active_line_;
    bool tied_ = false;  // some of them share memory
    std::atomic<Workspace*> spare_{nullptr};
    std::unique_ptr<Items> items_;
};

}  // namespace

void define_plan(py::module_& m) {
    using py::arg;
    py::class_<Plan>(m, "Plan")
        .def(py::init<const py::object&, const py::object&, bool>(), arg("items"), arg("names"), arg("single"))
        .def_property_readonly("dtypes", &Plan::dtypes)
        .def("set_coefficients", &Plan::set_coefficients, arg("l1"), arg("l2"))
        .def("sums", &Plan::sums, arg("threads"))
        .def("value", &Plan::value, arg("threads"))
        .def("values", &Plan::values, arg("threads"))
        .def("add_grad", &Plan::add_grad, arg("grads"), arg("upstream"), arg("threads"))
        .def("value_and_grad", &Plan::value_and_grad, arg("grads"), arg("upstream"), arg("threads"))
        .def("prox", &Plan::prox, arg("step"), arg("threads"))
        .def("decay", &Plan::decay, arg("rate"), arg("threads"))
        .def("clip_grad_norm", &Plan::clip_grad_norm, arg("grads"), arg("max_norm"), arg("threads"))
        .def("exchange", &Plan::exchange_all, arg("grads"), arg("threads"));
}

}  // namespace fused_penalties
