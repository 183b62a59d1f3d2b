// The order in which the contract reads a view, as spans.
#pragma once

#include <list>
#include <utility>
#include <vector>

#include "borrow.hpp"
#include "span.hpp"

namespace fused_penalties {

// Spans and the axes that they point to.
class Spans {
public:
    void add(const View& view) { add(view, view, nullptr); }
    // Adds `view`, and to `others` the span that walks `other`, of the same shape, in step with it.
    void add(const View& view, const View& other, Spans* others);
    // Leaves every piece of memory in at its first place only; a repeat counts as empty.
    void drop_repeats();

    void reserve(size_t n) { spans_.reserve(n); }
    size_t size() const { return spans_.size(); }
    const Span* data() const { return spans_.data(); }
    const Span& operator[](size_t i) const { return spans_[i]; }
    const std::vector<Span>& all() const { return spans_; }
    std::vector<Span>::const_iterator begin() const { return spans_.begin(); }
    std::vector<Span>::const_iterator end() const { return spans_.end(); }

private:
    void add(Span span, std::vector<Axis> axes);

    std::vector<Span> spans_;
    std::list<std::vector<Axis>> axes_;  // a list, whose elements stay where they are
};

// For each span the first that is the same memory in the same order: itself, if there is none before it.
std::vector<size_t> first_places(const std::vector<Span>& spans);

// True if a view repeats or interleaves its elements, as broadcast views and sliding windows do.
bool repeats(const View& view);

// The addresses that a view's elements lie in, [first, second).
using Reach = std::pair<const unsigned char*, const unsigned char*>;
Reach reach(const View& view);

}  // namespace fused_penalties
