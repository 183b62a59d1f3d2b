// What XLA calls on the CPU for `fused_penalties.jax.penalty`. It holds no lock of Python's and touches no Python; all
// sizes come from the buffers that XLA gives.
//
// Compiled by CMake's option FUSED_PENALTIES_XLA_INCLUDE or by `python -m fused_penalties.jax build`, both times from
// this file and the two headers that it includes of the package.
#include <algorithm>
#include <exception>
#include <vector>

#include "jax/interface.hpp"
#include "xla/ffi/api/ffi.h"

#define FUSED_PENALTIES_EXPORT extern "C" __attribute__((visibility("default")))

namespace ffi = xla::ffi;
using namespace fused_penalties;

namespace {

PenaltyOfRows penalty_of_rows = nullptr;

bool is_dtype(ffi::DataType type, DType* dtype) {
    switch (type) {
        case ffi::DataType::F16: *dtype = DType::float16; return true;
        case ffi::DataType::BF16: *dtype = DType::bfloat16; return true;
        case ffi::DataType::F32: *dtype = DType::float32; return true;
        case ffi::DataType::F64: *dtype = DType::float64; return true;
        default: return false;
    }
}

// The weights of one argument under `jax.vmap`: the axes of the batch, those of the result, come before its own. One
// that is not mapped has the extent 1 there.
class Rows {
public:
    Rows(ffi::AnyBuffer::Dimensions batch, const ffi::AnyBuffer& weights, DType dtype)
        : batch_(batch),
          dims_(weights.dimensions()),
          data_(static_cast<const unsigned char*>(weights.untyped_data())),
          dtype_(dtype) {
        for (size_t k = batch.size(); k < dims_.size(); ++k) count_ *= uint64_t(dims_[k]);
    }

    PenalizedBuffer operator[](uint64_t row) const {
        uint64_t at = 0, stride = 1;
        for (size_t k = batch_.size(); k-- > 0;) {
            if (dims_[k] != 1) at += row % uint64_t(batch_[k]) * stride;
            row /= uint64_t(batch_[k]);
            stride *= uint64_t(dims_[k]);
        }
        return {data_ + at * count_ * uint64_t(itemsize(dtype_)), count_, 0, 0, dtype_};
    }

private:
    ffi::AnyBuffer::Dimensions batch_, dims_;
    const unsigned char* data_;
    uint64_t count_ = 1;
    DType dtype_;
};

ffi::Error penalty(ffi::RemainingArgs weights, ffi::Result<ffi::AnyBuffer> result, ffi::Span<const double> l1,
                   ffi::Span<const double> l2) try {
    const size_t rows = result->element_count(), columns = weights.size();
    const auto batch = result->dimensions();
    const bool wide = result->element_type() == ffi::DataType::F64;
    if (l1.size() != columns || l2.size() != columns) return ffi::Error::InvalidArgument("wanted as many of each");
    std::vector<PenalizedBuffer> buffers(rows * columns);
    for (size_t i = 0; i < columns; ++i) {
        const auto given = weights.get<ffi::AnyBuffer>(i);
        DType dtype;
        if (!given.has_value() || !is_dtype(given->element_type(), &dtype))
            return ffi::Error::InvalidArgument("weights: wanted float16, bfloat16, float32 or float64");
        const auto dims = given->dimensions();
        bool fits = dims.size() >= batch.size();
        for (size_t k = 0; fits && k < batch.size(); ++k) fits = dims[k] == 1 || dims[k] == batch[k];
        if (!fits) return ffi::Error::InvalidArgument("weights: wanted the axes of the batch first");
        const Rows of_rows(batch, *given, dtype);
        for (size_t row = 0; row < rows; ++row) {
            PenalizedBuffer& buffer = buffers[row * columns + i] = of_rows[row];
            buffer.l1 = l1[i];
            buffer.l2 = l2[i];
        }
    }
    std::vector<double> values(rows);
    char message[512] = "";
    if (!penalty_of_rows(buffers.data(), rows, columns, wide, values.data(), message, sizeof message))
        return ffi::Error::Internal(message);
    if (wide) {
        std::copy(values.begin(), values.end(), static_cast<double*>(result->untyped_data()));
    } else {
        std::transform(values.begin(), values.end(), static_cast<float*>(result->untyped_data()),
                       [](double value) { return float(value); });
    }
    return ffi::Error::Success();
} catch (const std::exception& error) {  // no memory
    return ffi::Error::Internal(error.what());
}

}  // namespace

// Gives the handler the package's function. Returns why it must not be used, or null. XLA finds out for itself that it
// was compiled for another version, but then JAX has no CPU any more.
FUSED_PENALTIES_EXPORT const char* fused_penalties_connect(int interface, int xla_major, int xla_minor,
                                                           void* function) {
    if (interface != kJaxInterface) return "it was built for another version of fused_penalties";
    if (xla_major != XLA_FFI_API_MAJOR || xla_minor != XLA_FFI_API_MINOR)
        return "it was built for another version of JAX";
    penalty_of_rows = reinterpret_cast<PenaltyOfRows>(function);
    return nullptr;
}

FUSED_PENALTIES_EXPORT XLA_FFI_Error* fused_penalties_penalty(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(fused_penalties_penalty, penalty,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const double>>("l1")
                                  .Attr<ffi::Span<const double>>("l2"));
