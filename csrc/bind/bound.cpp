#include "bound.hpp"

#include <pybind11/stl.h>

#include <algorithm>

#include "convention.hpp"
#include "cpu/float_environment.hpp"
#include "results.hpp"

namespace fused_penalties {
namespace {

std::string text_of(int rank, const int64_t* shape) {
    py::tuple sizes(static_cast<size_t>(rank));
    for (int k = 0; k < rank; ++k) sizes[size_t(k)] = shape[k];
    return py::repr(sizes);
}

// Memory that a change may be written to once for each element.
void check_target(const Items& items, size_t i, const View& view) {
    if (!view.writable)
        throw py::value_error(items.label(i) + ": is read-only, or a copy; wanted memory that can be written");
    if (repeats(view))
        throw py::value_error(items.label(i) + ": repeats its elements (a broadcast view, say); wanted each one once");
}

bool overlap(const Reach& x, const Reach& y) { return std::max(x.first, y.first) < std::min(x.second, y.second); }

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

}  // namespace

BoundWeights::BoundWeights(const py::object& items, const py::object& names, bool single, bool keep, bool wide)
    : names_(names), single_(single), keep_(keep), wide_(wide) {
    const auto take = [this](const Items&, size_t, const View& view) {
        wide_ = wide_ || computed_in_double(view.dtype);
        if (!keep_) return spans_.add(view);
        Weight& weight = weights_.emplace_back(
            Weight{view, {view.shape, view.shape + view.rank}, {view.strides, view.strides + view.rank}, {}});
        weight.view.shape = weight.shape.data();
        weight.view.strides = weight.strides.data();
        weight.reach = reach(weight.view);
        spans_.add(weight.view);
    };
    items_ = std::make_unique<Items>("weights", items, names, single, keep ? Use::keep : Use::read, take);
}

std::vector<std::string> BoundWeights::dtypes() const {
    std::vector<std::string> names;
    for (const Span& span : spans_) names.push_back(name_of(span.dtype));
    return names;
}

py::array_t<int64_t> BoundWeights::sizes() const {
    py::array_t<int64_t> sizes(static_cast<py::ssize_t>(size()));
    std::transform(spans_.begin(), spans_.end(), sizes.mutable_data(),
                   [](const Span& span) { return int64_t(span.count); });
    return sizes;
}

std::vector<double> BoundWeights::coefficients(const py::object& given) const {
    std::vector<double> values = PyNumber_Check(given.ptr()) ? std::vector<double>(size(), given.cast<double>())
                                                             : given.cast<std::vector<double>>();
    if (values.size() != size())
        throw py::value_error("coefficients: got " + std::to_string(values.size()) + "; wanted " +
                              std::to_string(size()));
    const DefaultFloatEnvironment environment;
    for (size_t i = 0; i < size(); ++i) {
        if (!(values[i] >= 0)) throw py::value_error(items_->label(i) + ": got a coefficient that is negative or NaN");
        values[i] = rounded_coefficient(values[i], spans_[i].dtype);
    }
    return values;
}

py::object BoundWeights::rounded_total(const std::vector<double>& terms) const {
    const DefaultFloatEnvironment environment;
    return numpy_scalar(total_of(terms), wide_);
}

py::array BoundWeights::rounded_each(const py::array_t<double>& terms) const {
    if (size_t(terms.size()) != size())
        throw py::value_error("terms: got " + std::to_string(terms.size()) + "; wanted " + std::to_string(size()));
    return wide_ ? py::array(rounded_each_as<double>(terms)) : py::array(rounded_each_as<float>(terms));
}

template <class Result>
py::array_t<Result> BoundWeights::rounded_each_as(const py::array_t<double>& terms) const {
    py::array_t<Result> results(static_cast<py::ssize_t>(size()));
    const auto from = terms.unchecked<1>();
    Result* const to = results.mutable_data();
    const DefaultFloatEnvironment environment;
    for (size_t i = 0; i < size(); ++i)
        to[i] = Result(rounded(from(py::ssize_t(i)), computed_in_double(spans_[i].dtype)));
    return results;
}

void BoundWeights::check_kept() const {
    if (!keep_) throw py::value_error("this plan was made for one read of its weights; wanted one that keeps them");
}

void BoundWeights::check_writable(size_t i) const {
    check_kept();
    check_target(*items_, i, weights_[i].view);
}

bool BoundWeights::tied(const std::vector<size_t>& some) const {
    if (!keep_) return false;  // such a plan makes no changes, for which alone it matters
    std::vector<Reach> reaches;
    for (size_t i : some) collect(reaches, weights_[i].reach);
    return overlapping(reaches);
}

bool BoundWeights::shared(std::vector<Reach>& reaches) const {
    if (overlapping(reaches)) return true;
    for (const Weight& weight : weights_) {
        const Reach read = weight.reach;
        const auto after = std::lower_bound(reaches.begin(), reaches.end(), Reach{read.second, read.second});
        if (after != reaches.begin() && overlap(*(after - 1), read)) return true;
    }
    return false;
}

void BoundWeights::check_grad(const Items& items, size_t i, const View& grad) const {
    const Weight& weight = weights_[i];
    const DType wanted = weight.view.dtype;
    if (grad.dtype != wanted && !(is_narrow(wanted) && grad.dtype == DType::float32))
        throw py::type_error(items.label(i) + ": got dtype " + name_of(grad.dtype) + "; wanted " + name_of(wanted) +
                             (is_narrow(wanted) ? ", the weight's, or float32" : ", the weight's"));
    if (!std::equal(grad.shape, grad.shape + grad.rank, weight.shape.begin(), weight.shape.end()))
        throw py::value_error(items.label(i) + ": got shape " + text_of(grad.rank, grad.shape) + "; wanted " +
                              text_of(weight.view.rank, weight.view.shape) + ", the weight's");
    check_target(items, i, grad);
    if (overlap(reach(grad), weight.reach))
        throw py::value_error(items.label(i) + ": overlaps the memory of " + items_->label(i));
}

BoundGrads BoundWeights::find(const py::object& grads,
                              const std::function<void(BoundGrads&, size_t, const View&)>& take) const {
    check_kept();
    const py::tuple fixed(grads);  // whose length stays what is checked here
    if (fixed.size() != size())
        throw py::value_error("grads: got " + std::to_string(fixed.size()) + "; wanted one for each of " +
                              std::to_string(size()) + " weights");
    BoundGrads bound;
    bound.items = std::make_unique<Items>("grads", fixed, names_, single_, Use::write,
                                          [&](const Items& items, size_t i, const View& grad) {
                                              check_grad(items, i, grad);
                                              take(bound, i, grad);
                                          });
    bound.items->check_beside(*items_);
    return bound;
}

BoundGrads BoundWeights::bind(const py::object& grads, const std::vector<bool>& needed, bool all) const {
    std::vector<bool> given(size());
    BoundGrads bound = find(grads, [&](BoundGrads& found, size_t i, const View& grad) {
        given[i] = true;
        if (!needed[i] && !all) return;
        found.weights.add(weights_[i].view, grad, &found.grads);
        found.buffers.push_back(i);
        collect(found.reaches, reach(grad));
    });
    for (size_t i = 0; i < size(); ++i)
        if (needed[i] && !given[i]) throw py::type_error(bound.items->label(i) + ": got None; wanted an array");
    return bound;
}

BoundGrads BoundWeights::bind_grads(const py::object& grads) const {
    return find(grads, [](BoundGrads& found, size_t i, const View& grad) {
        found.grads.add(grad);
        found.buffers.push_back(i);
        collect(found.reaches, reach(grad));
    });
}

}  // namespace fused_penalties
