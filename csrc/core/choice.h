/* What a call may choose, as the bits of its result do not depend on it: how many threads, output
 * past the cache or through it, what is fetched ahead. */
#ifndef FN_CHOICE_H
#define FN_CHOICE_H

#include "core/plan.h"
#include "system/tune.h"

typedef struct {
    int threads;
    int stream; /* y, or dx, is written past the cache */
    int fetch;  /* what kernels fetch of what they read: nothing (0), some (1), all, which is far
                   (FN_FAR) */
} fn_choice;

/* whether arrays of so many bytes together fit no cache */
int fn_past_cache(int64_t bytes);

/* by the size of x, `bytes`, alone */
fn_choice fn_usual_choice(const fn_plan *plan, int64_t bytes, int backward);

/* By measurement.  What lies between the two calls is measured.  around: whether there is something
 * around the normalizer. */
fn_choice fn_choose(fn_trial *trial, const fn_plan *plan, int64_t bytes, int backward, int around);
void fn_chosen(const fn_trial *trial);

#endif
