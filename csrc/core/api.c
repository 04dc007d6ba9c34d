/* The entry points of fastnorm.h: plan, memory, walk. */
#include "system/float_mode.h"
#include "core/run.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory --------------------------------------------------------------------------------*/

void *fn_allocate(int64_t bytes) {
    if (bytes < 0 || bytes > PTRDIFF_MAX - FN_LINE)
        return NULL;
    return malloc((size_t)bytes + FN_LINE);
}

/* The parts of a workspace, each from a cache line on.  Without a base it only counts them. */
typedef struct {
    char *base;
    int64_t used;
} room;
static void *take(room *from, int64_t count, size_t size) {
    const int64_t lines = fn_ceil_div(count * (int64_t)size, FN_LINE);
    char *at = from->base ? from->base + from->used : NULL;
    from->used += lines * FN_LINE;
    return at;
}
static double *take_doubles(room *from, int64_t count) { return take(from, count, sizeof(double)); }

static int64_t saved_size(const fn_plan *pl) {
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
static void take_copies(fn_job *job, room *from) {
    const fn_plan *pl = &job->plan;
    const size_t head = -(uintptr_t)job->out % FN_LINE / pl->esize * pl->asize;
    void **params[2] = {&job->weight, &job->bias};
    for (int i = 0; i < 2 && wants_copies(pl); i++) {
        if (!*params[i])
            continue;
        char *to = take(from, pl->s + FN_LINE, pl->asize);
        if (to && ((uintptr_t)*params[i] + head) % FN_LINE)
            *params[i] = memcpy(fn_line(to + head) - head, *params[i], (size_t)pl->s * pl->asize);
    }
}

/* dweight is wanted of elements without a weight */
static void take_ones(fn_job *job, room *from) {
    job->weight = take(from, job->plan.s, job->plan.asize);
    for (int64_t i = 0; i < job->plan.s && job->weight; i++)
        fn_put(&job->plan, job->weight, i, 1);
}

/* All that a call needs, or a slice of it: moments of the chunks, statistics (when the caller does
 * not want them), sums, coefficients, parameters where they lie better, and what threads need. */
static void take_all(fn_job *job, room *from, double *saved, int64_t D, int ones) {
    const fn_plan *pl = &job->plan;
    fn_coefs *cf = &job->cf;
    const int grad = job->dy != NULL;
    const int64_t P = pl->planes, K = grad ? pl->gchunks.count : pl->mchunks.count;
    /* one chunk, and nothing to merge: moments and sums are written where they are wanted */
    const int direct = K == 1 && (grad || pl->cols == 1 || pl->planes == pl->domains);
    const int64_t slots = direct ? 0 : K * (pl->cols > 1 || grad ? P : pl->domains);
    job->mean = take_doubles(from, slots);
    job->m2 = take_doubles(from, slots);
    if (!saved) {
        saved = take_doubles(from, saved_size(pl));
        D = pl->domains;
    }
    if (saved)
        point_saved(cf, saved, D);
    if (grad) {
        cf->sum_dy = take_doubles(from, P);
        cf->sum_dy_xc = take_doubles(from, P);
    }
    if (pl->row->own_doubles)
        cf->own = take_doubles(from, pl->row->own_doubles(pl, grad));
    if (direct) {
        job->mean = grad ? cf->sum_dy : cf->mean;
        job->m2 = grad ? cf->sum_dy_xc : cf->std;
    }
    void **coefs[6] = {&cf->center, &cf->scale, &cf->shift, &cf->a, &cf->b, &cf->e};
    for (int i = 0; i < (grad ? 6 : 3); i++)
        *coefs[i] = take(from, P, pl->asize);
    cf->marks = take(from, P, 1);
    if ((pl->row->facts & FN_FLOOR) && cf->params->tau) {
        cf->floor = take(from, P, pl->asize);
        cf->sum_all = grad ? take_doubles(from, P) : NULL;
    }
    take_copies(job, from);
    if (ones)
        take_ones(job, from);
    job->team.memory = take(from, fn_team_bytes(&job->team), 1);
    job->scratch = fn_team_scratch(&job->team);
}

/* ---- calls ---------------------------------------------------------------------------------*/

typedef struct {
    const fn_problem *problem;
    const fn_params *params;
    const fn_grads *grads; /* backward */
    const char *x, *dy;
    char *out;
    double *saved;
    fn_plan whole;            /* of the problem without slices */
    int64_t elements;         /* of the problem; 0: there is no plan */
    int64_t samples, columns; /* of a slice */
} call;

/* Coefficients of short domains fill more memory than the domains: rows of two floats have 40 bytes
 * of statistics and coefficients each.  So about so many planes are taken at a time: samples, where
 * their domains are their own, or columns of a matrix.  The bits of a domain do not depend on the
 * others. */
#define SLICE_PLANES (1 << 17)
static int samples_are_apart(const call *of) {
    const fn_plan *pl = &of->whole;
    const unsigned facts = pl->row->facts;
    const int updates = (facts & FN_RUNNING) && pl->p.training && of->params->running_mean;
    return !(facts & FN_OVER_SAMPLES) && fn_needs_moments(pl) && !updates &&
           !pl->row->channel_statistics;
}
static void cut(call *of) {
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

static fn_status make_call(call *of, const fn_problem *problem, const fn_params *params,
                           const void *x, const void *dy, void *out, double *saved) {
    *of = (call){.problem = problem, .params = params, .x = x, .dy = dy, .out = out};
    of->saved = saved;
    fn_status status = fn_plan_make(&of->whole, problem, params, dy != NULL, &of->elements);
    if (status == FN_OK && of->elements)
        cut(of);
    return status;
}

/* whether the parameters belong to the elements, and their gradients are wanted */
static int wants_elem(const call *of) {
    return of->grads && of->whole.elem &&
           (of->params->weight || of->grads->weight || of->grads->bias);
}

/* samples [n, n1), columns [c, c1) of a call */
typedef struct {
    int64_t n, n1, c, c1;
} slice;

/* the parameters from channel c on */
static fn_params params_from(const call *of, int64_t c) {
    fn_params q = *of->params;
    const void **fields[] = {&q.weight, &q.bias, (const void **)&q.running_mean,
                             (const void **)&q.running_var, &q.tau};
    for (int i = of->whole.elem ? 2 : 0; i < 5; i++)
        if (*fields[i])
            *fields[i] = (const char *)*fields[i] + c * (int64_t)of->whole.asize;
    return q;
}

/* the job of a slice, without its memory */
static void make_job(const call *of, fn_job *job, slice at) {
    const fn_plan *whole = &of->whole;
    fn_problem part = *of->problem;
    int64_t elements;
    *job = (fn_job){.dy = of->dy, .params = params_from(of, at.c)};
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
    const int64_t start = (at.n * whole->c * part.s + at.c) * (int64_t)whole->esize;
    const int64_t bytes = of->elements * (int64_t)whole->esize;
    job->x = of->x + start;
    job->dy = of->dy ? of->dy + start : NULL;
    job->out = of->out ? of->out + start : NULL;
    job->cf = (fn_coefs){.plan = &job->plan, .params = &job->params};
    job->cf.count = (double)job->plan.count;
    job->weight = (void *)job->params.weight;
    job->bias = of->dy ? NULL : (void *)job->params.bias;
    job->want_dbias = of->grads && of->grads->bias;
    job->team.threads = fn_threads_for(bytes);
    job->team.scratch_bytes = fn_job_scratch(&job->plan);
    /* what backward writes has to share the cache with two arrays: it goes past it a bit earlier,
     * and earlier still in rows, whose sums over the rows need the caches too */
    job->stream = (!of->dy ? 2 : whole->elem ? 6 : 4) * bytes >= fn_stream_bytes();
    job->fetch = fn_fetch((of->dy ? 2 : 1) * bytes);
}
static void place_job(const call *of, fn_job *job, slice at, room *from) {
    const int64_t first = at.n * of->whole.sample_domains + at.c;
    take_all(job, from, of->saved ? of->saved + first : NULL, of->whole.domains,
             wants_elem(of) && of->grads->weight && !of->params->weight);
}

/* Parameters whose gradients are summed over slices: all of the elements, those of a slice's
 * channels. */
static int64_t param_count(const call *of) {
    return of->whole.elem ? of->problem->s : fn_min(of->columns, of->problem->c);
}

/* the sums, dweight and behind it dbias and dtau, to `count` parameters from c on */
static void put_param_grads(const call *of, const double *sums, int64_t c, int64_t count) {
    void *const to[] = {of->grads->weight, of->grads->bias, of->grads->tau};
    for (int i = 0; i < (of->params->tau ? 3 : 2); i++)
        if (to[i])
            fn_put_all(&of->whole, (char *)to[i] + c * (int64_t)of->whole.asize, 0,
                       sums + i * param_count(of), count);
}

/* run(job) for each slice, in one workspace: the first slice needs the most */
static fn_status for_slices(const call *of, void (*run)(fn_job *)) {
    const int64_t N = of->problem->n, C = of->whole.c;
    const int64_t count = of->grads ? param_count(of) : 0;
    const int elem = wants_elem(of);
    fn_job job;
    room from = {NULL, 0};
    slice at = {0, fn_min(of->samples, N), 0, fn_min(of->columns, C)};
    make_job(of, &job, at);
    const int64_t parts = elem ? fn_elem_parts(&job.plan) : 0;
    const int64_t bytes = elem ? fn_elem_bytes(&job.plan) : 3 * count * (int64_t)sizeof(double);
    take(&from, bytes, 1);
    place_job(of, &job, at, &from); /* only counts */
    char *w = fn_allocate(from.used);
    if (!w)
        return FN_NO_MEMORY;
    from = (room){fn_line(w), 0};
    double *sums = take(&from, bytes, 1);
    for (at.c = 0; at.c < C; at.c = at.c1) {
        at.c1 = fn_min(at.c + of->columns, C);
        if (at.c == 0 || !elem)
            memset(sums, 0, (size_t)bytes);
        for (at.n = 0; at.n < N; at.n = at.n1) {
            room left = from;
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

int64_t fn_saved_size(const fn_problem *problem) {
    const double some[3] = {0};
    const fn_params params = {some, some, (void *)some, (void *)some, some, some, some};
    int64_t elements;
    fn_plan plan;
    const fn_status status = fn_plan_make(&plan, problem, &params, 0, &elements);
    return status == FN_OK && elements ? saved_size(&plan) : 0;
}

fn_status fn_forward(const fn_problem *problem, const fn_params *params, const void *x, void *y,
                     double *saved) {
    call of;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = make_call(&of, problem, params, x, NULL, y, saved);
    if (status == FN_OK && of.elements)
        status = for_slices(&of, fn_run_forward);
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
    call of;
    void *dx = NULL;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = make_call(&of, problem, params, x, dy, grads->x, (double *)saved);
    of.grads = grads;
    if (status == FN_OK && !of.elements)
        zero_grads(problem, grads);
    /* It is made all the same.  With a floor dy is written there before x is read again. */
    const int64_t bytes = of.whole.planes * of.whole.s * of.whole.nseg * (int64_t)of.whole.esize;
    const int apart = !grads->x || (params->tau && grads->x == x);
    if (status == FN_OK && of.elements && apart) {
        dx = fn_allocate(bytes);
        of.out = dx;
        status = dx ? FN_OK : FN_NO_MEMORY;
    }
    if (status == FN_OK && of.elements)
        status = for_slices(&of, fn_run_backward);
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

/* One step on a whole problem: run(job), where there is anything to do, with `sums` in the
 * workspace (NULL: none). */
static fn_status step(const fn_problem *problem, const fn_params *params, const double *saved,
                      const void *x, const void *dy, void *out, double count, double *sums,
                      void (*run)(fn_job *, double *)) {
    call of;
    fn_job job;
    if (!has_steps(problem, params))
        return FN_BAD_PROBLEM;
    const fn_float_mode mode = fn_enter_float_mode();
    fn_status status = make_call(&of, problem, params, x, dy, out, (double *)saved);
    if (status == FN_OK && of.elements) {
        const slice all = {0, problem->n, 0, of.whole.c};
        room from = {NULL, 0};
        make_job(&of, &job, all);
        place_job(&of, &job, all, &from); /* only counts */
        char *w = fn_allocate(from.used);
        if (w) {
            from = (room){fn_line(w), 0};
            place_job(&of, &job, all, &from);
            job.cf.count = count > 0 ? count : job.cf.count;
            run(&job, sums);
        }
        free(w);
        status = w ? FN_OK : FN_NO_MEMORY;
    }
    fn_leave_float_mode(mode);
    return status;
}

static void run_apply(fn_job *job, double *sums) {
    (void)sums;
    fn_run_apply(job);
}
static void run_measure_grad(fn_job *job, double *sums) {
    const size_t size = (size_t)job->plan.planes * sizeof *sums;
    fn_centers(&job->cf, 0, job->plan.domains);
    fn_run_measure_grad(job);
    fn_center_sums(&job->cf, 0);
    memcpy(sums, job->cf.sum_dy, size);
    memcpy(sums + job->plan.planes, job->cf.sum_dy_xc, size);
}
static void run_apply_grad(fn_job *job, double *sums) {
    const size_t size = (size_t)job->plan.planes * sizeof *sums;
    memcpy(job->cf.sum_dy, sums, size);
    memcpy(job->cf.sum_dy_xc, sums + job->plan.planes, size);
    fn_centers(&job->cf, 0, job->plan.domains);
    fn_center_sums(&job->cf, 1);
    fn_flat_everywhere(job);
    fn_run_apply_grad(job);
}

fn_status fn_apply(const fn_problem *problem, const fn_params *params, const double *saved,
                   const void *x, void *y) {
    return step(problem, params, saved, x, NULL, y, 0, NULL, run_apply);
}

fn_status fn_measure_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                          const void *x, const void *dy, double *sums) {
    return step(problem, params, saved, x, dy, NULL, 0, sums, run_measure_grad);
}

fn_status fn_apply_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                        const double *sums, double count, const void *x, const void *dy, void *dx) {
    return step(problem, params, saved, x, dy, dx, count, (double *)sums, run_apply_grad);
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

/* ---- the limit -----------------------------------------------------------------------------*/

#define LIMIT_PIECE 32768
typedef struct {
    const fn_kernels *k;
    const float *x, *dy;
    float *y;
    int64_t len;
    int stream;
} limit;

static void take_limit(void *context, fn_share *share, char *scratch) {
    const limit *of = context;
    (void)scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;) {
        const int64_t at = i * LIMIT_PIECE, len = fn_min(LIMIT_PIECE, of->len - at);
        of->k->limit(of->x + at, of->dy ? of->dy + at : NULL, of->y + at, len, of->stream);
    }
}

void fn_memory_limit(const float *x, const float *dy, float *y, int64_t len, int stream) {
    limit of = {fn_active_kernels(FN_F32), x, dy, y, len, stream};
    fn_team team = {.threads = fn_threads_for(len * (int64_t)sizeof(float)), .fence = stream};
    if (!of.k) /* a build without float32 has no limit to measure */
        return;
    void *memory = fn_allocate(fn_team_bytes(&team));
    team.memory = memory ? fn_line(memory) : NULL;
    fn_parallel(&team, fn_ceil_div(len, LIMIT_PIECE), 0, take_limit, &of);
    free(memory);
}
