/* What scalers of the columns of a matrix need besides moments. */
#include "core/job.h"
#include "core/place.h"
#include "core/traffic.h"
#include "core/workspace.h"
#include "system/float_mode.h"

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

/* ---- extremes ------------------------------------------------------------------------------
 * They are exact, so only the sign of a zero depends on the order in which parts merge, which the
 * shape alone decides. */

/* A part has enough rows for its extremes to be small against it. */
#define LEAST_ROWS 256
#define PART_ELEMS 65536

typedef struct {
    const fn_kernels *k;
    const char *x;
    int64_t esize, rows, cols;
    int64_t part_rows, strips; /* rows of a part, and strips of columns */
    int fetch;
    double *low, *high; /* of each part and column */
} extremes;

static void take_extremes(void *context, fn_share *share, char *scratch) {
    const extremes *of = context;
    for (int64_t i; (i = fn_next(share)) >= 0;) {
        const int64_t k = i / of->strips, r = k * of->part_rows, c = i % of->strips * FN_STRIP;
        const int64_t wide = fn_min(FN_STRIP, of->cols - c), to = k * of->cols + c;
        const fn_view view = {
            fn_min(of->part_rows, of->rows - r), of->cols, wide, wide, wide, of->fetch, 0, 0};
        of->k->extremes(of->x + (r * of->cols + c) * of->esize, &view, scratch, of->low + to,
                        of->high + to);
    }
}

static void merge_extremes(const extremes *of, int64_t parts, double *result) {
    const int64_t cols = of->cols;
    for (int64_t c = 0; c < cols; c++) {
        double lo = INFINITY, hi = -INFINITY;
        for (int64_t k = 0; k < parts; k++) {
            lo = of->low[k * cols + c] < lo ? of->low[k * cols + c] : lo;
            hi = of->high[k * cols + c] > hi ? of->high[k * cols + c] : hi;
        }
        result[c] = lo <= hi ? lo : NAN;
        result[cols + c] = lo <= hi ? hi : NAN;
    }
}

fn_status fn_extremes(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, double *result) {
    fn_plan plan;
    int64_t elements;
    fn_status status = plan_of(&plan, dtype, rows, cols, 0, &elements);
    for (int64_t c = 0; status == FN_OK && elements == 0 && c < 2 * cols; c++)
        result[c] = NAN;
    if (status != FN_OK || elements == 0)
        return status;
    const int64_t bytes = elements * (int64_t)plan.esize;
    extremes of = {.k = plan.k, .x = x, .esize = (int64_t)plan.esize, .rows = rows, .cols = cols};
    of.part_rows = fn_max(LEAST_ROWS, PART_ELEMS / cols);
    of.strips = fn_ceil_div(cols, FN_STRIP);
    const fn_choice use = fn_usual_choice(&plan, bytes, 0);
    of.fetch = use.fetch;
    fn_team team = {.threads = use.threads, .scratch_bytes = fn_plan_scratch(&plan)};
    const int64_t parts = fn_ceil_div(rows, of.part_rows), team_bytes = fn_team_bytes(&team);
    char *w = fn_allocate(team_bytes + 2 * parts * cols * (int64_t)sizeof(double));
    if (!w)
        return FN_NO_MEMORY;
    const fn_float_mode mode = fn_enter_float_mode();
    team.memory = fn_line(w);
    of.low = (double *)(team.memory + team_bytes);
    of.high = of.low + parts * cols;
    fn_parallel(&team, parts * of.strips, 0, take_extremes, &of);
    merge_extremes(&of, parts, result);
    free(w);
    fn_leave_float_mode(mode);
    return FN_OK;
}

/* ---- affine map ----------------------------------------------------------------------------
 * Each part is read a second time, for infinities, while it is in the L2: after it was written,
 * because memory is read and written at once faster than by turns. */

#define AFFINE_ELEMS 32768

/* lines of the matrix, what a line has of elements, and lines of a part; a long line of a plane of
 * its own is several parts */
static int64_t line_count(const fn_plan *pl) { return pl->col ? pl->s : pl->planes; }
static int64_t line_elems(const fn_plan *pl) { return pl->col ? pl->cols : pl->s; }
static int64_t lines_at_once(const fn_plan *pl) { return fn_max(1, AFFINE_ELEMS / line_elems(pl)); }
static int64_t parts_of_line(const fn_plan *pl) {
    return pl->col ? 1 : fn_ceil_div(pl->s, AFFINE_ELEMS);
}

typedef struct {
    fn_job job;
    atomic_int infinite; /* whether one was found */
} affine;

static void look_for_infinity(affine *of, const fn_job *job, int64_t at, int64_t count) {
    double low, high;
    job->plan.k->extremes(job->x + at, &(fn_view){count, 1, 1, 1, 1, 0, 0, 0}, job->scratch, &low,
                          &high);
    if (low == -INFINITY || high == INFINITY)
        atomic_store_explicit(&of->infinite, 1, memory_order_relaxed);
}

static void affine_part(affine *of, fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t parts = parts_of_line(pl), off = i % parts * AFFINE_ELEMS;
    const int64_t first = i / parts * lines_at_once(pl);
    const int64_t end = fn_min(first + lines_at_once(pl), line_count(pl));
    const int64_t len = parts > 1 ? fn_min(AFFINE_ELEMS, pl->s - off) : line_elems(pl);
    const int64_t at = (first * line_elems(pl) + off) * (int64_t)pl->esize;
    const int64_t count = (end - first) * len;
    const int in_place = job->x == job->out;
    if (in_place)
        look_for_infinity(of, job, at, count);
    if (pl->col)
        fn_place_columns(job, 0, pl->cols, first, end, (fn_hints){0, 0, job->use.stream});
    else
        fn_place_rows(job, first, end, 0, 1, off, len, (fn_hints){0, 0, job->use.stream});
    if (!in_place)
        look_for_infinity(of, job, at, count);
}

static void take_affine(void *context, fn_share *share, char *scratch) {
    affine *of = context;
    fn_job job = of->job;
    job.scratch = scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;)
        affine_part(of, &job, i);
}

static void place_affine(fn_job *job, fn_workspace *from) {
    fn_coefs *cf = &job->cf;
    double **doubles[] = {&cf->mean, &cf->std, &cf->r, &cf->d};
    void **coefs[] = {&cf->center, &cf->scale, &cf->shift};
    for (int i = 0; i < 4; i++)
        *doubles[i] = fn_take_doubles(from, job->plan.planes);
    for (int i = 0; i < 3; i++)
        *coefs[i] = fn_take(from, job->plan.planes, job->plan.asize);
    cf->marks = fn_take(from, job->plan.planes, 1);
    job->team.memory = fn_take(from, fn_team_bytes(&job->team), 1);
}

/* the doubles of the map as statistics, for what is careful, and as coefficients */
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
    const fn_params none = {.weight = NULL};
    affine of = {.infinite = 0};
    fn_job *job = &of.job;
    fn_workspace from = {NULL, 0};
    int64_t elements;
    *infinite = 0;
    fn_status status = plan_of(&job->plan, dtype, rows, cols, by_row, &elements);
    if (status != FN_OK || elements == 0)
        return status;
    const int64_t bytes = elements * (int64_t)job->plan.esize;
    fn_job_start(job, &none, x, NULL, y, fn_usual_choice(&job->plan, bytes, 0));
    place_affine(job, &from); /* only counts */
    char *w = fn_allocate(from.used);
    if (!w)
        return FN_NO_MEMORY;
    const fn_float_mode mode = fn_enter_float_mode();
    from = (fn_workspace){fn_line(w), 0};
    place_affine(job, &from);
    put_map(job, center, factor, shift);
    const int64_t parts = fn_ceil_div(line_count(&job->plan), lines_at_once(&job->plan));
    job->team.fence = job->use.stream;
    fn_parallel(&job->team, parts * parts_of_line(&job->plan), 0, take_affine, &of);
    *infinite = atomic_load(&of.infinite);
    free(w);
    fn_leave_float_mode(mode);
    return FN_OK;
}
