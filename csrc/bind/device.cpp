// A plan whose weights are on a GPU. Memory there is the caller's to allocate, who knows its library's pool: what
// comes from Python are arrays and the handles of streams.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
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
using Handle = uintptr_t;  // a cudaStream_t, as Python has it

void* stream_of(Handle handle) { return reinterpret_cast<void*>(handle); }

// The parts of a workspace, one after the other.
cuda::Workspace workspace_at(void* memory, const HostTable& table) {
    auto* limbs = static_cast<int64_t*>(memory);
    auto* singles = reinterpret_cast<BlockSums*>(limbs + (1 + table.slots()) * cuda::kBothLimbs);
    return {limbs, singles, reinterpret_cast<uint32_t*>(singles + table.buffers())};
}

size_t workspace_bytes(const HostTable& table) {
    return size_t(1 + table.slots()) * cuda::kBothLimbs * sizeof(int64_t) + table.buffers() * sizeof(BlockSums) +
           sizeof(uint32_t);
}

// Gradients, found on the device.
struct GradTable {
    HostTable table;
    Library library;
    bool with_weights;
    Seen seen;  // nothing, until they are worth to be known again
};

// The coefficients of a plan's buffers. It never changes: a call keeps those that it was given, whatever other threads
// give the plan meanwhile, and puts them on the device again if others are there.
struct DeviceStrengths {
    const BoundWeights* weights;  // whose these are
    uint64_t number;              // among all that the plan has made, from 1
    std::vector<double> l1, l2;
    std::vector<bool> penalized;  // the buffers that have a penalty

    std::vector<double> both() const {
        std::vector<double> all(l1);
        all.insert(all.end(), l2.begin(), l2.end());
        return all;
    }
};

// What Python holds of the device: its current one in a `with` block.
struct CurrentDevice {
    explicit CurrentDevice(int number) : device(number) {}

    int device;
    std::optional<cuda::OnDevice> on = {};
};

class DeviceCore {
public:
    explicit DeviceCore(BoundWeights weights)
        : weights_(std::move(weights)),
          table_(weights_.spans().data(), nullptr, weights_.size(), weights_.tied(every(weights_.size()))) {}

    const BoundWeights& weights() const { return weights_; }
    int device() const { return weights_.items().device(); }
    const HostTable& table() const { return table_; }

    // The stream that the weights' library works on now, or None if it does not say.
    py::object stream() const {
        void* stream = nullptr;
        if (!weights_.items().library().current_stream(&stream)) return py::none();
        return py::int_(reinterpret_cast<Handle>(stream));
    }

    bool capturing(Handle stream) const {
        const Unlocked unlocked;
        return cuda::capturing(queue(stream));
    }

    // Takes arrays of bytes into use as the plan's memory, and keeps them. What a graph has captured may run at any
    // time, beside other calls, and so has a workspace of its own.
    void attach(Handle stream, const py::object& table, const py::object& coefficients, const py::object& workspace,
                const py::object& for_graphs) {
        memory_ = {table, coefficients, workspace, for_graphs};
        arrays_ = DeviceArrays(table);
        uploaded_ = memory(table, table_.bytes().size());
        auto* const l1 = static_cast<double*>(memory(coefficients, 2 * weights_.size() * sizeof(double)));
        coefficients_ = {l1, l1 + weights_.size()};
        workspaces_[0] = memory(workspace, workspace_bytes(table_));
        workspaces_[1] = memory(for_graphs, workspace_bytes(table_));
        after_earlier_calls(stream, [&](const Queue& queue, bool) {
            cuda::prepare(device());
            cuda::upload(queue, uploaded_, table_.bytes().data(), table_.bytes().size());
            for (void* each : workspaces_) cuda::clear(queue, each, workspace_bytes(table_));
        });
    }

    void upload(Handle stream, const GradTable& grads, const py::object& array) {
        const auto& bytes = grads.table.bytes();
        void* const to = memory(array, bytes.size());
        after_earlier_calls(stream,
                            [&](const Queue& queue, bool) { cuda::upload(queue, to, bytes.data(), bytes.size()); });
    }

    // What tells when the plan's last work is done,
    const std::shared_ptr<cuda::Turns>& turns() const { return turns_; }
    // or all until now, whatever follows.
    std::shared_ptr<cuda::Turns> until_now(Handle stream) {
        const auto turns = new_turns();
        after_earlier_calls(stream, [&](const Queue& queue, bool) { turns->done(queue); });
        return turns;
    }

    std::unique_ptr<DeviceStrengths> strengths(Handle stream, const py::object& l1_of_all,
                                               const py::object& l2_of_all) {
        auto made = std::make_unique<DeviceStrengths>();
        made->weights = &weights_;
        made->number = ++made_;
        made->l1 = weights_.coefficients(l1_of_all);
        made->l2 = weights_.coefficients(l2_of_all);
        for (size_t i = 0; i < made->l1.size(); ++i) made->penalized.push_back(made->l1[i] != 0 || made->l2[i] != 0);
        // At once, because a graph can upload nothing.
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) { use(queue, captured, *made); });
        return made;
    }

    // Into arrays of float64: both sums of each buffer, both over all, and, unless it is None, the largest magnitudes
    // of each and of all.
    void sums(Handle stream, const py::object& each, const py::object& totals, const py::object& largest) {
        auto* const abs = doubles(each, 2 * weights_.size());
        auto* const both = doubles(totals, 2);
        uint64_t* const magnitudes = largest_bits(largest);
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) {
            sum_all(queue, captured, magnitudes);
            auto results = finish(captured);
            results.abs = abs;
            results.square = abs + weights_.size();
            results.totals = both;
            cuda::launch(queue, results);
        });
    }

    // Into an array of two float64: the L2 norm, and the clipping factor, which only clip reads.
    void norm(Handle stream, const py::object& norm) {
        auto* const both = doubles(norm, 2);
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) {
            sum(queue, captured, {});
            auto results = finish(captured);
            results.norm = both;
            cuda::launch(queue, results);
        });
    }

    // `largest` as in `sums`.
    void limbs(Handle stream, const py::object& limbs, const py::object& largest) {
        auto* const to = static_cast<int64_t*>(memory(limbs, weights_.size() * cuda::kBothLimbs * sizeof(int64_t)));
        uint64_t* const magnitudes = largest_bits(largest);
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) {
            sum_all(queue, captured, magnitudes);
            auto results = finish(captured);
            results.limbs = to;
            cuda::launch(queue, results);
        });
    }

    // The penalty, of all buffers and of each, into arrays of the results' dtype; None for what is not wanted.
    void value(Handle stream, const DeviceStrengths& strengths, const py::object& value, const py::object& values) {
        check_own(strengths);
        void *const of_all = results(value, 1), *const of_each = results(values, weights_.size());
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) {
            use(queue, captured, strengths);
            sum(queue, captured, coefficients_);
            finish_penalty(queue, captured, of_all, of_each);
        });
    }

    GradTable gradient_table(const DeviceStrengths& strengths, const py::object& grads) const {
        check_own(strengths);
        weights_.items().check_unmoved();  // before addresses are compared
        BoundGrads bound = weights_.bind(grads, strengths.penalized, true);
        std::vector<Span> weights(weights_.spans().begin(), weights_.spans().end()), targets;
        for (const Span& span : weights) targets.push_back({nullptr, 0, nullptr, 0, span.dtype, false});
        for (size_t k = 0; k < bound.buffers.size(); ++k) {
            weights[bound.buffers[k]] = bound.weights[k];
            targets[bound.buffers[k]] = bound.grads[k];
        }
        HostTable table(weights.data(), targets.data(), weights.size(), weights_.shared(bound.reaches));
        return {std::move(table), bound.items->library(), true, {}};
    }

    void add_grad(Handle stream, const DeviceStrengths& strengths, const GradTable& grads, const py::object& uploaded,
                  const py::object& upstream) {
        check_own(strengths);
        void* const there = memory(uploaded, grads.table.bytes().size());
        const cuda::Number factor = number(upstream);
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            use(queue, captured, strengths);
            differentiate(queue, captured, grads.table, there, factor, false);
        });
    }

    void write_grad(Handle stream, const DeviceStrengths& strengths, const GradTable& grads, const py::object& uploaded,
                    const py::object& upstream) {
        check_own(strengths);
        const cuda::Table there = grads.table.at(memory(uploaded, grads.table.bytes().size()));
        const cuda::Number factor = number(upstream);
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            use(queue, captured, strengths);
            cuda::launch(queue, grads.table,
                         cuda::UpdateArguments{ChangeKind::stored_gradient, there, {}, coefficients_, factor});
        });
    }

    void value_and_grad(Handle stream, const DeviceStrengths& strengths, const GradTable& grads,
                        const py::object& uploaded, const py::object& upstream, const py::object& value) {
        check_own(strengths);
        void *const there = memory(uploaded, grads.table.bytes().size()), *const of_all = results(value, 1);
        const cuda::Number factor = number(upstream);
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            use(queue, captured, strengths);
            differentiate(queue, captured, grads.table, there, factor, true);
            finish_penalty(queue, captured, of_all, nullptr);
        });
    }

    void prox(Handle stream, const DeviceStrengths& strengths, double step) {
        update(stream, strengths, ChangeKind::proximal, step);
    }
    void decay(Handle stream, const DeviceStrengths& strengths, double rate) {
        update(stream, strengths, ChangeKind::decay, rate);
    }

    GradTable norm_table(const py::object& grads) const {
        weights_.items().check_unmoved();
        BoundGrads bound = weights_.bind_grads(grads);
        HostTable table(bound.grads.data(), nullptr, bound.grads.size(), weights_.shared(bound.reaches));
        return {std::move(table), bound.items->library(), false, {}};
    }

    // Whether looking these up would find the same table.
    bool again(const GradTable& known, const DeviceStrengths* strengths, const py::list& grads) const {
        return known.seen.again(grads, strengths ? &strengths->penalized : nullptr);
    }

    // `norm` is two float64: the norm of the table's buffers, and the factor that they are scaled by.
    void clip(Handle stream, const GradTable& grads, const py::object& uploaded, const py::object& workspace,
              const py::object& for_graphs, double max_norm, const py::object& norm) {
        const HostTable& table = grads.table;
        void* const there = memory(uploaded, table.bytes().size());
        void* const rooms[] = {memory(workspace, workspace_bytes(table)), memory(for_graphs, workspace_bytes(table))};
        auto* const both = doubles(norm, 2);
        with_grads(stream, grads, [&](const Queue& queue, bool captured) {
            const cuda::Workspace space = workspace_at(rooms[captured], table);
            cuda::clear(queue, rooms[captured], workspace_bytes(table));
            const cuda::Table on_device = table.at(there);
            cuda::launch(queue, table, cuda::SumArguments{on_device, {}, space, {}});
            cuda::FinishArguments results{};
            results.table = on_device;
            results.workspace = space;
            results.norm = both;
            results.max_norm = max_norm;
            cuda::launch(queue, results);
            cuda::launch(queue, table, cuda::UpdateArguments{ChangeKind::clip, on_device, {}, {}, {0, both + 1, true}});
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

    Queue queue(Handle stream) const { return {device(), stream_of(stream)}; }

    // Where an array of the plan's library lies, which has room for so many bytes.
    void* memory(const py::object& array, size_t bytes) const { return arrays_.find(array, device(), bytes).data; }
    double* doubles(const py::object& array, size_t count) const {
        return static_cast<double*>(memory(array, count * sizeof(double)));
    }
    size_t largest_bytes() const { return (weights_.size() + 1) * sizeof(uint64_t); }
    // An array of float64, as which these bits are numbers, or None.
    uint64_t* largest_bits(const py::object& array) const {
        return array.is_none() ? nullptr : static_cast<uint64_t*>(memory(array, largest_bytes()));
    }
    void* results(const py::object& array, size_t count) const {
        return array.is_none() ? nullptr : memory(array, count * (weights_.wide() ? sizeof(double) : sizeof(float)));
    }

    // A float, or an array of the plan's library with one float32 or float64.
    cuda::Number number(const py::object& number) const {
        if (py::isinstance<py::float_>(number)) return {number.cast<double>(), nullptr, true};
        const DeviceArrays::Memory found = arrays_.find(number, device(), sizeof(float));
        return {0, found.data, found.bytes == sizeof(double)};
    }

    // Calls run(queue, captured) after whatever this plan did before, on any stream: its calls share workspaces. A
    // graph that is captured cannot wait for what is outside of it.
    template <class Run>
    void after_earlier_calls(Handle stream, const Run& run) {
        weights_.items().check_unmoved();
        const Unlocked unlocked;  // a full queue may have to wait for a callback that wants it
        const std::lock_guard<std::mutex> lock(mutex_);
        const Queue on = queue(stream);
        const bool captured = cuda::capturing(on);
        if (!captured) turns_->wait(on);
        try {
            if (spoiled_[captured]) cuda::clear(on, workspaces_[captured], workspace_bytes(table_));
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
    void with_grads(Handle stream, const GradTable& grads, const Run& run) {
        void* other = nullptr;
        const bool apart = grads.library.current_stream(&other) && other != stream_of(stream);
        after_earlier_calls(stream, [&](const Queue& on, bool captured) {
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
    cuda::Table uploaded_table() const { return table_.at(uploaded_); }

    void sum(const Queue& queue, bool captured, const cuda::Coefficients& coefficients) {
        cuda::launch(queue, table_, cuda::SumArguments{uploaded_table(), {}, workspace(captured), coefficients});
    }

    // Of every buffer, and the largest magnitudes unless `largest` is null.
    void sum_all(const Queue& queue, bool captured, uint64_t* largest) {
        if (!largest) return sum(queue, captured, {});
        cuda::clear(queue, largest, largest_bytes());
        cuda::launch(queue, table_, cuda::LargestArguments{{uploaded_table(), {}, workspace(captured), {}}, largest});
    }

    void differentiate(const Queue& queue, bool captured, const HostTable& table, void* uploaded,
                       const cuda::Number& upstream, bool sum) {
        cuda::launch(
            queue, table,
            cuda::GradientArguments{table.at(uploaded), {}, workspace(captured), coefficients_, upstream, sum});
    }

    cuda::FinishArguments finish(bool captured) const {
        cuda::FinishArguments results{};
        results.table = uploaded_table();
        results.workspace = workspace(captured);
        results.coefficients = coefficients_;
        return results;
    }

    void finish_penalty(const Queue& queue, bool captured, void* value, void* values) {
        auto results = finish(captured);
        results.value = value;
        results.values = values;
        results.wide = weights_.wide();
        cuda::launch(queue, results);
    }

    // Throws if these are another plan's.
    void check_own(const DeviceStrengths& strengths) const {
        if (strengths.weights != &weights_) throw py::value_error("strengths: these are another plan's");
    }

    // Sees to it that these are on the device.
    void use(const Queue& queue, bool captured, const DeviceStrengths& strengths) {
        if (strengths.number == on_device_) return;
        if (captured) throw std::runtime_error("the plan was given other regularizers during this call");
        const std::vector<double> both = strengths.both();
        on_device_ = 0;  // if this fails
        cuda::upload(queue, const_cast<double*>(coefficients_.l1), both.data(), both.size() * sizeof both[0]);
        on_device_ = strengths.number;
    }

    void update(Handle stream, const DeviceStrengths& strengths, ChangeKind kind, double number) {
        check_own(strengths);
        for (size_t i = 0; i < weights_.size(); ++i)
            if (concerns(kind, strengths.l1[i], strengths.l2[i])) weights_.check_writable(i);
        after_earlier_calls(stream, [&](const Queue& queue, bool captured) {
            use(queue, captured, strengths);
            cuda::launch(queue, table_,
                         cuda::UpdateArguments{kind, uploaded_table(), {}, coefficients_, {number, nullptr, true}});
        });
    }

    BoundWeights weights_;
    HostTable table_;
    std::vector<py::object> memory_;  // keeps what the next three point to
    DeviceArrays arrays_;
    void *uploaded_ = nullptr, *workspaces_[2] = {nullptr, nullptr};
    bool spoiled_[2] = {false, false};
    cuda::Coefficients coefficients_{};
    std::atomic<uint64_t> made_{0};  // strengths
    uint64_t on_device_ = 0;         // which of them; looked at under the mutex only
    std::shared_ptr<cuda::Turns> turns_ = new_turns();
    std::mutex mutex_;
};

}  // namespace

py::object make_device_plan(BoundWeights weights) { return py::cast(std::make_unique<DeviceCore>(std::move(weights))); }

void define_device_plan(py::module_& m) {
    using py::arg;
    m.def("cuda_toolkit", &cuda::toolkit);
    using WithoutLock = py::call_guard<Unlocked>;  // see queue.hpp
    m.def("cuda_unavailable", &cuda::unavailable, WithoutLock());

    m.attr("RELAXED_CAPTURE") = cuda::kRelaxedCapture;
    m.def("exchange_capture_mode", &cuda::exchange_capture_mode, arg("mode"), WithoutLock());
    m.def(
        "wait_for_stream",
        [](int device, Handle stream, Handle other) {
            return stream != other && cuda::wait({device, stream_of(stream)}, stream_of(other));
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

    py::class_<DeviceStrengths>(m, "DeviceStrengths")
        .def_readonly("l1", &DeviceStrengths::l1)
        .def_readonly("l2", &DeviceStrengths::l2);

    py::class_<DeviceCore>(m, "DeviceCore")
        .def_property_readonly("device", &DeviceCore::device)
        .def_property_readonly("dtypes", [](const DeviceCore& plan) { return plan.weights().dtypes(); })
        .def_property_readonly("sizes", [](const DeviceCore& plan) { return plan.weights().sizes(); })
        .def_property_readonly("wide", [](const DeviceCore& plan) { return plan.weights().wide(); })
        .def_property_readonly("table_bytes", [](const DeviceCore& plan) { return plan.table().bytes().size(); })
        .def_property_readonly("workspace_bytes", [](const DeviceCore& plan) { return workspace_bytes(plan.table()); })
        .def("stream", &DeviceCore::stream)
        .def("capturing", &DeviceCore::capturing, arg("stream"))
        .def("attach", &DeviceCore::attach, arg("stream"), arg("table"), arg("coefficients"), arg("workspace"),
             arg("for_graphs"))
        .def("upload", &DeviceCore::upload, arg("stream"), arg("grads"), arg("to"))
        .def_property_readonly("turns", &DeviceCore::turns)
        .def("until_now", &DeviceCore::until_now, arg("stream"))
        .def("strengths", &DeviceCore::strengths, arg("stream"), arg("l1"), arg("l2"), py::keep_alive<0, 1>())
        .def("sums", &DeviceCore::sums, arg("stream"), arg("each"), arg("totals"), arg("largest"))
        .def("norm", &DeviceCore::norm, arg("stream"), arg("norm"))
        .def("limbs", &DeviceCore::limbs, arg("stream"), arg("limbs"), arg("largest"))
        .def("value", &DeviceCore::value, arg("stream"), arg("strengths"), arg("value"), arg("values"))
        .def(
            "rounded_total",
            [](const DeviceCore& plan, const std::vector<double>& terms) {
                return plan.weights().rounded_total(terms);
            },
            arg("terms"))
        .def(
            "rounded_each",
            [](const DeviceCore& plan, const py::array_t<double>& terms) { return plan.weights().rounded_each(terms); },
            arg("terms"))
        .def("gradient_table", &DeviceCore::gradient_table, arg("strengths"), arg("grads"))
        .def("again", &DeviceCore::again, arg("known"), arg("strengths"), arg("grads"))
        .def("add_grad", &DeviceCore::add_grad, arg("stream"), arg("strengths"), arg("grads"), arg("uploaded"),
             arg("upstream"))
        .def("write_grad", &DeviceCore::write_grad, arg("stream"), arg("strengths"), arg("grads"), arg("uploaded"),
             arg("upstream"))
        .def("value_and_grad", &DeviceCore::value_and_grad, arg("stream"), arg("strengths"), arg("grads"),
             arg("uploaded"), arg("upstream"), arg("value"))
        .def("prox", &DeviceCore::prox, arg("stream"), arg("strengths"), arg("step"))
        .def("decay", &DeviceCore::decay, arg("stream"), arg("strengths"), arg("rate"))
        .def("norm_table", &DeviceCore::norm_table, arg("grads"))
        .def("clip", &DeviceCore::clip, arg("stream"), arg("grads"), arg("uploaded"), arg("workspace"),
             arg("for_graphs"), arg("max_norm"), arg("norm"));
}

}  // namespace fused_penalties
