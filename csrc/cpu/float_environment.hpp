// The default floating-point environment for as long as one of these lives: round to nearest, subnormals kept,
// exceptions masked. What the caller, or another library, had set comes back afterwards. (On x86 so do the flags of
// past exceptions, which are in the same register; on Arm they are in another and may gain some.)
#pragma once

#if defined(FUSED_PENALTIES_X86)
#include <xmmintrin.h>
#endif
#include <cfenv>
#include <cstdint>

namespace fused_penalties {

class DefaultFloatEnvironment {
public:
    DefaultFloatEnvironment() : saved_(get()) { set_default(); }
    ~DefaultFloatEnvironment() { set(saved_); }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

private:
#if defined(FUSED_PENALTIES_X86)
    using Control = unsigned;
    static void set_default() { set(0x1f80); }
    static Control get() { return _mm_getcsr(); }
    static void set(Control value) { _mm_setcsr(value); }
#elif defined(FUSED_PENALTIES_ARM)
    using Control = uint64_t;
    static void set_default() { set(0); }
    static Control get() {
        Control value;
        __asm__ volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set(Control value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
#else
    using Control = std::fenv_t;
    static void set_default() { std::fesetenv(FE_DFL_ENV); }  // which may be no address of anything
    static Control get() {
        Control value;
        std::fegetenv(&value);
        return value;
    }
    static void set(const Control& value) { std::fesetenv(&value); }
#endif

    Control saved_;
};

}  // namespace fused_penalties
