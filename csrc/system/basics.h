/* Small things that every file may use. */
#ifndef FN_BASICS_H
#define FN_BASICS_H

#include <stdint.h>

/* for what compilers make better code of where its arguments are constants */
#define FN_INLINE static inline __attribute__((always_inline))

#define FN_LINE 64 /* bytes of a cache line */

static inline int64_t fn_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t fn_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t fn_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

#endif
