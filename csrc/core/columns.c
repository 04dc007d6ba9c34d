/* What scalers of the columns of a matrix need besides moments. */
#include "system/float_mode.h"
#include "core/run.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

/* The plan of a matrix whose columns (by_row: rows) have coefficients of their own. */
static fn_status plan_of(fn_plan *plan, fn_dtype dtype, int64_t rows, int64_t cols, int by_row,
                         int64_t *elements) {
    const fn_params none = {.weight = NULL};
    const fn_problem columns = {
        .norm = FN_LAYER, .dtype = dtype, .layout = FN_CHANNELS_LAST, .n = 1, .c = cols, .s = rows};
    const fn_problem lines = {.norm = FN_LAYER, .dtype = dtype, .n = rows, .c = 1, .s = cols};
    return fn_plan_make(plan, by_row ? &lines : &columns, &none, 0, elements);
}

static void make_job(fn_job *job, const void *x, void *y, int64_t elements) {
    const int64_t bytes = elements * (int64_t)job->plan.esize;
    job->x = x;
    job->out = y;
    job->cf.plan = &job->plan;
    job->team.threads = fn_threads_for(bytes);
    job->stream = y && 2 * bytes >= fn_stream_bytes();
    job->fetch = fn_fetch(bytes);
    job->team.scratch_bytes = fn_job_scratch(&job->plan);
}

/* ---- extremes ------------------------------------------------------------------------------
 * They are exact, so only the sign of a zero depends on the order in which pieces merge, which the
 * shape alone decides. */

/* A piece has enough rows for its extremes to be small against it. */
#define LEAST_ROWS 256
#define PIECE 65536
static int64_t piece_rows(int64_t cols) { return fn_max(LEAST_ROWS, PIECE / cols); }
static int64_t strips(int64_t cols) { return fn_ceil_div(cols, FN_STRIP); }

static void task_extremes(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t rows = piece_rows(pl->cols), k = i / strips(pl->cols);
    const int64_t c = i % strips(pl->cols) * FN_STRIP, to = k * pl->cols + c;
    const int64_t wide = fn_min(FN_STRIP, pl->cols - c);
    const fn_view view = {fn_min(rows, pl->s - k * rows), pl->cols, wide, wide, wide, job->fetch};
    pl->k->extremes(job->x + (k * rows * pl->cols + c) * (int64_t)pl->esize, &view, job->scratch,
                    job->mean + to, job->m2 + to);
}

static void merge_extremes(const fn_job *job, int64_t pieces, double *extremes) {
    const int64_t cols = job->plan.cols;
    for (int64_t c = 0; c < cols; c++) {
        double lo = INFINITY, hi = -INFINITY;
        for (int64_t k = 0; k < pieces; k++) {
            lo = job->mean[k * cols + c] < lo ? job->mean[k * cols + c] : lo;
            hi = job->m2[k * cols + c] > hi ? job->m2[k * cols + c] : hi;
        }
        extremes[c] = lo <= hi ? lo : NAN;
        extremes[cols + c] = lo <= hi ? hi : NAN;
    }
}

fn_status fn_extremes(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, double *extremes) {
    fn_job job = {.x = NULL};
    int64_t elements;
    fn_status status = plan_of(&job.plan, dtype, rows, cols, 0, &elements);
    for (int64_t c = 0; status == FN_OK && elements == 0 && c < 2 * cols; c++)
        extremes[c] = NAN;
    if (status != FN_OK || elements == 0)
        return status;
    make_job(&job, x, NULL, elements);
    const int64_t pieces = fn_ceil_div(rows, piece_rows(cols)), team = fn_team_bytes(&job.team);
    char *w = fn_allocate(team + 2 * pieces * cols * (int64_t)sizeof(double));
    if (!w)
        return FN_NO_MEMORY;
    const fn_float_mode mode = fn_enter_float_mode();
    job.team.memory = fn_line(w);
    job.scratch = fn_team_scratch(&job.team);
    job.mean = (double *)(fn_line(w) + team);
    job.m2 = job.mean + pieces * cols;
    fn_for_all(&job, pieces * strips(cols), task_extremes, 0);
    merge_extremes(&job, pieces, extremes);
    free(w);
    fn_leave_float_mode(mode);
    return FN_OK;
}

/* ---- affine map ----------------------------------------------------------------------------
 * Each piece is read a second time, for infinities, while it is in the L2: after it was written,
 * because memory is read and written at once faster than by turns. */

#define AFFINE_PIECE 32768

/* lines of the matrix, what a line has of elements, and lines of a piece; a long line of a plane of
 * its own is cut into parts of AFFINE_PIECE */
static int64_t line_count(const fn_plan *pl) { return pl->col ? pl->s : pl->planes; }
static int64_t line_elems(const fn_plan *pl) { return pl->col ? pl->cols : pl->s; }
static int64_t lines_at_once(const fn_plan *pl) { return fn_max(1, AFFINE_PIECE / line_elems(pl)); }
static int64_t parts_of_line(const fn_plan *pl) {
    return pl->col ? 1 : fn_ceil_div(pl->s, AFFINE_PIECE);
}

static void look_for_infinity(fn_job *job, int64_t at, int64_t count) {
    double low, high;
    job->plan.k->extremes(job->x + at, &(fn_view){count, 1, 1, 1, 1, 0}, job->scratch, &low, &high);
    if (low == -INFINITY || high == INFINITY)
        atomic_store_explicit((atomic_int *)job->extra, 1, memory_order_relaxed);
}

static void task_affine(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t parts = parts_of_line(pl), off = i % parts * AFFINE_PIECE;
    const int64_t first = i / parts * lines_at_once(pl);
    const int64_t end = fn_min(first + lines_at_once(pl), line_count(pl));
    const int64_t len = parts > 1 ? fn_min(AFFINE_PIECE, pl->s - off) : line_elems(pl);
    const int64_t at = (first * line_elems(pl) + off) * (int64_t)pl->esize;
    const int64_t count = (end - first) * len;
    const int in_place = job->x == job->out;
    if (in_place)
        look_for_infinity(job, at, count);
    if (pl->col)
        fn_col_part(job, 0, pl->cols, first, end);
    else
        fn_row_part(job, first, end, 0, 1, off, len, (fn_hints){0, 0, job->stream});
    if (!in_place)
        look_for_infinity(job, at, count);
}

/* the doubles of the map as statistics (fn_careful_forward), and as coefficients */
static void put_map(fn_job *job, const double *center, const double *factor, const double *shift) {
    const fn_plan *pl = &job->plan;
    const fn_range range = fn_range_of(pl->asize);
    fn_coefs *cf = &job->cf;
    for (int64_t p = 0; p < pl->planes; p++) {
        const double size = fabs(factor[p]);
        cf->mean[p] = center[p];
        cf->std[p] = 1 / size;
        cf->r[p] = copysign(1, factor[p]);
        cf->d[p] = shift[p];
        fn_put(pl, cf->center, p, center[p]);
        fn_put(pl, cf->scale, p, factor[p]);
        /* what the center lost is made up for, as in fn_coefficients */
        const double lost = fn_get(pl, cf->center, p) - center[p];
        fn_put(pl, cf->shift, p, shift[p] + (lost != 0 ? lost * factor[p] : 0));
        cf->marks[p] = (size > range.high || (size < range.low && size != 0) ||
                        fabs(center[p]) > range.high || fabs(shift[p]) > range.high) *
                       FN_CAREFUL;
    }
}

fn_status fn_affine(fn_dtype dtype, int64_t rows, int64_t cols, int by_row, const void *x,
                    const double *center, const double *factor, const double *shift, void *y,
                    int *infinite) {
    fn_job job = {.x = NULL};
    atomic_int found = 0;
    int64_t elements;
    *infinite = 0;
    fn_status status = plan_of(&job.plan, dtype, rows, cols, by_row, &elements);
    if (status != FN_OK || elements == 0)
        return status;
    make_job(&job, x, y, elements);
    job.extra = &found;
    const int64_t P = job.plan.planes, team = fn_team_bytes(&job.team);
    const int64_t coefs = 3 * P * (int64_t)job.plan.asize;
    char *w = fn_allocate(team + 4 * P * (int64_t)sizeof(double) + coefs + P);
    if (!w)
        return FN_NO_MEMORY;
    const fn_float_mode mode = fn_enter_float_mode();
    job.team.memory = fn_line(w);
    job.scratch = fn_team_scratch(&job.team);
    double **doubles[] = {&job.cf.mean, &job.cf.std, &job.cf.r, &job.cf.d};
    for (int i = 0; i < 4; i++)
        *doubles[i] = (double *)(fn_line(w) + team) + i * P;
    job.cf.center = job.cf.d + P;
    job.cf.scale = fn_at(&job, job.cf.center, P);
    job.cf.shift = fn_at(&job, job.cf.center, 2 * P);
    job.cf.marks = (unsigned char *)job.cf.center + coefs;
    const fn_params none = {.weight = NULL};
    job.cf.params = &none;
    put_map(&job, center, factor, shift);
    const int64_t pieces = fn_ceil_div(line_count(&job.plan), lines_at_once(&job.plan));
    fn_for_all(&job, pieces * parts_of_line(&job.plan), task_affine, 0);
    *infinite = atomic_load(&found);
    free(w);
    fn_leave_float_mode(mode);
    return FN_OK;
}
