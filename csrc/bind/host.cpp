// The plan of weights on the CPU: found once, then summed, differentiated and changed, at one call or at every step.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "bound.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/sweep.hpp"
#include "lock.hpp"
#include "module.hpp"
#include "results.hpp"
#include "signals.hpp"

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
    // What a value reads of them: each once, however often it is listed (tied weights). The k-th active buffer is
    // distinct[place[k]].
    std::vector<Span> distinct;
    std::vector<size_t> place;
    Line distinct_line;

    Strengths(const BoundWeights& of, const py::object& l1_of_all, const py::object& l2_of_all)
        : weights(&of), l1(of.coefficients(l1_of_all)), l2(of.coefficients(l2_of_all)), penalized(l1.size()) {
        for (size_t i = 0; i < l1.size(); ++i) {
            if (l1[i] == 0 && l2[i] == 0) continue;
            penalized[i] = true;
            active.push_back(i);
            spans.push_back(of.spans()[i]);
        }
        line = Line(spans.data(), spans.size());
        place = first_places(spans);
        for (size_t k = 0; k < place.size(); ++k) {
            if (place[k] == k) distinct.push_back(spans[k]);
            place[k] = place[k] == k ? distinct.size() - 1 : place[place[k]];
        }
        distinct_line = distinct.size() == spans.size() ? line : Line(distinct.data(), distinct.size());
    }

    // True if some of them share memory. Only changes ask, hence not found out before.
    bool tied() const {
        int known = tied_.load(std::memory_order_relaxed);
        if (known < 0) tied_ = known = weights->tied(active);
        return known;
    }

private:
    mutable std::atomic<int> tied_{-1};
};

class HostPlan {
public:
    HostPlan(BoundWeights weights, int threads)
        : weights_(std::move(weights)), line_(spans().data(), spans().size()), threads_(threads) {}

    ~HostPlan() { delete spare_.load(); }

    const BoundWeights& weights() const { return weights_; }

    std::unique_ptr<Strengths> strengths(const py::object& l1, const py::object& l2) const {
        return std::make_unique<Strengths>(weights_, l1, l2);
    }

    // With None in the places of the largest magnitudes unless they are asked for.
    py::tuple sums(bool largest) {
        const py::ssize_t n = py::ssize_t(spans().size());
        py::array_t<double> abs(n), square(n);
        ExactSums total;
        SumsOut out{abs.mutable_data(), square.mutable_data(), nullptr, &total};
        py::object each = py::none(), of_all = py::none();
        if (largest) {
            py::array_t<double> found(n);
            out.largest = found.mutable_data();
            each = found;
        }
        sum_all(out);
        if (largest) of_all = py::float_(limbs::double_of_bits(total.largest));
        return py::make_tuple(abs, square, total.abs.value(), total.square.value(), weights_.sizes(), each, of_all);
    }

    py::array_t<int64_t> limbs() {
        py::array_t<int64_t> limbs({py::ssize_t(spans().size()), py::ssize_t(2), py::ssize_t(kLimbs)});
        sum_all({nullptr, nullptr, limbs.mutable_data(), nullptr});
        return limbs;
    }

    py::tuple limbs_and_largest() {
        const py::ssize_t n = py::ssize_t(spans().size());
        py::array_t<int64_t> limbs({n, py::ssize_t(2), py::ssize_t(kLimbs)});
        py::array_t<double> largest(n);
        sum_all({nullptr, nullptr, limbs.mutable_data(), nullptr, largest.mutable_data()});
        return py::make_tuple(limbs, largest);
    }

    double l2_norm() {
        ExactSums total;
        sum_all({nullptr, nullptr, nullptr, &total});
        const DefaultFloatEnvironment environment;
        return std::sqrt(total.square.value());
    }

    py::object value(const Strengths& strengths) {
        return numpy_scalar(
            in_one_read(strengths, [&](Workspace& space) { return weighed(strengths, space, &strengths.place); }),
            weights_.wide());
    }

    py::array_t<double> terms(const Strengths& strengths) {
        py::array_t<double> terms(py::ssize_t(spans().size()));
        double* const to = terms.mutable_data();
        in_one_read(strengths, [&](Workspace& space) {
            std::fill_n(to, spans().size(), 0.0);
            for (size_t k = 0; k < strengths.active.size(); ++k)
                to[strengths.active[k]] = term(strengths, k, space, &strengths.place);
            return 0.0;
        });
        return terms;
    }

    py::array values(const Strengths& strengths) { return weights_.rounded_each(terms(strengths)); }

    void add_grad(const Strengths& strengths, const py::object& grads, double upstream) {
        with_gradients(strengths, grads, ChangeKind::gradient, upstream,
                       [](const Work& work, Workspace&, const Change& gradient) { change(work, gradient); });
    }

    void write_grad(const Strengths& strengths, const py::object& grads, double upstream) {
        with_gradients(strengths, grads, ChangeKind::stored_gradient, upstream,
                       [](const Work& work, Workspace&, const Change& gradient) { change(work, gradient); });
    }

    py::object value_and_grad(const Strengths& strengths, const py::object& grads, double upstream) {
        double value = 0;
        with_gradients(strengths, grads, ChangeKind::gradient, upstream,
                       [&](const Work& work, Workspace& space, const Change& gradient) {
                           read_penalized(work, space, &gradient);
                           value = weighed(strengths, space, nullptr);
                       });
        return numpy_scalar(value, weights_.wide());
    }

    void prox(const Strengths& strengths, double step) { change_weights(strengths, ChangeKind::proximal, step); }

    void decay(const Strengths& strengths, double rate) { change_weights(strengths, ChangeKind::decay, rate); }

    double clip_grad_norm(const py::object& grads, double max_norm) {
        Borrowed space(*this);
        BoundGrads bound = weights_.bind_grads(grads);
        check_again_after(bound);
        const Spans& spans = bound.grads;
        const Line line(spans.data(), spans.size());
        const int most = safe_threads(line, bound.reaches);
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
        explicit Borrowed(HostPlan& plan) : plan_(plan) {
            plan.weights_.items().check_unmoved();  // here, because every call passes here before it looks at memory
            space_.reset(plan.spare_.exchange(nullptr));
            if (!space_) space_ = std::make_unique<Workspace>();
        }
        ~Borrowed() { delete plan_.spare_.exchange(space_.release()); }
        Workspace& operator*() { return *space_; }
        Workspace* operator->() { return space_.get(); }

    private:
        HostPlan& plan_;
        std::unique_ptr<Workspace> space_;
    };

    // The sums of all buffers, with a penalty or without.
    void sum_all(const SumsOut& out) {
        const Work work{spans().data(), line_, threads_, active_kernels(), check_signals};
        Borrowed space(*this);
        const Unlocked unlocked;
        sum(work, space->cut, out);
    }

    // The Python code that found the gradients may have moved weights.
    void check_again_after(const BoundGrads& bound) const {
        if (bound.items->ran_python()) weights_.items().check_unmoved_without_python();
    }

    void check_own(const Strengths& strengths) const {
        if (strengths.weights != &weights_) throw py::value_error("strengths: these are another plan's");
    }

    // Reads the weights that have a penalty, and returns finish(workspace), which has the sums of each then.
    template <class Finish>
    double in_one_read(const Strengths& strengths, const Finish& finish) {
        check_own(strengths);
        const Work work{strengths.distinct.data(), strengths.distinct_line, threads_, active_kernels(), check_signals};
        Borrowed space(*this);
        const Unlocked unlocked;
        read_penalized(work, *space, nullptr);
        const DefaultFloatEnvironment environment;
        return finish(*space);
    }

    // The sums of each buffer, and in the same read a change.
    static void read_penalized(const Work& work, Workspace& space, const Change* change) {
        const size_t n = work.line.buffers();
        space.abs.resize(n);
        space.square.resize(n);
        sum(work, space.cut, {space.abs.data(), space.square.data(), nullptr, nullptr}, change);
    }

    // The float64 penalty of the k-th active buffer. Its sums are the k-th in the workspace, or where `place` says.
    static double term(const Strengths& strengths, size_t k, const Workspace& space, const std::vector<size_t>* place) {
        const size_t i = strengths.active[k], at = place ? (*place)[k] : k;
        return canon::term(strengths.l1[i], strengths.l2[i], space.abs[at], space.square[at]);
    }

    // The exact sum of these penalties, rounded once.
    static double weighed(const Strengths& strengths, const Workspace& space, const std::vector<size_t>* place) {
        Exact total;
        for (size_t k = 0; k < strengths.active.size(); ++k) total.add(term(strengths, k, space, place));
        return total.value();
    }

    // One thread where targets share memory, or another buffer's weights would change under a reader: then the
    // buffers are taken one after the other.
    int safe_threads(const Line& line, std::vector<Reach>& reaches) const {
        const int most = threads_for(line, threads_);
        if (most == 1) return 1;
        return weights_.shared(reaches) ? 1 : most;
    }

    // Gradients that are added to are those of the buffers with a penalty; stored are all that are given.
    template <class Run>
    void with_gradients(const Strengths& strengths, const py::object& grads, ChangeKind kind, double upstream,
                        const Run& run) {
        check_own(strengths);
        Borrowed space(*this);
        BoundGrads bound = weights_.bind(grads, strengths.penalized, kind == ChangeKind::stored_gradient);
        check_again_after(bound);
        const bool penalized = bound.buffers.size() == strengths.active.size();  // those, and no others
        const Line others = penalized ? Line() : Line(bound.weights.data(), bound.weights.size());
        const Line& line = penalized ? strengths.line : others;
        const int threads = safe_threads(line, bound.reaches);
        const DefaultFloatEnvironment environment;
        set_factors(*space, strengths, bound.buffers, kind, upstream);
        const Work work{bound.weights.data(), line, threads, active_kernels(), check_signals_in_change};
        const Change gradient{kind, bound.grads.data(), space->factors.data()};
        const Unlocked unlocked;
        run(work, *space, gradient);
    }

    static void set_factors(Workspace& space, const Strengths& strengths, const std::vector<size_t>& buffers,
                            ChangeKind kind, double number) {
        space.factors.clear();
        for (size_t i : buffers)
            space.factors.push_back(canon::factors_of(kind, strengths.l1[i], strengths.l2[i], number));
    }

    void change_weights(const Strengths& strengths, ChangeKind kind, double number) {
        check_own(strengths);
        for (size_t i : strengths.active)
            if (concerns(kind, strengths.l1[i], strengths.l2[i])) weights_.check_writable(i);
        const int threads = strengths.tied() ? 1 : threads_;
        const Work work{strengths.spans.data(), strengths.line, threads, active_kernels(), check_signals_in_change};
        Borrowed space(*this);
        const DefaultFloatEnvironment environment;
        set_factors(*space, strengths, strengths.active, kind, number);
        const Unlocked unlocked;
        change(work, {kind, strengths.spans.data(), space->factors.data()});
    }

    BoundWeights weights_;
    Line line_;
    int threads_;  // at most; 0 for as many as a call is worth
    std::atomic<Workspace*> spare_{nullptr};
};

}  // namespace

py::object make_host_plan(BoundWeights weights, int threads) {
    return py::cast(std::make_unique<HostPlan>(std::move(weights), threads));
}

py::tuple sums_on_host(BoundWeights weights, int threads, bool largest) {
    return HostPlan(std::move(weights), threads).sums(largest);
}

void define_host_plan(py::module_& m) {
    using py::arg;
    py::class_<Strengths>(m, "Strengths")
        .def_readonly("l1", &Strengths::l1)
        .def_readonly("l2", &Strengths::l2)
        .def_property_readonly("bytes",  // that a value reads
                               [](const Strengths& strengths) { return strengths.distinct_line.bytes(); });
    py::class_<HostPlan>(m, "HostPlan")
        .def_property_readonly("dtypes", [](const HostPlan& plan) { return plan.weights().dtypes(); })
        .def_property_readonly("wide", [](const HostPlan& plan) { return plan.weights().wide(); })
        .def("strengths", &HostPlan::strengths, arg("l1"), arg("l2"), py::keep_alive<0, 1>())
        .def("sums", &HostPlan::sums, arg("largest"))
        .def("limbs", &HostPlan::limbs)
        .def("limbs_and_largest", &HostPlan::limbs_and_largest)
        .def("l2_norm", &HostPlan::l2_norm)
        .def("value", &HostPlan::value, arg("strengths"))
        .def("values", &HostPlan::values, arg("strengths"))
        .def("terms", &HostPlan::terms, arg("strengths"))
        .def(
            "rounded_total",
            [](const HostPlan& plan, const std::vector<double>& terms) { return plan.weights().rounded_total(terms); },
            arg("terms"))
        .def(
            "rounded_each",
            [](const HostPlan& plan, const py::array_t<double>& terms) { return plan.weights().rounded_each(terms); },
            arg("terms"))
        .def(
            "scalars",
            [](const HostPlan&, const py::array& values) {
                const DefaultFloatEnvironment environment;  // which subnormal float32 would not come through else
                return values.attr("tolist")();
            },
            arg("values"))
        .def("add_grad", &HostPlan::add_grad, arg("strengths"), arg("grads"), arg("upstream"))
        .def("write_grad", &HostPlan::write_grad, arg("strengths"), arg("grads"), arg("upstream"))
        .def("value_and_grad", &HostPlan::value_and_grad, arg("strengths"), arg("grads"), arg("upstream"))
        .def("prox", &HostPlan::prox, arg("strengths"), arg("step"))
        .def("decay", &HostPlan::decay, arg("strengths"), arg("rate"))
        .def("clip_grad_norm", &HostPlan::clip_grad_norm, arg("grads"), arg("max_norm"));
}

}  // namespace fused_penalties
