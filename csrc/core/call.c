/* See call.h: what a call needs of memory, and its slices. */
#include "core/call.h"

#include "core/around.h"
#include "core/elements.h"
#include "core/workspace.h"

#include <stdlib.h>

/* ---- memory --------------------------------------------------------------------------------*/

int64_t fn_saved_doubles(const fn_plan *pl) {
    const int64_t more = pl->row->saved_more ? pl->row->saved_more(pl) : 0;
    return pl->domains * (pl->row->facts & FN_CORRECTED ? 4 : 2) + more;
}

/* D: domains of all slices of the call, whose statistics of a kind lie behind one another */
static void point_saved(fn_coefs *cf, double *saved, int64_t D) {
    cf->mean = saved;
    cf->std = saved + D;
    cf->more = saved + 2 * D;
    if (cf->plan->row->facts & FN_CORRECTED) {
        cf->r = saved + 2 * D;
        cf->d = saved + 3 * D;
    }
}

/* Rows of layer and RMS norm share weight and bias, which the caller has anywhere, and a vector
 * that lies in two lines is two loads: several rows of whole lines take copies that lie in their
 * lines as the output does in its own. */
#define LEAST_ROWS 16
static int wants_copies(const fn_plan *pl) {
    return pl->elem && !pl->col && pl->planes >= LEAST_ROWS &&
           pl->s * (int64_t)pl->esize % FN_LINE == 0;
}
static void take_copies(fn_job *job, fn_workspace *from) {
    const fn_plan *pl = &job->plan;
    const size_t head = -(uintptr_t)job->out % FN_LINE / pl->esize * pl->asize;
    void **params[2] = {&job->weight, &job->bias};
    for (int i = 0; i < 2 && wants_copies(pl); i++) {
        if (!*params[i])
            continue;
        char *to = fn_take(from, fn_elem_count(pl) + FN_LINE, pl->asize);
        if (to && ((uintptr_t)*params[i] + head) % FN_LINE)
            *params[i] = memcpy(fn_line(to + head) - head, *params[i],
                                (size_t)fn_elem_count(pl) * pl->asize);
    }
}

/* dweight is wanted of elements without a weight */
static void take_ones(fn_job *job, fn_workspace *from) {
    const int64_t count = fn_elem_count(&job->plan);
    job->weight = fn_take(from, count, job->plan.asize);
    for (int64_t i = 0; i < count && job->weight; i++)
        fn_put(&job->plan, job->weight, i, 1);
}

/* All that a call needs, or a slice of it: moments of the chunks, statistics (when the caller does
 * not want them), sums, coefficients, parameters where they lie better, and what threads need. */
static void take_all(fn_job *job, fn_workspace *from, double *saved, int64_t D, int ones) {
    const fn_plan *pl = &job->plan;
    fn_coefs *cf = &job->cf;
    const int grad = job->dy != NULL;
    const int64_t P = pl->planes, K = grad ? pl->gchunks.count : pl->mchunks.count;
    /* one chunk, and nothing to merge: moments and sums are written where they are wanted */
    const int direct = K == 1 && (grad || pl->cols == 1 || pl->planes == pl->domains);
    const int64_t slots = direct ? 0 : K * (pl->cols > 1 || grad ? P : pl->domains);
    job->mean = fn_take_doubles(from, slots);
    job->m2 = fn_take_doubles(from, slots);
    if (!saved) {
        saved = fn_take_doubles(from, fn_saved_doubles(pl));
        D = pl->domains;
    }
    if (saved)
        point_saved(cf, saved, D);
    if (grad) {
        cf->sum_dy = fn_take_doubles(from, P);
        cf->sum_dy_xc = fn_take_doubles(from, P);
    }
    if (pl->row->own_doubles)
        cf->own = fn_take_doubles(from, pl->row->own_doubles(pl, grad));
    if (direct) {
        job->mean = grad ? cf->sum_dy : cf->mean;
        job->m2 = grad ? cf->sum_dy_xc : cf->std;
    }
    void **coefs[6] = {&cf->center, &cf->scale, &cf->shift, &cf->a, &cf->b, &cf->e};
    for (int i = 0; i < (grad ? 6 : 3); i++)
        *coefs[i] = fn_take(from, P, pl->asize);
    cf->marks = fn_take(from, P, 1);
    if ((pl->row->facts & FN_FLOOR) && cf->params->tau) {
        cf->floor = fn_take(from, P, pl->asize);
        cf->sum_all = grad ? fn_take_doubles(from, P) : NULL;
    }
    fn_take_floor(job, from);
    take_copies(job, from);
    if (ones)
        take_ones(job, from);
    job->team.memory = fn_take(from, fn_team_bytes(&job->team), 1);
    job->scratch = fn_team_scratch(&job->team);
}

/* ---- slices --------------------------------------------------------------------------------*/

/* Coefficients of short domains fill more memory than the domains: rows of two floats have 40 bytes
 * of statistics and coefficients each.  So about so many planes are taken at a time: samples, where
 * their domains are their own, or columns of a matrix.  The bits of a domain do not depend on the
 * others. */
#define SLICE_PLANES (1 << 17)
static int samples_are_apart(const fn_call *of) {
    const fn_plan *pl = &of->whole;
    const unsigned facts = pl->row->facts;
    const int updates = (facts & FN_RUNNING) && pl->p.training && of->params->running_mean;
    return !(facts & FN_OVER_SAMPLES) && fn_needs_moments(pl) && !updates &&
           !pl->row->channel_statistics;
}
static void cut(fn_call *of) {
    const fn_plan *whole = &of->whole;
    of->samples = of->problem->n;
    of->columns = whole->c;
    if (samples_are_apart(of))
        of->samples = fn_max(1, SLICE_PLANES / whole->c);
    if (whole->col && whole->per_domain == 1 && !whole->row->sample_statistics &&
        (whole->n == 1 || of->samples == 1) && of->problem->layout != FN_BLOCKED)
        /* in equal parts, as one of a single column would be planned as a row */
        of->columns = fn_ceil_div(whole->c, fn_ceil_div(whole->c, SLICE_PLANES));
}

fn_status fn_make_call(fn_call *of, const fn_problem *problem, const fn_params *params,
                       const void *x, const void *dy, void *out, double *saved) {
    *of = (fn_call){.problem = problem, .params = params, .x = x, .dy = dy, .out = out};
    of->saved = saved;
    fn_status status = fn_plan_make(&of->whole, problem, params, dy != NULL, &of->elements);
    if (status == FN_OK && of->elements) {
        cut(of);
        of->use = fn_usual_choice(&of->whole, of->elements * (int64_t)of->whole.esize, dy != NULL);
    }
    return status;
}

/* whether the parameters belong to the elements, and their gradients are wanted */
static int wants_elem(const fn_call *of) {
    return of->grads && of->whole.elem &&
           (of->params->weight || of->grads->weight || of->grads->bias);
}

/* samples [n, n1), columns [c, c1) of a call */
typedef struct {
    int64_t n, n1, c, c1;
} slice;

/* the parameters from channel c on */
static fn_params params_from(const fn_call *of, int64_t c) {
    fn_params q = *of->params;
    const void **fields[] = {&q.weight, &q.bias, (const void **)&q.running_mean,
                             (const void **)&q.running_var, &q.tau};
    for (int i = of->whole.elem ? 2 : 0; i < 5; i++)
        if (*fields[i])
            *fields[i] = (const char *)*fields[i] + c * (int64_t)of->whole.asize;
    return q;
}

/* the job of a slice, without its memory */
static void make_job(const fn_call *of, fn_job *job, slice at) {
    const fn_plan *whole = &of->whole;
    fn_problem part = *of->problem;
    int64_t elements;
    part.n = at.n1 - at.n;
    if (at.c1 - at.c != whole->c) {
        part.c = at.c1 - at.c;
        part.groups = part.c; /* a group is a channel, where columns are cut */
    }
    if (part.n == of->problem->n && part.c == of->problem->c)
        job->plan = *whole;
    else
        fn_plan_make(&job->plan, &part, of->params, of->dy != NULL, &elements);
    if (part.c != of->problem->c)
        job->plan.ld = whole->c;
    const int64_t start = (at.n * whole->c * whole->p.s + at.c) * (int64_t)whole->esize;
    const fn_params params = params_from(of, at.c);
    fn_job_start(job, &params, of->x + start, of->dy ? of->dy + start : NULL,
                 of->out ? of->out + start : NULL, of->use);
    job->want_dbias = of->grads && of->grads->bias;
    if (params.around)
        fn_start_around(job, params.around, of->grads, start);
}
static void place_job(const fn_call *of, fn_job *job, slice at, fn_workspace *from) {
    const int64_t first = at.n * of->whole.sample_domains + at.c;
    take_all(job, from, of->saved ? of->saved + first : NULL, of->whole.domains,
             wants_elem(of) && of->grads->weight && !of->params->weight);
}

/* Parameters whose gradients are summed over slices: all of the elements, those of a slice's
 * channels. */
static int64_t param_count(const fn_call *of) {
    return of->whole.elem ? fn_elem_count(&of->whole) : fn_min(of->columns, of->problem->c);
}

/* the sums, dweight and behind it dbias and dtau, to `count` parameters from c on */
static void put_param_grads(const fn_call *of, const double *sums, int64_t c, int64_t count) {
    void *const to[] = {of->grads->weight, of->grads->bias, of->grads->tau};
    for (int i = 0; i < (of->params->tau ? 3 : 2); i++)
        if (to[i])
            fn_put_all(&of->whole, (char *)to[i] + c * (int64_t)of->whole.asize, 0,
                       sums + i * param_count(of), count);
}

/* run(job) for each slice, in one workspace: the first slice needs the most */
fn_status fn_for_slices(const fn_call *of, void (*run)(fn_job *)) {
    const int64_t N = of->problem->n, C = of->whole.c;
    const int64_t count = of->grads ? param_count(of) : 0;
    const int elem = wants_elem(of);
    fn_job job;
    fn_workspace from = {NULL, 0};
    slice at = {0, fn_min(of->samples, N), 0, fn_min(of->columns, C)};
    make_job(of, &job, at);
    const int64_t parts = elem ? fn_elem_parts(&job.plan) : 0;
    const int64_t bytes = elem ? fn_elem_bytes(&job.plan) : 3 * count * (int64_t)sizeof(double);
    fn_take(&from, bytes, 1);
    place_job(of, &job, at, &from); /* only counts */
    char *w = fn_allocate(from.used);
    if (!w)
        return FN_NO_MEMORY;
    from = (fn_workspace){fn_line(w), 0};
    double *sums = fn_take(&from, bytes, 1);
    for (at.c = 0; at.c < C; at.c = at.c1) {
        at.c1 = fn_min(at.c + of->columns, C);
        if (at.c == 0 || !elem)
            memset(sums, 0, (size_t)bytes);
        for (at.n = 0; at.n < N; at.n = at.n1) {
            fn_workspace left = from;
            at.n1 = fn_min(at.n + of->samples, N);
            if (at.n || at.c)
                make_job(of, &job, at);
            place_job(of, &job, at, &left);
            job.elem_parts = parts;
            job.dweight = sums;
            job.dbias = sums + count;
            job.dtau = sums + 2 * count;
            run(&job);
        }
        if (of->grads && !of->whole.elem)
            put_param_grads(of, sums, at.c, fn_min(count, of->problem->c - at.c));
    }
    if (elem) {
        fn_add_elem_parts(sums, parts, count);
        put_param_grads(of, sums, 0, count);
    }
    if (of->grads && of->whole.row->other_grads) /* of one slice */
        of->whole.row->other_grads(&job.cf, of->grads);
    free(w);
    return FN_OK;
}

/* run(job, context) for all of it at once */
fn_status fn_for_whole(const fn_call *of, void (*run)(fn_job *, void *), void *context) {
    const slice all = {0, of->problem->n, 0, of->whole.c};
    fn_workspace from = {NULL, 0};
    fn_job job;
    make_job(of, &job, all);
    place_job(of, &job, all, &from); /* only counts */
    char *w = fn_allocate(from.used);
    if (!w)
        return FN_NO_MEMORY;
    from = (fn_workspace){fn_line(w), 0};
    place_job(of, &job, all, &from);
    run(&job, context);
    free(w);
    return FN_OK;
}
