/* The memory of a call: one block, from which each array takes its part. */
#ifndef FN_WORKSPACE_H
#define FN_WORKSPACE_H

#include "system/basics.h"

#include <stddef.h>

/* so many bytes, and a line to begin at; NULL where there are none, or more than an address holds
 */
void *fn_allocate(int64_t bytes);

/* the next cache line: where arrays begin, as a vector that lies in two lines is two loads */
static inline char *fn_line(char *p) { return p + -(uintptr_t)p % FN_LINE; }

/* Taken from twice: without a base it only counts, and fn_take returns NULL; then, with a base of
 * `used` bytes, it gives what was counted. */
typedef struct {
    char *base;
    int64_t used;
} fn_workspace;

/* count elements of `size` bytes, from a cache line on */
static inline void *fn_take(fn_workspace *from, int64_t count, size_t size) {
    const int64_t lines = fn_ceil_div(count * (int64_t)size, FN_LINE);
    char *at = from->base ? from->base + from->used : NULL;
    from->used += lines * FN_LINE;
    return at;
}
static inline double *fn_take_doubles(fn_workspace *from, int64_t count) {
    return fn_take(from, count, sizeof(double));
}

#endif
