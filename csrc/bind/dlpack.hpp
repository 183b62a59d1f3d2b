// The binary interface of DLPack, as far as it is read here: a tensor, the two capsules that may carry one, and
// the C exchange table of DLPack 1.3 that a type may offer.
#pragma once

#include <cstdint>

namespace fused_penalties::dlpack {

struct Version {
    uint32_t major, minor;
};

struct Device {
    int32_t type, id;
};

constexpr int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kRocmHost = 11, kCudaManaged = 13;
constexpr uint64_t kReadOnly = 1;

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null means C order
    uint64_t byte_offset;
};

struct ManagedTensor {  // capsule "dltensor"
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

struct VersionedTensor {  // capsule "dltensor_versioned"
    Version version;
    void* context;
    void (*deleter)(VersionedTensor*);
    uint64_t flags;
    Tensor tensor;
};

struct ExchangeApi {  // capsule "dlpack_exchange_api", on the type as __dlpack_c_exchange_api__
    Version version;
    ExchangeApi* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, Tensor* out);         // may be null; -1 with a Python error set
    int (*current_stream)(int32_t type, int32_t id, void** out);  // may be null; -1 with a Python error set
};

}  // namespace fused_penalties::dlpack
