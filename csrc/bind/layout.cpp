#include "layout.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace fused_penalties {
namespace {

// An axis of two views of one shape.
struct Joint {
    int64_t extent, stride, other;
};

// True if walking the axes, longest stride first, goes up in memory and meets no element twice.
bool nests(const std::vector<Joint>& axes, int64_t itemsize) {
    int64_t reach = itemsize;
    for (size_t k = axes.size(); k-- > 0;) {
        if (axes[k].stride < reach) return false;
        reach += (axes[k].extent - 1) * axes[k].stride;
    }
    return true;
}

// Joins neighbours that one longer axis can replace.
void merge_neighbours(std::vector<Joint>& axes) {
    size_t kept = 0;
    for (size_t k = 1; k < axes.size(); ++k) {
        const Joint& inner = axes[k];
        Joint& outer = axes[kept];
        if (outer.stride == inner.extent * inner.stride && outer.other == inner.extent * inner.other) {
            outer = {outer.extent * inner.extent, inner.stride, inner.other};
        } else {
            axes[++kept] = inner;
        }
    }
    if (!axes.empty()) axes.resize(kept + 1);
}

// The axes longer than one, in step with another view's.
std::vector<Joint> joint_axes(const View& view, const View& other) {
    std::vector<Joint> axes;
    for (int k = 0; k < view.rank; ++k)
        if (view.shape[k] != 1) axes.push_back({view.shape[k], view.strides[k], other.strides[k]});
    return axes;
}

void sort_longest_stride_first(std::vector<Joint>& axes) {
    std::sort(axes.begin(), axes.end(), [](const Joint& x, const Joint& y) { return x.stride > y.stride; });
}

bool same(const Span& x, const Span& y) {
    return x.data == y.data && x.count == y.count && x.dtype == y.dtype && x.swapped == y.swapped &&
           std::equal(x.axes, x.axes + x.rank, y.axes, y.axes + y.rank, [](const Axis& one, const Axis& other) {
               return one.extent == other.extent && one.stride == other.stride;
           });
}

Span dense_span(const View& view) { return {view.data, view.count(), nullptr, 0, view.dtype, view.swapped}; }

}  // namespace

// By increasing address if the axes nest, and in C order if they do not: such a view repeats elements, or
// interleaves them.
void Spans::add(const View& view, const View& other, Spans* others) {
    Span span = dense_span(view), second = dense_span(other);
    if ((view.dense && other.dense) || span.count <= 1) {
        spans_.push_back(span);
        if (others) others->spans_.push_back(second);
        return;
    }
    std::vector<Joint> axes = joint_axes(view, other), upward = axes;
    const unsigned char *lowest = span.data, *second_start = second.data;
    for (Joint& axis : upward) {
        if (axis.stride >= 0) continue;
        lowest += (axis.extent - 1) * axis.stride;
        second_start += (axis.extent - 1) * axis.other;
        axis.stride = -axis.stride;
        axis.other = -axis.other;
    }
    sort_longest_stride_first(upward);
    if (nests(upward, itemsize(span.dtype))) {
        axes = std::move(upward);
        span.data = lowest;
        second.data = second_start;
    }
    merge_neighbours(axes);
    std::vector<Axis> first_axes, second_axes;
    for (const Joint& axis : axes) {
        first_axes.push_back({axis.extent, axis.stride});
        second_axes.push_back({axis.extent, axis.other});
    }
    add(span, std::move(first_axes));
    if (others) others->add(second, std::move(second_axes));
}

void Spans::add(Span span, std::vector<Axis> axes) {
    if (axes.size() > 1 || axes[0].stride != itemsize(span.dtype)) {
        axes_.push_back(std::move(axes));
        span.axes = axes_.back().data();
        span.rank = int(axes_.back().size());
    }
    spans_.push_back(span);
}

void Spans::drop_repeats() {
    const std::vector<size_t> first = first_places(spans_);
    for (size_t i = 0; i < first.size(); ++i)
        if (first[i] != i) spans_[i].count = 0;
}

// By a table of the places, in which each is looked for from where its address points to.
std::vector<size_t> first_places(const std::vector<Span>& spans) {
    size_t size = 1;
    while (size < 2 * spans.size()) size *= 2;
    constexpr size_t kFree = size_t(-1);
    std::vector<size_t> table(size, kFree), first(spans.size());
    for (size_t i = 0; i < spans.size(); ++i) {
        const uint64_t mixed = reinterpret_cast<uintptr_t>(spans[i].data) * 0x9e3779b97f4a7c15u;
        size_t at = size_t(mixed >> 32) & (size - 1);
        while (table[at] != kFree && !same(spans[table[at]], spans[i])) at = (at + 1) & (size - 1);
        if (table[at] == kFree) table[at] = i;
        first[i] = table[at];
    }
    return first;
}

bool repeats(const View& view) {
    if (view.dense || view.count() <= 1) return false;
    std::vector<Joint> axes = joint_axes(view, view);
    for (Joint& axis : axes) axis.stride = std::abs(axis.stride);
    sort_longest_stride_first(axes);
    return !nests(axes, itemsize(view.dtype));
}

Reach reach(const View& view) {
    const unsigned char *low = view.data, *high = view.data;
    if (view.count() == 0) return {low, high};
    for (int k = 0; k < view.rank; ++k) {
        const int64_t step = (view.shape[k] - 1) * view.strides[k];
        (step < 0 ? low : high) += step;
    }
    return {low, high + itemsize(view.dtype)};
}

}  // namespace fused_penalties
