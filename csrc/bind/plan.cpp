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
#include "lock.hpp"
#include "module.hpp"
#include "signals.hpp"
#include "threads.hpp"

namespace fused_penalties {
namespace {

// The coefficients of a plan's buffers, and what follows from them. It never changes: a call keeps the ones that it
// began with, whatever other threads, or Python code that it comes to run, give the plan meanwhile.
struct Strengths {
    const BoundWeights* weights;  // whose these are
    std::vector<double> l1, l2;
    std::vector<size_t> active;   // the buffers that have a penalty
    std::vector<bool> penalized;  // the same, as flags
    std::vector<Span> spans;      // theirs
    Line line;
    bool tied;  // some of them share memory

    Strengths(const BoundWeights& of, std::vector<double> l1_of_all, std::vector<double> l2_of_all)
        : weights(&of), l1(std::move(l1_of_all)), l2(std::move(l2_of_all)), penalized(l1.size()) {
        for (size_t i = 0; i < l1.size(); ++i) {
            if (l1[i] == 0 && l2[i] == 0) continue;
            penalized[i] = true;
            active.push_back(i);
            spans.push_back(of.spans()[i]);
        }
        line = Line(spans.data(), spans.size());
        tied = of.tied(active);
    }
};

class Plan {
public:
    explicit Plan(BoundWeights weights) : weights_(std::move(weights)), line_(spans().data(), spans().size()) {}

    ~Plan() { delete spare_.load(); }

    std::vector<std::string> dtypes() const { return weights_.dtypes(); }

    std::unique_ptr<Strengths> strengths(const std::vector<double>& l1, const std::vector<double>& l2) const {
        weights_.check_coefficients(l1, l2);
        return std::make_unique<Strengths>(weights_, l1, l2);
    }

    py::tuple sums(const py::object& threads) {
        const int at_most = checked_threads(threads);
        const py::ssize_t n = py::ssize_t(spans().size());
        py::array_t<double> abs(n), square(n);
        ExactSums total;
        const SumsOut out{abs.mutable_data(), square.mutable_data(), nullptr, &total};
        const Work work{spans().data(), line_, at_most, active_kernels(), check_signals};
        Borrowed space(*this);
        {
            const Unlocked unlocked;
            sum(work, space->cut, out);
        }
        return py::make_tuple(abs, square, total.abs.value(), total.square.value(), sizes_of(spans()));
    }

    double value(const Strengths& strengths, const py::object& threads) {
        const Work work = active_work(strengths, checked_threads(threads));
        Borrowed space(*this);
        const Unlocked unlocked;
        return weighed(strengths, work, *space, nullptr);
    }

    py::array_t<double> values(const Strengths& strengths, const py::object& threads) {
        const Work work = active_work(strengths, checked_threads(threads));
        py::array_t<double> values(py::ssize_t(spans().size()));
        double* out = values.mutable_data();
        Borrowed space(*this);
        const Unlocked unlocked;
        weighed(strengths, work, *space, nullptr);
        const DefaultFloatEnvironment environment;
        std::fill_n(out, spans().size(), 0.0);
        for (size_t k = 0; k < strengths.active.size(); ++k) out[strengths.active[k]] = term(strengths, k, *space);
        return values;
    }

    void add_grad(const Strengths& strengths, const py::object& grads, double upstream, const py::object& threads) {
        with_gradients(strengths, grads, upstream, threads,
                       [](const Work& work, Workspace&, const Change& gradient) { change(work, gradient); });
    }

    double value_and_grad(const Strengths& strengths, const py::object& grads, double upstream,
                          const py::object& threads) {
        double value = 0;
        with_gradients(strengths, grads, upstream, threads,
                       [&](const Work& work, Workspace& space, const Change& gradient) {
                           value = weighed(strengths, work, space, &gradient);
                       });
        return value;
    }

    void prox(const Strengths& strengths, double step, const py::object& threads) {
        change_weights(strengths, ChangeKind::proximal, step, threads);
    }

    void decay(const Strengths& strengths, double rate, const py::object& threads) {
        change_weights(strengths, ChangeKind::decay, rate, threads);
    }

    double clip_grad_norm(const py::object& grads, double max_norm, const py::object& threads) {
        const int at_most = checked_threads(threads);
        Borrowed space(*this);
        BoundGrads bound = weights_.bind_grads(grads);
        const Spans& spans = bound.grads;
        const Line line(spans.data(), spans.size());
        const int most = safe_threads(line, bound.reaches, at_most);
        const Work reading{spans.data(), line, most, active_kernels(), check_signals};
        const Work changing{spans.data(), line, most, active_kernels(), check_signals_in_change};
        const Unlocked unlocked;
        ExactSums total;
        sum(reading, space->cut, {nullptr, nullptr, nullptr, &total});
        const DefaultFloatEnvironment environment;
        const double norm = std::sqrt(total.square.value()), number = canon::clip_number(norm, max_norm);
        if (number == 1) return norm;
        space->factors.assign(spans.size(), canon::factors_of(ChangeKind::clip, 0, 0, number));
        change(changing, {ChangeKind::clip, spans.data(), space->factors.data()});
        return norm;
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

    // Every call that has strengths begins here.
    Work active_work(const Strengths& strengths, int at_most) const {
        if (strengths.weights != &weights_) throw py::value_error("strengths: these are another plan's");
        return {strengths.spans.data(), strengths.line, at_most, active_kernels(), check_signals};
    }

    // The float64 penalty of the k-th active buffer.
    static double term(const Strengths& strengths, size_t k, const Workspace& space) {
        const size_t i = strengths.active[k];
        return canon::term(strengths.l1[i], strengths.l2[i], space.abs[k], space.square[k]);
    }

    // Sums the active buffers, with a change in the same read, and adds their penalties exactly.
    static double weighed(const Strengths& strengths, const Work& work, Workspace& space, const Change* change) {
        const size_t n = strengths.active.size();
        space.abs.resize(n);
        space.square.resize(n);
        sum(work, space.cut, {space.abs.data(), space.square.data(), nullptr, nullptr}, change);
        const DefaultFloatEnvironment environment;
        Exact total;
        for (size_t k = 0; k < n; ++k) total.add(term(strengths, k, space));
        return total.value();
    }

    // One thread where targets share memory, or another buffer's weights would change under a reader: then the
    // buffers are taken one after the other.
    int safe_threads(const Line& line, std::vector<Reach>& reaches, int at_most) const {
        const int most = threads_for(line, at_most);
        if (most == 1) return 1;
        return weights_.shared(reaches) ? 1 : most;
    }

    template <class Run>
    void with_gradients(const Strengths& strengths, const py::object& grads, double upstream, const py::object& threads,
                        const Run& run) {
        Work work = active_work(strengths, checked_threads(threads));
        Borrowed space(*this);
        BoundGrads bound = weights_.bind(grads, strengths.penalized, false);
        work.spans = bound.weights.data();
        work.threads = safe_threads(strengths.line, bound.reaches, work.threads);
        const DefaultFloatEnvironment environment;
        set_factors(*space, strengths, ChangeKind::gradient, upstream);
        work.check = check_signals_in_change;
        const Change gradient{ChangeKind::gradient, bound.grads.data(), space->factors.data()};
        const Unlocked unlocked;
        run(work, *space, gradient);
    }

    void set_factors(Workspace& space, const Strengths& strengths, ChangeKind kind, double number) const {
        space.factors.clear();
        for (size_t i : strengths.active)
            space.factors.push_back(canon::factors_of(kind, strengths.l1[i], strengths.l2[i], number));
    }

    void change_weights(const Strengths& strengths, ChangeKind kind, double number, const py::object& threads) {
        Work work = active_work(strengths, checked_threads(threads));
        if (strengths.tied) work.threads = 1;
        for (size_t i : strengths.active)
            if (concerns(kind, strengths.l1[i], strengths.l2[i])) weights_.check_writable(i);
        Borrowed space(*this);
        const DefaultFloatEnvironment environment;
        set_factors(*space, strengths, kind, number);
        work.check = check_signals_in_change;
        const Unlocked unlocked;
        change(work, {kind, strengths.spans.data(), space->factors.data()});
    }

    BoundWeights weights_;
    Line line_;
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
    py::class_<Strengths>(m, "Strengths");
    py::class_<Plan>(m, "Plan")
        .def_property_readonly("dtypes", &Plan::dtypes)
        .def("strengths", &Plan::strengths, arg("l1"), arg("l2"), py::keep_alive<0, 1>())
        .def("sums", &Plan::sums, arg("threads"))
        .def("value", &Plan::value, arg("strengths"), arg("threads"))
        .def("values", &Plan::values, arg("strengths"), arg("threads"))
        .def("add_grad", &Plan::add_grad, arg("strengths"), arg("grads"), arg("upstream"), arg("threads"))
        .def("value_and_grad", &Plan::value_and_grad, arg("strengths"), arg("grads"), arg("upstream"), arg("threads"))
        .def("prox", &Plan::prox, arg("strengths"), arg("step"), arg("threads"))
        .def("decay", &Plan::decay, arg("strengths"), arg("rate"), arg("threads"))
        .def("clip_grad_norm", &Plan::clip_grad_norm, arg("grads"), arg("max_norm"), arg("threads"));
}

}  // namespace fused_penalties
