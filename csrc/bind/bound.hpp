// The weights of a plan, wherever they are: what they are, where they are, and which gradients go with them.
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
    BoundWeights(const py::object& items, const py::object& names, bool single);

    size_t size() const { return weights_.size(); }
    const Items& items() const { return *items_; }
    const Spans& spans() const { return spans_; }
    Spans& spans() { return spans_; }
    std::vector<std::string> dtypes() const;

    // Throws ValueError unless there are coefficients for all, none of them negative or NaN.
    void check_coefficients(const std::vector<double>& l1, const std::vector<double>& l2) const;
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

    void check_grad(const Items& items, size_t i, const View& grad) const;
    BoundGrads find(const py::object& grads, const std::function<void(BoundGrads&, size_t, const View&)>& take) const;

    py::object names_;
    bool single_;
    std::deque<Weight> weights_;
    Spans spans_;
    std::unique_ptr<Items> items_;
};

}  // namespace fused_penalties
