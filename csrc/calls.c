/* The entry points of fastnorm.h: plan, memory, walk. */
#include "run.h"

#include <stdlib.h>
#include <string.h>

static int64_t saved_size(const fn_plan *pl) {
    const int renorm = pl->p.norm == FN_BATCH_RENORM || pl->p.norm == FN_INSTANCE_RENORM;
    const int64_t mixed = pl->p.norm == FN_SWITCHABLE ? 2 * (pl->n + pl->c) : 0;
    return pl->domains * (renorm ? 4 : 2) + mixed;
}

static void point_saved(fn_coefs *cf, const fn_plan *pl, double *saved) {
    const int64_t D = pl->domains;
    cf->mean = saved;
    cf->var = saved + D;
    if (pl->p.norm == FN_BATCH_RENORM || pl->p.norm == FN_INSTANCE_RENORM) {
        cf->r = saved + 2 * D;
        cf->d = saved + 3 * D;
    } else if (pl->p.norm == FN_SWITCHABLE) {
        cf->lmean = saved + 2 * D;
        cf->lvar = cf->lmean + pl->n;
        cf->bmean = cf->lvar + pl->n;
        cf->bvar = cf->bmean + pl->c;
    }
}

/* Rows of layer and RMS norm share weight and bias, which the caller has anywhere, and a vector
 * that lies in two lines is two loads: several rows of whole lines take copies that lie in their
 * lines as the output does in its own. */
#define LEAST_ROWS 16
static size_t copy_bytes(const fn_plan *pl) {
    const int shared = pl->elem && !pl->col && pl->planes >= LEAST_ROWS;
    return shared && pl->s * (int64_t)pl->esize % FN_LINE_BYTES == 0 ? (size_t)pl->s * pl->asize
                                                                     : 0;
}
static void copy_params(fn_job *job, char *to) {
    const size_t size = copy_bytes(&job->plan);
    const size_t head = -(uintptr_t)job->out % FN_LINE_BYTES / job->plan.esize * job->plan.asize;
    void **params[2] = {&job->weight, job->dy ? NULL : &job->bias}; /* backward: only whether */
    to = fn_line(to + head) - head;
    for (int i = 0; i < 2 && size; i++, to += size)
        if (params[i] && *params[i] && ((uintptr_t)*params[i] + head) % FN_LINE_BYTES)
            *params[i] = memcpy(to, *params[i], size);
}

/* One allocation for all that a call needs: moments of the chunks, statistics (when the caller does
 * not want them), sums, coefficients, weight and bias. */
static void *workspace(fn_job *job, double *saved, int grad) {
    const fn_plan *pl = &job->plan;
    fn_coefs *cf = &job->cf;
    const int64_t P = pl->planes, K = grad ? pl->gchunks.count : pl->mchunks.count;
    /* one chunk, and nothing to merge: moments and sums are written where they are wanted */
    const int direct = K == 1 && (grad || pl->cols == 1 || pl->planes == pl->domains);
    const int64_t slots = direct ? 0 : K * (pl->cols > 1 || grad ? P : pl->domains);
    const int64_t own = saved ? 0 : saved_size(pl);
    const int64_t mixed = pl->p.norm == FN_SWITCHABLE && grad ? 2 * P + 8 * pl->n + 2 * pl->c : 0;
    const int64_t doubles = 2 * slots + own + (grad ? 2 * P : 0) + mixed;
    /* in elements, so whole lines of any type */
    const int64_t stride = fn_ceil_div(P, FN_LINE_BYTES) * FN_LINE_BYTES;
    const size_t coefs = (size_t)(stride * (grad ? 6 : 3)) * pl->asize;
    double *w =
        malloc((size_t)doubles * sizeof *w + coefs + 2 * copy_bytes(pl) + 2 * FN_LINE_BYTES);
    if (!w)
        return NULL;
    job->mean = w;
    job->m2 = w + slots;
    double *next = w + 2 * slots;
    point_saved(cf, pl, saved ? saved : next);
    next += own;
    if (grad) {
        cf->sum_dy = next;
        cf->sum_dy_xc = next + P;
        next += 2 * P;
    }
    if (mixed) {
        cf->dmu = next;
        cf->dv = next + P;
        cf->dlmean = next + 2 * P;
        cf->dlvar = cf->dlmean + pl->n;
        cf->dbmean = cf->dlvar + pl->n;
        cf->dbvar = cf->dbmean + pl->c;
        cf->dlogits = cf->dbvar + pl->c;
        next += mixed;
    }
    if (direct) {
        job->mean = grad ? cf->sum_dy : cf->mean;
        job->m2 = grad ? cf->sum_dy_xc : cf->var;
    }
    void **fields[6] = {&cf->center, &cf->scale, &cf->shift, &cf->a, &cf->b, &cf->e};
    for (int i = 0; i < (grad ? 6 : 3); i++)
        *fields[i] = fn_at(job, fn_line((char *)next), i * stride);
    copy_params(job, fn_line((char *)next) + coefs);
    return w;
}

static fn_status start(fn_job *job, const fn_problem *problem, const fn_params *params,
                       const void *x, const void *dy, void *out) {
    *job = (fn_job){.x = x, .dy = dy, .out = out};
    fn_status status = fn_plan_make(&job->plan, problem, params, dy != NULL);
    if (status != FN_OK)
        return status;
    job->cf = (fn_coefs){.plan = &job->plan, .params = params};
    job->cf.count = (double)job->plan.count;
    job->weight = (void *)params->weight;
    job->bias = (void *)params->bias;
    const int64_t bytes = problem->n * problem->c * problem->s * (int64_t)job->plan.esize;
    job->threads = fn_threads_for(bytes);
    /* what backward writes has to share the cache with two arrays: it goes past it a bit earlier,
     * and earlier still in rows, whose sums over the rows need the caches too */
    job->stream = (!dy ? 2 : job->plan.elem ? 6 : 4) * bytes >= fn_stream_bytes();
    job->fetch = fn_fetch((dy ? 2 : 1) * bytes);
    return FN_OK;
}

int64_t fn_saved_size(const fn_problem *problem) {
    fn_plan plan;
    const double some[3] = {0};
    const fn_params params = {some, some, (void *)some, (void *)some, some, some};
    return fn_plan_make(&plan, problem, &params, 0) == FN_OK ? saved_size(&plan) : 0;
}

fn_status fn_forward(const fn_problem *problem, const fn_params *params, const void *x, void *y,
                     double *saved) {
    fn_job job;
    fn_status status = start(&job, problem, params, x, NULL, y);
    if (status != FN_OK || problem->n * problem->c * problem->s == 0)
        return status;
    void *w = workspace(&job, saved, 0);
    if (!w)
        return FN_NO_MEMORY;
    fn_run_forward(&job);
    free(w);
    return FN_OK;
}

static void zero_grads(const fn_plan *pl, const fn_grads *grads) {
    const int64_t params = pl->elem ? pl->p.s : pl->p.c;
    if (grads->weight)
        memset(grads->weight, 0, (size_t)params * pl->asize);
    if (grads->bias)
        memset(grads->bias, 0, (size_t)params * pl->asize);
    if (grads->mean_logits)
        memset(grads->mean_logits, 0, 3 * pl->asize);
    if (grads->var_logits)
        memset(grads->var_logits, 0, 3 * pl->asize);
}

fn_status fn_backward(const fn_problem *problem, const fn_params *params, const double *saved,
                      const void *x, const void *dy, const fn_grads *grads) {
    fn_job job;
    fn_status status = start(&job, problem, params, x, dy, grads->x);
    if (status != FN_OK)
        return status;
    if (problem->n * problem->c * problem->s == 0) {
        zero_grads(&job.plan, grads);
        return FN_OK;
    }
    void *w = workspace(&job, (double *)saved, 1);
    if (!w || (status = fn_elem_workspace(&job)) != FN_OK) {
        free(w);
        return FN_NO_MEMORY;
    }
    job.grads = grads;
    fn_run_backward(&job);
    free(job.elem_work);
    free(w);
    return FN_OK;
}

/* ---- the steps -----------------------------------------------------------------------------*/

/* As start, with a workspace; *w is NULL where there is nothing to do. */
static fn_status start_step(fn_job *job, const fn_problem *problem, const fn_params *params,
                            double *saved, const void *x, const void *dy, void *out, void **w) {
    const int steps = (problem->norm == FN_BATCH && problem->training) ||
                      (problem->norm == FN_LAYER && !params->weight && !params->bias);
    *job = (fn_job){.x = NULL};
    *w = NULL;
    fn_status status = steps ? start(job, problem, params, x, dy, out) : FN_BAD_PROBLEM;
    if (status != FN_OK || problem->n * problem->c * problem->s == 0)
        return status;
    *w = workspace(job, saved, dy != NULL);
    return *w ? FN_OK : FN_NO_MEMORY;
}

fn_status fn_measure(const fn_problem *problem, const void *x, double *statistics) {
    const fn_params none = {NULL, NULL, NULL, NULL, NULL, NULL};
    fn_job job;
    void *w;
    fn_status status = start_step(&job, problem, &none, statistics, x, NULL, NULL, &w);
    if (w)
        fn_run_measure(&job);
    else if (status == FN_OK)
        memset(statistics, 0, (size_t)saved_size(&job.plan) * sizeof *statistics);
    free(w);
    return status;
}

fn_status fn_apply(const fn_problem *problem, const fn_params *params, const double *saved,
                   const void *x, void *y) {
    fn_job job;
    void *w;
    fn_status status = start_step(&job, problem, params, (double *)saved, x, NULL, y, &w);
    if (w)
        fn_run_apply(&job);
    free(w);
    return status;
}

fn_status fn_measure_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                          const void *x, const void *dy, double *sums) {
    fn_job job;
    void *w;
    fn_status status = start_step(&job, problem, params, (double *)saved, x, dy, NULL, &w);
    const size_t size = (size_t)job.plan.planes * sizeof *sums;
    if (w) {
        fn_centers(&job.cf, 0, job.plan.domains);
        fn_run_measure_grad(&job);
        fn_center_sums(&job.cf, 0);
        memcpy(sums, job.cf.sum_dy, size);
        memcpy(sums + job.plan.planes, job.cf.sum_dy_xc, size);
    } else if (status == FN_OK) {
        memset(sums, 0, 2 * size);
    }
    free(w);
    return status;
}

fn_status fn_apply_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                        const double *sums, double count, const void *x, const void *dy, void *dx) {
    fn_job job;
    void *w;
    fn_status status = start_step(&job, problem, params, (double *)saved, x, dy, dx, &w);
    if (w) {
        const size_t size = (size_t)job.plan.planes * sizeof *sums;
        job.cf.count = count;
        memcpy(job.cf.sum_dy, sums, size);
        memcpy(job.cf.sum_dy_xc, sums + job.plan.planes, size);
        fn_centers(&job.cf, 0, job.plan.domains);
        fn_center_sums(&job.cf, 1);
        fn_run_apply_grad(&job);
    }
    free(w);
    return status;
}

/* ---- the limit -----------------------------------------------------------------------------*/

#define LIMIT_PIECE 32768
static void task_limit(fn_job *job, int64_t i) {
    const int64_t at = i * LIMIT_PIECE, len = fn_min(LIMIT_PIECE, job->plan.s - at);
    job->plan.k->limit((const float *)job->x + at, job->dy ? (const float *)job->dy + at : NULL,
                       (float *)job->out + at, len, job->stream);
}

void fn_memory_limit(const float *x, const float *dy, float *y, int64_t len, int stream) {
    fn_job job = {.x = (const char *)x, .dy = (const char *)dy, .out = (char *)y};
    job.plan.s = len;
    job.plan.k = fn_active_kernels(FN_F32);
    job.stream = stream;
    job.threads = fn_threads_for(len * (int64_t)sizeof(float));
    fn_parallel(&job, fn_ceil_div(len, LIMIT_PIECE), task_limit, 0);
}
