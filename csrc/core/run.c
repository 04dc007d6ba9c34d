/* Walks a plan: moments, coefficients, apply, and back.
 *
 * Units that are numerous enough go to the threads whole: a thread takes a unit through all steps
 * while it is in its cache.  Otherwise the steps go one by one over the whole array, chunks shared
 * among the threads.  The sums are the same, in the same order, either way. */
#include "core/run.h"

#include "core/around.h"
#include "core/elements.h"
#include "core/place.h"
#include "core/steps.h"
#include "core/traffic.h"
#include "core/turns.h"

/* Units to whole threads, when that keeps every thread busy. */
static int by_units(const fn_job *job) {
    const int64_t U = job->plan.units, T = job->team.threads;
    if (job->by_turns)
        return 1;
    return !job->plan.row->channel_statistics && (U >= 4 * T || U % T == 0);
}

static void unit_domains(const fn_plan *pl, int64_t u, int64_t *d0, int64_t *d1) {
    int64_t in_group = pl->domains, first = 0;
    if (pl->cols > 1) { /* units do not cross samples */
        in_group = pl->sample_domains;
        const int64_t per_sample = fn_ceil_div(in_group, pl->unit_domains);
        first = u / per_sample * in_group;
        u %= per_sample;
    }
    *d0 = first + u * pl->unit_domains;
    *d1 = first + fn_min(in_group, (u + 1) * pl->unit_domains);
}

static void forward_turn(fn_job *job, int64_t d, int64_t d1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t p = fn_first_plane(pl, d), p1 = fn_first_plane(pl, d1);
    fn_arrays were;
    if (job->by_turns) {
        were = fn_turn_in(job, p, p1);
        hints.prefetch = were.ahead;
    }
    fn_coefficients_of(job, d, d1);
    fn_place_unit(job, p, p1, hints);
    if (job->by_turns)
        fn_turn_out(job, p, p1, were);
}

/* dx of planes [p, p1) becomes dy where y is above the floor, else 0: it is what backward takes for
 * dy.  The sums of all dy are kept: what is missing in the others goes to the floor. */
static void mask_unit(fn_job *job, int64_t p, int64_t p1) {
    const size_t bytes = (size_t)(p1 - p) * sizeof(double);
    fn_grad_sums_of(job, p, p1);
    memcpy(job->cf.sum_all + p, job->cf.sum_dy + p, bytes);
    job->masking = 1;
    fn_place_unit(job, p, p1, (fn_hints){0, 0, 0});
    job->masking = 0;
    job->dy = job->out;
}

static void backward_turn(fn_job *job, int64_t d, int64_t d1, fn_hints hints) {
    const char *dy = job->dy;
    const int64_t p = fn_first_plane(&job->plan, d), p1 = fn_first_plane(&job->plan, d1);
    fn_arrays were;
    if (job->by_turns)
        were = fn_turn_in(job, p, p1);
    if (job->grads_before == FN_AHEAD)
        fn_grads_before(job, d, d1);
    if (job->cf.floor)
        mask_unit(job, p, p1);
    fn_grad_coefficients_of(job, d, d1);
    fn_place_unit(job, p, p1, hints);
    if (job->by_turns)
        fn_turn_out(job, p, p1, were);
    job->dy = dy;
}

static void task_unit(fn_job *job, int64_t u) {
    const fn_plan *pl = &job->plan;
    fn_hints hints = fn_unit_hints(pl, job->use, u);
    int64_t d, d1;
    unit_domains(pl, u, &d, &d1);
    const int64_t turn = fn_turn_domains(pl, job->use);
    int64_t some = turn ? turn : d1 - d;
    if (job->by_turns) {
        some = fn_max(1, fn_domains_of(pl, fn_turn_most(job)));
        hints.prefetch = 0;
        hints.stream = hints.stream && !job->around->out_rows;
    }
    for (int64_t end; d < d1; d = end) {
        end = fn_min(d + some, d1);
        (job->dy ? backward_turn : forward_turn)(job, d, end, hints);
    }
}

void fn_run_forward(fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (fn_needs_moments(pl) && by_units(job)) {
        fn_for_all(job, pl->units, task_unit, 0);
    } else {
        fn_all_statistics(job);
        fn_all_coefficients(job);
        fn_all_out(job, fn_needs_moments(pl));
    }
    fn_all_running(job);
}

void fn_run_backward(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_all_centers(job);
    if (job->elem_parts) {
        fn_backward_elem(job);
        return;
    }
    if (by_units(job)) {
        fn_for_all(job, pl->units, task_unit, 0);
    } else {
        if (job->grads_before == FN_AHEAD)
            fn_all_grads_before(job);
        if (job->cf.floor)
            fn_all_masked(job);
        fn_all_grad_sums(job);
        fn_all_grad_coefficients(job);
        fn_all_out(job, 1);
    }
    if (!pl->elem)
        fn_all_param_grads(job);
}
