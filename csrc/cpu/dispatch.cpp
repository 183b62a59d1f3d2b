#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "isa.hpp"

#if defined(FUSED_PENALTIES_X86)
#include <cpuid.h>
#endif

namespace fused_penalties {
namespace {

bool always() { return true; }
bool never() { return false; }

#if defined(FUSED_PENALTIES_X86)

struct Registers {
    unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf) {
    Registers r{0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {0, 0, 0, 0};
    return r;
}

constexpr unsigned bit(int n) { return 1u << n; }
bool all(unsigned value, unsigned mask) { return (value & mask) == mask; }

// The registers that the operating system saves. A processor may have AVX while the system, or the virtual
// machine's host, keeps it off: then CPUID alone would lead into an illegal instruction.
bool system_saves(unsigned mask) {
    if (!all(cpuid(1).ecx, bit(27))) return false;  // OSXSAVE: XGETBV may be used
    unsigned xcr0, high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    return all(xcr0, mask);
}

bool has_avx2() {
    return system_saves(bit(1) | bit(2)) &&                   // XMM, YMM
           all(cpuid(1).ecx, bit(12) | bit(28) | bit(29)) &&  // FMA, AVX, F16C
           all(cpuid(7).ebx, bit(5));                         // AVX2
}

bool has_avx512() {
    return has_avx2() && system_saves(bit(5) | bit(6) | bit(7)) &&    // opmask, ZMM
           all(cpuid(7).ebx, bit(16) | bit(17) | bit(30) | bit(31));  // F, DQ, BW, VL
}

// Zen 4, the one of AMD's family 19h that has AVX-512, does 512-bit operations in halves, and conversions slower still:
// in cache, float32 and float16 take a tenth longer than under AVX2. (From memory, AVX-512 is 3 % faster there.)
bool halves_avx512() {
    const Registers vendor = cpuid(0);
    const unsigned signature = cpuid(1).eax;
    const unsigned family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    return vendor.ebx == 0x68747541 && vendor.edx == 0x69746e65 && vendor.ecx == 0x444d4163 &&  // AuthenticAMD
           family == 0x19 && has_avx512();
}

#endif

struct Isa {
    const Kernels* kernels;
    bool (*supported)();
    bool (*slow)();  // slower than the next one that is supported
};

const Isa kIsas[] = {
#if defined(FUSED_PENALTIES_X86)
    {&kAvx512, has_avx512, halves_avx512},
    {&kAvx2, has_avx2, never},
    {&kBaseline, always, never},
#elif defined(FUSED_PENALTIES_ARM)
    {&kNeon, always, never},
#endif
    {&kScalar, always, never},
};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

const Kernels& find(const std::string& name, const char* asked_by) {
    for (const Isa& isa : kIsas)
        if (name == isa.kernels->name && isa.supported()) return *isa.kernels;
    throw std::runtime_error(std::string(asked_by) + "'" + name +
                             "' is not supported; this processor and build support " + joined(supported_isas()));
}

const Kernels& fastest() {
    const Isa* isa = kIsas;
    while (!isa->supported() || isa->slow()) ++isa;
    return *isa->kernels;
}

std::atomic<const Kernels*> active{nullptr};
std::atomic<bool> asked_for{false};

}  // namespace

std::vector<std::string> compiled_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas) names.push_back(isa.kernels->name);
    return names;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas)
        if (isa.supported()) names.push_back(isa.kernels->name);
    return names;
}

const Kernels& active_kernels() {
    const Kernels* kernels = active.load(std::memory_order_acquire);
    if (!kernels) {
        // Two threads may both come here; they choose the same.
        const char* forced = std::getenv("FUSED_PENALTIES_ISA");
        const bool asked = forced && *forced;
        kernels = asked ? &find(forced, "FUSED_PENALTIES_ISA=") : &fastest();
        asked_for.store(asked, std::memory_order_relaxed);
        active.store(kernels, std::memory_order_release);
    }
    return *kernels;
}

std::string why_isa() {
    active_kernels();
    if (asked_for.load(std::memory_order_relaxed)) return "asked for";
    for (const Isa& isa : kIsas)
        if (isa.supported() && isa.slow())
            return std::string("faster here than ") + isa.kernels->name + ", which this processor runs in halves";
    return "the widest that this processor has";
}

void use_isa(const std::string& name) {
    active.store(&find(name, "instruction set "), std::memory_order_release);
    asked_for.store(true, std::memory_order_relaxed);
}

}  // namespace fused_penalties
