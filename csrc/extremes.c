/* The least and the largest value of each column.  They are exact, so only the sign of a zero could
 * depend on the order in which pieces merge; it is that of the rows. */
#include "run.h"

#include <math.h>
#include <stdlib.h>

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
                        job->mean + to, job->m2 + to);
}

fn_status fn_extremes(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, double *extremes) {
    static const size_t esize[FN_DTYPE_COUNT] = {4, 8, 2, 2};
    if ((unsigned)dtype >= FN_DTYPE_COUNT || rows < 0 || cols < 0)
        return FN_BAD_PROBLEM;
    if (cols == 0)
        return FN_OK;
    const int64_t pieces = fn_ceil_div(rows, piece_rows(cols));
    double *low = malloc((size_t)(2 * pieces * cols + 1) * sizeof *low);
    if (!low)
        return FN_NO_MEMORY;
    fn_job job = {.x = x, .mean = low, .m2 = low + pieces * cols};
    job.plan.s = rows;
    job.plan.cols = cols;
    job.plan.esize = esize[dtype];
    job.plan.k = fn_active_kernels(dtype);
    job.threads = fn_threads_for(rows * cols * (int64_t)job.plan.esize);
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
