/* The entry points of fastnorm.h that normalize. */
#include "core/call.h"
#include "core/careful.h"
#include "core/measure.h"
#include "core/run.h"
#include "core/steps.h"
#include "core/workspace.h"
#include "system/float_mode.h"

#include <stdlib.h>

int64_t fn_saved_size(const fn_problem *problem) {
    const double some[3] = {0};
    const fn_params params = {some, some, (void *)some, (void *)some, some, some, some, NULL};
    int64_t elements;
    fn_plan plan;
    const fn_status status = fn_plan_make(&plan, problem, &params, 0, &elements);
    return status == FN_OK && elements ? fn_saved_doubles(&plan) : 0;
}

/* A call that may choose how. */
static fn_status run_slices(fn_call *of, void (*run)(fn_job *)) {
    fn_trial trial;
    of->use = fn_choose(&trial, &of->whole, of->elements * (int64_t)of->whole.esize, !!of->dy,
                        !!of->params->around);
    const fn_status status = fn_for_slices(of, run);
    fn_chosen(&trial);
    return status;
}

fn_status fn_forward(const fn_problem *problem, const fn_params *params, const void *x, void *y,
                     double *saved) {
    fn_call of;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = fn_make_call(&of, problem, params, x, NULL, y, saved);
    if (status == FN_OK && of.elements)
        status = run_slices(&of, fn_run_forward);
    fn_leave_float_mode(mode);
    return status;
}

static void zero_grads(const fn_problem *p, const fn_grads *grads) {
    const size_t size = p->dtype == FN_F64 ? sizeof(double) : sizeof(float);
    const int elem = !!(fn_row_of(p->norm)->facts & FN_OF_ELEMENTS);
    void *const arrays[] = {grads->weight, grads->bias, grads->tau, grads->mean_logits,
                            grads->var_logits};
    for (int i = 0; i < 5; i++)
        if (arrays[i])
            memset(arrays[i], 0, (size_t)(i > 2 ? 3 : elem ? p->s : p->c) * size);
}

fn_status fn_backward(const fn_problem *problem, const fn_params *params, const double *saved,
                      const void *x, const void *dy, const fn_grads *grads) {
    fn_call of;
    void *dx = NULL;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = fn_make_call(&of, problem, params, x, dy, grads->x, (double *)saved);
    of.grads = grads;
    if (status == FN_OK && !of.elements)
        zero_grads(problem, grads);
    /* It is made all the same.  With a floor dy is written there before x is read again, and so may
     * the gradient of what an activation takes. */
    const int64_t bytes = of.whole.planes * of.whole.s * of.whole.nseg * (int64_t)of.whole.esize;
    const int apart = !grads->x || ((params->tau || params->around) && grads->x == x);
    if (status == FN_OK && of.elements && apart) {
        dx = fn_allocate(bytes);
        of.out = dx;
        status = dx ? FN_OK : FN_NO_MEMORY;
    }
    if (status == FN_OK && of.elements)
        status = run_slices(&of, fn_run_backward);
    if (status == FN_OK && dx && grads->x)
        memcpy(grads->x, dx, (size_t)bytes);
    free(dx);
    fn_leave_float_mode(mode);
    return status;
}

/* ---- the steps -----------------------------------------------------------------------------*/

static int has_steps(const fn_problem *problem, const fn_params *params) {
    const fn_row *row = fn_row_of(problem->norm);
    if (!row || !(row->facts & FN_STEPS))
        return 0;
    return row->facts & FN_OF_ELEMENTS ? !params->weight && !params->bias : problem->training;
}

/* One step on a whole problem: run(job, context), where there is anything to do. */
static fn_status step(const fn_problem *problem, const fn_params *params, const double *saved,
                      const void *x, const void *dy, void *out, void (*run)(fn_job *, void *),
                      void *context) {
    fn_call of;
    if (!has_steps(problem, params))
        return FN_BAD_PROBLEM;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = fn_make_call(&of, problem, params, x, dy, out, (double *)saved);
    if (status == FN_OK && of.elements)
        status = fn_for_whole(&of, run, context);
    fn_leave_float_mode(mode);
    return status;
}

static void run_apply(fn_job *job, void *context) {
    (void)context;
    fn_all_coefficients(job);
    fn_all_out(job, 1);
}
static void run_measure_grad(fn_job *job, void *context) {
    double *sums = context;
    const size_t size = (size_t)job->plan.planes * sizeof *sums;
    fn_centers(&job->cf, 0, job->plan.domains);
    fn_all_grad_sums(job);
    fn_center_sums(&job->cf, 0);
    memcpy(sums, job->cf.sum_dy, size);
    memcpy(sums + job->plan.planes, job->cf.sum_dy_xc, size);
}
typedef struct {
    const double *sums;
    double count; /* elements of a domain, in all arrays */
    int weighted;
} everywhere;
static void run_apply_grad(fn_job *job, void *context) {
    const everywhere *of = context;
    const size_t size = (size_t)job->plan.planes * sizeof *of->sums;
    job->cf.count = of->count > 0 ? of->count : job->cf.count;
    job->cf.weighted = of->weighted;
    memcpy(job->cf.sum_dy, of->sums, size);
    memcpy(job->cf.sum_dy_xc, of->sums + job->plan.planes, size);
    fn_centers(&job->cf, 0, job->plan.domains);
    fn_center_sums(&job->cf, 1);
    fn_flat_everywhere(job);
    fn_all_grad_coefficients(job);
    fn_all_out(job, 1);
}

fn_status fn_apply(const fn_problem *problem, const fn_params *params, const double *saved,
                   const void *x, void *y) {
    return step(problem, params, saved, x, NULL, y, run_apply, NULL);
}

fn_status fn_measure_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                          const void *x, const void *dy, double *sums) {
    return step(problem, params, saved, x, dy, NULL, run_measure_grad, sums);
}

fn_status fn_apply_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                        const double *sums, double count, int weighted, const void *x,
                        const void *dy, void *dx) {
    everywhere of = {sums, count, weighted};
    return step(problem, params, saved, x, dy, dx, run_apply_grad, &of);
}

fn_status fn_measure(const fn_problem *problem, const void *x, int skip_nan, const double *weight,
                     double *statistics) {
    const fn_params none = {.weight = NULL};
    fn_plan plan;
    int64_t elements;
    if (!has_steps(problem, &none) ||
        (weight && !(fn_row_of(problem->norm)->facts & FN_OF_ELEMENTS)))
        return FN_BAD_PROBLEM;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = fn_plan_make(&plan, problem, &none, 0, &elements);
    if (status == FN_OK && elements) {
        const int threads = fn_threads_for(elements * (int64_t)plan.esize);
        status = fn_measure_features(&plan, x, threads, skip_nan, weight, statistics);
    }
    fn_leave_float_mode(mode);
    return status;
}
