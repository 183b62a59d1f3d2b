// A plan whose weights are on a GPU. Memory there is the caller's to allocate, who knows its library's pool: what
// comes from Python are addresses and streams.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <optional>

#include "bound.hpp"
#include "cuda/launch.hpp"
#include "lock.hpp"
#include "module.hpp"

namespace fused_penalties {
namespace {

using cuda::HostTable;
using cuda::Queue;
using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// The parts of a workspace, one after the other.
cuda::Workspace workspace_at(Address address, const HostTable& table) {
    auto* limbs = at<int64_t>(address);
    auto* singles = reinterpret_cast<BlockSums*>(limbs + (1 + table.slots()) * cuda::kRow);
    return {limbs, singles, reinterpret_cast<uint32_t*>(singles + table.buffers())};
}

size_t workspace_bytes(const HostTable& table) {
    return size_t(1 + table.slots()) * cuda::kRow * sizeof(int64_t) + table.buffers() * sizeof(BlockSums) +
           sizeof(uint32_t);
}

// Gradients, found on the device.
struct GradTable {
    HostTable table;
    Library library;
    bool with_weights;
    Seen seen;  // nothing, until they are worth to be known again
};

// What Python holds of the device: its current one in a `with` block.
struct CurrentDevice {
    explicit CurrentDevice(int number) : device(number) {}

    int device;
    std::optional<cuda::OnDevice> on = {};
};

class DevicePlan {
public:
    explicit DevicePlan(BoundWeights weights)
        : weights_(std::move(weights)),
          table_(weights_.spans().data(), nullptr, weights_.size(), weights_.tied(every(weights_.size()))),
          l1_(weights_.size()),
          l2_(weights_.size()),
          penalized_(weights_.size()) {}

    int device() const { return weights_.items().device(); }
    std::vector<std::string> dtypes() const { return weights_.dtypes(); }
    py::array_t<int64_t> sizes() const { return sizes_of(weights_.spans()); }
    const HostTable& table() const { return table_; }

    // The stream that the weights' library works on now, or None if it does not say.
    py::object stream() const {
        void* stream = nullptr;
        if (!weights_.items().library().current_stream(&stream)) return py::none();
        return py::int_(reinterpret_cast<Address>(stream));
    }

    bool capturing(Address stream) const {
        const Unlocked unlocked;
        return cuda::capturing(queue(stream));
    }

    // Takes the plan's memory into use. What a graph has captured may run at any time, beside other calls, and so has
    // a workspace of its own.
    void attach(Address stream, Address table, Address coefficients, Address workspace, Address captured) {
        uploaded_ = table;
        coefficients_ = {at<double>(coefficients), at<double>(coefficients) + weights_.size()};
        workspaces_[0] = workspace;
        workspaces_[1] = captured;
        in_turn(stream, [&](const Queue& queue, bool) {
            cuda::prepare(device());
            cuda::upload(queue, at<void>(table), table_.bytes().data(), table_.bytes().size());
            for (Address each : workspaces_) cuda::clear(queue, at<void>(each), workspace_bytes(table_));
        });
    }

    void upload(Address stream, const GradTable& grads, Address to) {
        in_turn(stream, [&](const Queue& queue, bool) {
            cuda::upload(queue, at<void>(to), grads.table.bytes().data(), grads.table.bytes().size());
        });
    }

    // What tells when the plan's last work is done,
    const std::shared_ptr<cuda::Turns>& turns() const { return turns_; }
    // or all until now, whatever follows.
    std::shared_ptr<cuda::Turns> until_now(Address stream) {
        const auto turns = new_turns();
        in_turn(stream, [&](const Queue& queue, bool) { turns->done(queue); });
        return turns;
    }

    // Returns a number for these, with which calls say that they mean them.
    uint64_t set_coefficients(Address stream, const std::vector<double>& l1, const std::vector<double>& l2) {
        weights_.check_coefficients(l1, l2);
        std::vector<double> both(l1);
        both.insert(both.end(), l2.begin(), l2.end());
        uint64_t generation = 0;
        in_turn(stream, [&](const Queue& queue, bool) {
            generation = ++generation_;
            cuda::upload(queue, const_cast<double*>(coefficients_.l1), both.data(), both.size() * sizeof both[0]);
        });
        l1_ = l1;
        l2_ = l2;
        for (size_t i = 0; i < l1.size(); ++i) penalized_[i] = l1[i] != 0 || l2[i] != 0;
        return generation;
    }

    void sums(Address stream, Address abs, Address square, Address totals) {
        in_turn(stream, [&](const Queue& queue, bool captured) {
            sum(queue, captured, {});
            auto results = finish(captured);
            results.abs = at<double>(abs);
            results.square = at<double>(square);
            results.totals = at<double>(totals);
            cuda::launch(queue, results);
        });
    }

    // `norm` has room for two float64: the L2 norm, and the clipping factor, which only clip reads.
    void norm(Address stream, Address norm) {
        in_turn(stream, [&](const Queue& queue, bool captured) {
            sum(queue, captured, {});
            auto results = finish(captured);
            results.norm = at<double>(norm);
            cuda::launch(queue, results);
        });
    }

    void limbs(Address stream, Address limbs) {
        in_turn(stream, [&](const Queue& queue, bool captured) {
            sum(queue, captured, {});
            auto results = finish(captured);
            results.limbs = at<int64_t>(limbs);
            cuda::launch(queue, results);
        });
    }

    // The penalty, of all buffers and of each; 0 for what is not wanted.
    void value(Address stream, uint64_t generation, Address value, Address values, bool wide) {
        in_turn(stream, [&](const Queue& queue, bool captured) {
            check(generation);
            sum(queue, captured, coefficients_);
            finish_penalty(queue, captured, value, values, wide);
        });
    }

    GradTable gradient_table(const py::object& grads) const {
        weights_.items().check_unmoved();  // before addresses are compared
        BoundGrads bound = weights_.bind(grads, penalized_, true);
        std::vector<Span> weights(weights_.spans().begin(), weights_.spans().end()), targets;
        for (const Span& span : weights) targets.push_back({nullptr, 0, nullptr, 0, span.dtype, false});
        for (size_t k = 0; k < bound.buffers.size(); ++k) {
            weights[bound.buffers[k]] = bound.weights[k];
            targets[bound.buffers[k]] = bound.grads[k];
        }
        HostTable table(weights.data(), targets.data(), weights.size(), weights_.shared(bound.reaches));
        return {std::move(table), bound.items->library(), true, {}};
    }

    void add_grad(Address stream, uint64_t generation, const GradTable& grads, Address uploaded, double upstream) {
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            check(generation);
            differentiate(queue, captured, grads.table, uploaded, upstream, false);
        });
    }

    void value_and_grad(Address stream, uint64_t generation, const GradTable& grads, Address uploaded, double upstream,
                        Address value, bool wide) {
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            check(generation);
            differentiate(queue, captured, grads.table, uploaded, upstream, true);
            finish_penalty(queue, captured, value, 0, wide);
        });
    }

    void prox(Address stream, uint64_t generation, double step) {
        update(stream, generation, ChangeKind::proximal, step);
    }
    void decay(Address stream, uint64_t generation, double rate) {
        update(stream, generation, ChangeKind::decay, rate);
    }

    GradTable norm_table(const py::object& grads) const {
        weights_.items().check_unmoved();
        BoundGrads bound = weights_.bind_grads(grads);
        HostTable table(bound.grads.data(), nullptr, bound.grads.size(), weights_.shared(bound.reaches));
        return {std::move(table), bound.items->library(), false, {}};
    }

    // Whether looking these up would find the same table.
    bool again(const GradTable& known, const py::list& grads) const {
        return known.seen.again(grads, known.with_weights ? &penalized_ : nullptr);
    }

    // `norm` is two float64: the norm of the table's buffers, and the factor that they are scaled by.
    void clip(Address stream, const GradTable& grads, Address uploaded, Address workspace, Address captured_workspace,
              double max_norm, Address norm) {
        const HostTable& table = grads.table;
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            const Address room = captured ? captured_workspace : workspace;
            const cuda::Workspace space = workspace_at(room, table);
            cuda::clear(queue, at<void>(room), workspace_bytes(table));
            const cuda::Table there = table.at(at<void>(uploaded));
            cuda::launch(queue, table, cuda::SumArguments{there, {}, space, {}});
            cuda::FinishArguments results{};
            results.table = there;
            results.workspace = space;
            results.norm = at<double>(norm);
            results.max_norm = max_norm;
            cuda::launch(queue, results);
            cuda::launch(queue, table, cuda::UpdateArguments{ChangeKind::clip, there, {}, {}, 0, results.norm + 1});
        });
    }

private:
    static std::shared_ptr<cuda::Turns> new_turns() {
        return {new cuda::Turns, [](cuda::Turns* turns) {
                    const Unlocked unlocked;
                    delete turns;
                }};
    }

    static std::vector<size_t> every(size_t n) {
        std::vector<size_t> all(n);
        for (size_t i = 0; i < n; ++i) all[i] = i;
        return all;
    }

    Queue queue(Address stream) const { return {device(), at<void>(stream)}; }

    // Calls run(queue, captured) after whatever this plan did before, on any stream: its calls share workspaces. A
    // graph that is captured cannot wait for what is outside of it.
    template <class Run>
    void in_turn(Address stream, const Run& run) {
        weights_.items().check_unmoved();
        const Unlocked unlocked;  // a full queue may have to wait for a callback that wants it
        const std::lock_guard<std::mutex> lock(mutex_);
        const Queue on = queue(stream);
        const bool captured = cuda::capturing(on);
        if (!captured) turns_->wait(on);
        try {
            if (spoiled_[captured]) cuda::clear(on, at<void>(workspaces_[captured]), workspace_bytes(table_));
            spoiled_[captured] = true;  // until all of it is under way: the last kernel leaves zeros
            run(on, captured);
            spoiled_[captured] = false;
            if (!captured) turns_->done(on);
        } catch (...) {
            if (!captured) turns_->failed(on);
            throw;
        }
    }

    // The same, between what is on the stream of the gradients' library before and what will be.
    template <class Run>
    void with_grads(Address stream, const GradTable& grads, const Run& run) {
        void* other = nullptr;
        const bool apart = grads.library.current_stream(&other) && other != at<void>(stream);
        in_turn(stream, [&](const Queue& on, bool captured) {
            const bool waited = apart && cuda::wait(on, other);
            try {
                run(on, captured);
                if (waited) cuda::wait({on.device, other}, on.stream);
            } catch (...) {  // what was launched before the error changes gradients too
                try {
                    if (waited) cuda::wait({on.device, other}, on.stream);
                } catch (const std::runtime_error&) {  // the first error is told
                }
                throw;
            }
        });
    }

    cuda::Workspace workspace(bool captured) const { return workspace_at(workspaces_[captured], table_); }
    cuda::Table uploaded_table() const { return table_.at(at<void>(uploaded_)); }

    void sum(const Queue& queue, bool captured, const cuda::Coefficients& coefficients) {
        cuda::launch(queue, table_, cuda::SumArguments{uploaded_table(), {}, workspace(captured), coefficients});
    }

    void differentiate(const Queue& queue, bool captured, const HostTable& table, Address uploaded, double upstream,
                       bool sum) {
        cuda::launch(queue, table,
                     cuda::GradientArguments{
                         table.at(at<void>(uploaded)), {}, workspace(captured), coefficients_, upstream, sum});
    }

    cuda::FinishArguments finish(bool captured) const {
        cuda::FinishArguments results{};
        results.table = uploaded_table();
        results.workspace = workspace(captured);
        results.coefficients = coefficients_;
        return results;
    }

    void finish_penalty(const Queue& queue, bool captured, Address value, Address values, bool wide) {
        auto results = finish(captured);
        results.value = at<void>(value);
        results.values = at<void>(values);
        results.wide = wide;
        cuda::launch(queue, results);
    }

    // Throws unless the coefficients on the device are still those that the call means.
    void check(uint64_t generation) const {
        if (generation != generation_)
            throw std::runtime_error("the plan was given other regularizers during this call");
    }

    void update(Address stream, uint64_t generation, ChangeKind kind, double number) {
        for (size_t i = 0; i < l1_.size(); ++i)
            if (concerns(kind, l1_[i], l2_[i])) weights_.check_writable(i);
        in_turn(stream, [&](const Queue& queue, bool) {
            check(generation);
            cuda::launch(queue, table_,
                         cuda::UpdateArguments{kind, uploaded_table(), {}, coefficients_, number, nullptr});
        });
    }

    BoundWeights weights_;
    HostTable table_;
    std::vector<double> l1_, l2_;
    std::vector<bool> penalized_;
    Address uploaded_ = 0, workspaces_[2] = {0, 0};
    bool spoiled_[2] = {false, false};
    cuda::Coefficients coefficients_{};
    uint64_t generation_ = 0;  // of the coefficients; as they are, only looked at in turn
    std::shared_ptr<cuda::Turns> turns_ = new_turns();
    std::mutex mutex_;
};

}  // namespace

py::object make_device_plan(BoundWeights weights) { return py::cast(std::make_unique<DevicePlan>(std::move(weights))); }

void define_device_plan(py::module_& m) {
    using py::arg;
    m.def("cuda_toolkit", &cuda::toolkit);
    using WithoutLock = py::call_guard<Unlocked>;  // see queue.hpp
    m.def("cuda_unavailable", &cuda::unavailable, WithoutLock());

    m.attr("RELAXED_CAPTURE") = cuda::kRelaxedCapture;
    m.def("exchange_capture_mode", &cuda::exchange_capture_mode, arg("mode"), WithoutLock());
    m.def(
        "wait_for_stream",
        [](int device, Address stream, Address other) {
            if (stream != other) cuda::wait({device, at<void>(stream)}, at<void>(other));
        },
        arg("device"), arg("stream"), arg("other"), WithoutLock());

    py::class_<CurrentDevice>(m, "OnDevice")
        .def(py::init<int>(), arg("device"))
        .def(
            "__enter__", [](CurrentDevice& current) { current.on.emplace(current.device); }, WithoutLock())
        .def("__exit__", [](CurrentDevice& current, const py::args&) {
            const Unlocked unlocked;
            current.on.reset();
        });

    py::class_<cuda::Turns, std::shared_ptr<cuda::Turns>>(m, "Turns")
        .def("passed", &cuda::Turns::passed, WithoutLock());

    py::class_<GradTable>(m, "GradTable")
        .def_property_readonly("bytes", [](const GradTable& grads) { return grads.table.bytes().size(); })
        .def_property_readonly("workspace_bytes", [](const GradTable& grads) { return workspace_bytes(grads.table); })
        .def(
            "see",
            [](GradTable& grads, const py::list& list) {
                if (!grads.seen.complete()) grads.seen = Seen(list);  // else another thread may be reading it
            },
            arg("grads"))
        .def(
            "same",
            [](const GradTable& x, const GradTable& y) { return &x == &y || x.table.bytes() == y.table.bytes(); },
            arg("other"));

    py::class_<DevicePlan>(m, "DevicePlan")
        .def_property_readonly("device", &DevicePlan::device)
        .def_property_readonly("dtypes", &DevicePlan::dtypes)
        .def_property_readonly("sizes", &DevicePlan::sizes)
        .def_property_readonly("table_bytes", [](const DevicePlan& plan) { return plan.table().bytes().size(); })
        .def_property_readonly("workspace_bytes", [](const DevicePlan& plan) { return workspace_bytes(plan.table()); })
        .def("stream", &DevicePlan::stream)
        .def("capturing", &DevicePlan::capturing, arg("stream"))
        .def("attach", &DevicePlan::attach, arg("stream"), arg("table"), arg("coefficients"), arg("workspace"),
             arg("captured"))
        .def("upload", &DevicePlan::upload, arg("stream"), arg("grads"), arg("to"))
        .def_property_readonly("turns", &DevicePlan::turns)
        .def("until_now", &DevicePlan::until_now, arg("stream"))
        .def("set_coefficients", &DevicePlan::set_coefficients, arg("stream"), arg("l1"), arg("l2"))
        .def("sums", &DevicePlan::sums, arg("stream"), arg("abs"), arg("square"), arg("totals"))
        .def("norm", &DevicePlan::norm, arg("stream"), arg("norm"))
        .def("limbs", &DevicePlan::limbs, arg("stream"), arg("limbs"))
        .def("value", &DevicePlan::value, arg("stream"), arg("generation"), arg("value"), arg("values"), arg("wide"))
        .def("gradient_table", &DevicePlan::gradient_table, arg("grads"))
        .def("again", &DevicePlan::again, arg("known"), arg("grads"))
        .def("add_grad", &DevicePlan::add_grad, arg("stream"), arg("generation"), arg("grads"), arg("uploaded"),
             arg("upstream"))
        .def("value_and_grad", &DevicePlan::value_and_grad, arg("stream"), arg("generation"), arg("grads"),
             arg("uploaded"), arg("upstream"), arg("value"), arg("wide"))
        .def("prox", &DevicePlan::prox, arg("stream"), arg("generation"), arg("step"))
        .def("decay", &DevicePlan::decay, arg("stream"), arg("generation"), arg("rate"))
        .def("norm_table", &DevicePlan::norm_table, arg("grads"))
        .def("clip", &DevicePlan::clip, arg("stream"), arg("grads"), arg("uploaded"), arg("workspace"), arg("captured"),
             arg("max_norm"), arg("norm"));
}

}  // namespace fused_penalties
