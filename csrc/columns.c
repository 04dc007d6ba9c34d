/* What scalers of the columns of a matrix need besides moments. */
#include "run.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

static const size_t esize[FN_DTYPE_COUNT] = {4, 8, 2, 2};

static fn_job job_of(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, void *y) {
    fn_job job = {.x = x, .out = y};
    job.plan.s = rows;
    job.plan.cols = cols;
    job.plan.esize = esize[dtype];
    job.plan.asize = dtype == FN_F64 ? 8 : 4;
    job.plan.k = fn_active_kernels(dtype);
    const int64_t bytes = rows * cols * (int64_t)job.plan.esize;
    job.threads = fn_threads_for(bytes);
    job.stream = y && 2 * bytes >= fn_stream_bytes();
    job.fetch = fn_fetch(bytes);
    return job;
}

static int valid(fn_dtype dtype, int64_t rows, int64_t cols) {
    return (unsigned)dtype < FN_DTYPE_COUNT && rows >= 0 && cols >= 0;
}

/* ---- extremes ------------------------------------------------------------------------------
 * They are exact, so only the sign of a zero could depend on the order in which pieces merge; it is
 * that of the rows. */

/* A piece has enough rows for its extremes to be small against it. */
#define LEAST_ROWS 256
#define PIECE 65536
static int64_t piece_rows(int64_t cols) { return fn_max(LEAST_ROWS, PIECE / cols); }
static int64_t strips(int64_t cols) { return fn_ceil_div(cols, FN_STRIP); }

static void task_extremes(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t rows = piece_rows(pl->cols), k = i / strips(pl->cols);
    const int64_t c = i % strips(pl->cols) * FN_STRIP, to = k * pl->cols + c;
    pl->k->col_extremes(job->x + (k * rows * pl->cols + c) * (int64_t)pl->esize,
                        fn_min(rows, pl->s - k * rows), pl->cols, fn_min(FN_STRIP, pl->cols - c),
                        job->fetch, job->mean + to, job->m2 + to);
}

fn_status fn_extremes(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, double *extremes) {
    if (!valid(dtype, rows, cols))
        return FN_BAD_PROBLEM;
    if (cols == 0)
        return FN_OK;
    const int64_t pieces = fn_ceil_div(rows, piece_rows(cols));
    double *low = malloc((size_t)(2 * pieces * cols + 1) * sizeof *low);
    if (!low)
        return FN_NO_MEMORY;
    fn_job job = job_of(dtype, rows, cols, x, NULL);
    job.mean = low;
    job.m2 = low + pieces * cols;
    fn_parallel(&job, pieces * strips(cols), task_extremes, 0);
    for (int64_t c = 0; c < cols; c++) {
        double lo = INFINITY, hi = -INFINITY;
        for (int64_t k = 0; k < pieces; k++) {
            lo = job.mean[k * cols + c] < lo ? job.mean[k * cols + c] : lo;
            hi = job.m2[k * cols + c] > hi ? job.m2[k * cols + c] : hi;
        }
        extremes[c] = lo <= hi ? lo : NAN;
        extremes[cols + c] = lo <= hi ? hi : NAN;
    }
    free(low);
    return FN_OK;
}

/* ---- affine map ----------------------------------------------------------------------------
 * Each piece is read a second time, for infinities, while it is in the L2: after it was written,
 * because memory is read and written at once faster than by turns. */

typedef struct {
    fn_job job;
    atomic_int infinite;
} fn_affine_job;

#define AFFINE_PIECE 32768
static int64_t affine_rows(int64_t cols) { return fn_max(1, AFFINE_PIECE / cols); }

static void look_for_infinity(fn_job *job, int64_t at, int64_t count) {
    double low, high;
    job->plan.k->col_extremes(job->x + at, count, 1, 1, 0, &low, &high);
    if (low == -INFINITY || high == INFINITY)
        atomic_store_explicit(&((fn_affine_job *)job)->infinite, 1, memory_order_relaxed);
}

static void task_affine(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t each = affine_rows(pl->cols), rows = fn_min(each, pl->s - i * each);
    const int64_t at = i * each * pl->cols * (int64_t)pl->esize;
    const int in_place = job->x == job->out;
    if (in_place)
        look_for_infinity(job, at, rows * pl->cols);
    pl->k->col_apply(job->x + at, job->out + at, rows, pl->cols, pl->cols, job->cf.center,
                     job->cf.scale, job->cf.shift, NULL, NULL, job->stream);
    if (!in_place)
        look_for_infinity(job, at, rows * pl->cols);
}

fn_status fn_affine(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, const double *center,
                    const double *factor, const double *shift, void *y, int *infinite) {
    if (!valid(dtype, rows, cols))
        return FN_BAD_PROBLEM;
    *infinite = 0;
    if (cols == 0)
        return FN_OK;
    fn_affine_job affine = {.job = job_of(dtype, rows, cols, x, y)};
    fn_job *job = &affine.job;
    char *w = malloc(3 * (size_t)cols * job->plan.asize);
    if (!w)
        return FN_NO_MEMORY;
    job->cf.center = w;
    job->cf.scale = fn_at(job, w, cols);
    job->cf.shift = fn_at(job, w, 2 * cols);
    for (int64_t c = 0; c < cols; c++) {
        fn_put(&job->plan, job->cf.center, c, center[c]);
        fn_put(&job->plan, job->cf.scale, c, factor[c]);
        /* what the center lost is made up for, as in fn_coefficients */
        const double lost = fn_get(&job->plan, job->cf.center, c) - center[c];
        fn_put(&job->plan, job->cf.shift, c, shift[c] + (lost != 0 ? lost * factor[c] : 0));
    }
    fn_parallel(job, fn_ceil_div(rows, affine_rows(cols)), task_affine, 0);
    *infinite = atomic_load(&affine.infinite);
    free(w);
    return FN_OK;
}
