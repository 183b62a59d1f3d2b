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

#include "bound.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/sweep.hpp"
#include "module.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

class Plan {
public:
    explicit Plan(BoundWeights weights) : weights_(std::move(weights)), line_(spans().data(), spans().size()) {
        set_coefficients(std::vector<double>(spans().size()), std::vector<double>(spans().size()));
    }

    ~Plan() { delete spare_.load(); }

    std::vector<std::string> dtypes() const { return weights_.dtypes(); }

    void set_coefficients(const std::vector<double>& l1, const std::vector<double>& l2) {
        weights_.check_coefficients(l1, l2);
        l1_ = l1;
        l2_ = l2;
        active_.clear();
        active_spans_.clear();
        penalized_.assign(l1.size(), false);
        for (size_t i = 0; i < l1.size(); ++i) {
            if (l1[i] == 0 && l2[i] == 0) continue;
            penalized_[i] = true;
            active_.push_back(i);
            active_spans_.push_back(spans()[i]);
        }
        active_line_ = Line(active_spans_.data(), active_spans_.size());
        tied_ = weights_.tied(active_);
    }

    py::tuple sums(const py::object& threads) {
        const py::ssize_t n = py::ssize_t(spans().size());
        py::array_t<double> abs(n), square(n);
        ExactSums total;
        const SumsOut out{abs.mutable_data(), square.mutable_data(), nullptr, &total};
        const Work work{spans().data(), line_, checked_threads(threads), active_kernels()};
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
        py::array_t<double> values(py::ssize_t(spans().size()));
        double* out = values.mutable_data();
        Borrowed space(*this);
        const py::gil_scoped_release release;
        weighed(work, *space, nullptr);
        const DefaultFloatEnvironment environment;
        std::fill_n(out, spans().size(), 0.0);
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
                       [&](size_t i) { return canon::proximal_factors(l1_[i], l2_[i], step); });
    }

    void decay(double rate, const py::object& threads) {
        change_weights(Change::scale, threads, [&](size_t i) { return Factors{1 - 2 * rate * l2_[i], 0}; });
    }

    double clip_grad_norm(const py::object& grads, double max_norm, const py::object& threads) {
        Borrowed space(*this);
        BoundGrads bound = weights_.bind_grads(grads);
        const Spans& spans = bound.grads;
        const Line line(spans.data(), spans.size());
        const Work work{spans.data(), line, safe_threads(line, bound.reaches, threads), active_kernels()};
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
        const BoundGrads bound = weights_.bind(grads, penalized_, false);
        const Work work = active_work(bound.weights.data(), threads);
        const py::gil_scoped_release release;
        exchange(work, bound.grads.data());
    }

private:
    const Spans& spans() const { return weights_.spans(); }

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
            plan.weights_.items().check_unmoved();  // here, because every call passes here before it looks at memory
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

    // The float64 penalty of the k-th active buffer.
    double term(size_t k, const Workspace& space) const {
        return canon::term(l1_[active_[k]], l2_[active_[k]], space.abs[k], space.square[k]);
    }

    // Sums the active buffers, with a change in the same read, and adds their penalties exactly.
    double weighed(const Work& work, Workspace& space, const Change* change) const {
        space.abs.resize(active_.size());
        space.square.resize(active_.size());
        sum(work, space.cut, {space.abs.data(), space.square.data(), nullptr, nullptr}, change);
        const DefaultFloatEnvironment environment;
        Exact total;
        for (size_t k = 0; k < active_.size(); ++k) total.add(term(k, space));
        return total.value();
    }

    // One thread where targets share memory, or another buffer's weights would change under a reader: then the
    // buffers are taken one after the other.
    int safe_threads(const Line& line, std::vector<Reach>& reaches, const py::object& threads) const {
        const int most = threads_for(line, checked_threads(threads));
        if (most == 1) return 1;
        return weights_.shared(reaches) ? 1 : most;
    }

    template <class Run>
    void with_gradients(const py::object& grads, double upstream, const py::object& threads, const Run& run) {
        Borrowed space(*this);
        BoundGrads bound = weights_.bind(grads, penalized_, false);
        const int at_most = safe_threads(active_line_, bound.reaches, threads);
        const DefaultFloatEnvironment environment;
        space->factors.clear();
        for (size_t i : active_) space->factors.push_back(canon::gradient_factors(l1_[i], l2_[i], upstream));
        const Work work{bound.weights.data(), active_line_, at_most, active_kernels()};
        const Change gradient{Change::gradient, bound.grads.data(), space->factors.data()};
        const py::gil_scoped_release release;
        run(work, *space, gradient);
    }

    template <class Make>
    void change_weights(Change::Kind kind, const py::object& threads, const Make& make) {
        for (size_t i : active_)
            if (kind == Change::proximal || l2_[i] != 0) weights_.check_writable(i);
        Borrowed space(*this);
        const DefaultFloatEnvironment environment;
        space->factors.clear();
        for (size_t i : active_) space->factors.push_back(make(i));
        Work work = active_work(active_spans_.data(), threads);
        if (tied_) work.threads = 1;
        const py::gil_scoped_release release;
        change(work, {kind, active_spans_.data(), space->factors.data()});
    }

    BoundWeights weights_;
    Line line_;
    std::vector<double> l1_, l2_;
    std::vector<size_t> active_;   // the buffers that have a penalty
    std::vector<bool> penalized_;  // the same, as flags
    std::vector<Span> active_spans_;
    Line active_line_;
    bool tied_ = false;  // some of them share memory
    std::atomic<Workspace*> spare_{nullptr};
};

py::object make_plan(const py::object& items, const py::object& names, bool single, bool unique) {
    BoundWeights weights(items, names, single);
    if (unique) weights.spans().drop_repeats();
#if defined(FUSED_PENALTIES_CUDA)
    if (weights.items().device() >= 0) return make_device_plan(std::move(weights));
#endif
    return py::cast(std::make_unique<Plan>(std::move(weights)));
}

}  // namespace

void define_plan(py::module_& m) {
    using py::arg;
    m.def("make_plan", &make_plan, arg("items"), arg("names"), arg("single"), arg("unique") = false);
    py::class_<Plan>(m, "Plan")
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
