/* A call of forward, backward or one of their steps: planned once, then run, all of it or slice by
 * slice, in one workspace. */
#ifndef FN_CALL_H
#define FN_CALL_H

#include "core/job.h"

typedef struct {
    const fn_problem *problem;
    const fn_params *params;
    const fn_grads *grads; /* backward */
    const char *x, *dy;
    char *out;
    double *saved;
    fn_plan whole;    /* of the problem without slices */
    int64_t elements; /* of the problem; 0: there is no plan */
    fn_choice use;
    int64_t samples, columns; /* of a slice */
} fn_call;

/* a call without elements is not to be run */
fn_status fn_make_call(fn_call *of, const fn_problem *problem, const fn_params *params,
                       const void *x, const void *dy, void *out, double *saved);
fn_status fn_for_slices(const fn_call *of, void (*run)(fn_job *));
fn_status fn_for_whole(const fn_call *of, void (*run)(fn_job *, void *), void *context);

/* doubles that forward saves */
int64_t fn_saved_doubles(const fn_plan *pl);

#endif
