/* How the processor rounds: to nearest, subnormal numbers kept, no traps.  The promise of equal
 * bits needs it, and programs change it: torch.set_flush_denormal makes subnormal numbers 0, in the
 * thread that calls it and not in the others.  So each entry point, and each thread that it takes,
 * sets the mode and puts back what it found. */
#ifndef FN_FLOAT_MODE_H
#define FN_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned fn_float_mode;
#define FN_STANDARD_MODE 0x1f80u /* MXCSR: all exceptions masked, none raised, the rest 0 */
static inline fn_float_mode fn_enter_float_mode(void) {
    const fn_float_mode found = _mm_getcsr();
    _mm_setcsr(FN_STANDARD_MODE);
    return found;
}
static inline void fn_leave_float_mode(fn_float_mode found) { _mm_setcsr(found); }

#elif defined(__aarch64__)
typedef uint64_t fn_float_mode;
static inline fn_float_mode fn_enter_float_mode(void) {
    fn_float_mode found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    __asm__ volatile("msr fpcr, %0" : : "r"((fn_float_mode)0) : "memory");
    return found;
}
static inline void fn_leave_float_mode(fn_float_mode found) {
    __asm__ volatile("msr fpcr, %0" : : "r"(found) : "memory");
}

#else /* the C library knows the mode; it may not know how to flush */
#include <fenv.h>
typedef fenv_t fn_float_mode;
static inline fn_float_mode fn_enter_float_mode(void) {
    fn_float_mode found;
    fegetenv(&found);
    fesetenv(FE_DFL_ENV);
    return found;
}
static inline void fn_leave_float_mode(fn_float_mode found) { fesetenv(&found); }
#endif

#endif
