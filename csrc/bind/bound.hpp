// The weights of a plan, wherever they are: what they are, where they are, and which gradients go with them. What both
// kinds of plans do without a look at the weights' memory is here too.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "borrow.hpp"
#include "layout.hpp"

namespace fused_penalties {

// Gradients, some with their weights in step with them.
struct BoundGrads {
    std::unique_ptr<Items> items;
    Spans grads, weights;
    std::vector<size_t> buffers;  // which weights these are
    std::vector<Reach> reaches;   // of the gradients
};

// Made and destroyed with the GIL held, as Items are.
class BoundWeights {
public:
    // With `keep` for many calls; else for one, which reads and changes nothing. With `wide` results are float64 even
    // if none of the weights is.
    BoundWeights(const py::object& items, const py::object& names, bool single, bool keep, bool wide);

    size_t size() const { return spans_.size(); }
    const Items& items() const { return *items_; }
    const Spans& spans() const { return spans_; }
    // Leaves every piece of memory in at its first place only; a repeat counts as empty.
    void drop_repeats() { spans_.drop_repeats(); }

    std::vector<std::string> dtypes() const;
    // How many elements each buffer has.
    py::array_t<int64_t> sizes() const;
    // True if the results of all are float64, not float32: if one of the weights is.
    bool wide() const { return wide_; }

    // Coefficients as they multiply, from a float for all or a list with one for each, before they are rounded.
    // Throws ValueError for a list of another length, or for a coefficient that is negative or NaN.
    std::vector<double> coefficients(const py::object& given) const;
    // Penalties as float64 terms, rounded to what users see: their exact sum; and each, one for each buffer.
    py::object rounded_total(const std::vector<double>& terms) const;
    py::array rounded_each(const py::array_t<double>& terms) const;

    // Throws ValueError unless weight i may be changed in place.
    void check_writable(size_t i) const;
    // True if any two of these weights share memory.
    bool tied(const std::vector<size_t>& some) const;
    // True if work on these gradients has to take one buffer after the other: some share memory with each other,
    // or with weights. Sorts the reaches.
    bool shared(std::vector<Reach>& reaches) const;

    // Both check every gradient that is given, which is None for some. `bind` takes those of the weights that are
    // `needed`, which must be there, and with `all` the others too; `bind_grads` takes all, without weights.
    BoundGrads bind(const py::object& grads, const std::vector<bool>& needed, bool all) const;
    BoundGrads bind_grads(const py::object& grads) const;

private:
    struct Weight {
        View view;
        std::vector<int64_t> shape, strides;  // what the view points to
        Reach reach;
    };

    void check_kept() const;
    template <class Result>
    py::array_t<Result> rounded_each_as(const py::array_t<double>& terms) const;
    void check_grad(const Items& items, size_t i, const View& grad) const;
    BoundGrads find(const py::object& grads, const std::function<void(BoundGrads&, size_t, const View&)>& take) const;

    py::object names_;
    bool single_, keep_, wide_;
    std::deque<Weight> weights_;  // if they are kept
    Spans spans_;
    std::unique_ptr<Items> items_;
};

}  // namespace fused_penalties
