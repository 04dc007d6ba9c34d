/* What leaves the range in which the kernels' arithmetic keeps its digits (fn_range): squares of
 * floats beyond 1e19 or below 1e-23, coefficients that are no floats.  Here it is computed in
 * double, element by element: slowly, and right.  Ordinary domains never come here.
 *
 * Dead channels are ordinary too: what is constant, or 0, is found out by a glance. */
#include "core/careful.h"

#include "core/measure.h"
#include "norms/common.h"

#include <math.h>

#define COLUMNS 16  /* columns that are walked together */
#define AT_ONCE 128 /* elements in double at a time */

/* All forms are one here: in each segment a group of cols planes is a run of s * cols elements,
 * of which element i belongs to plane i % cols of the group, and to row i / cols. */
static int64_t run_at(const fn_plan *pl, int64_t group, int64_t g) {
    return g * pl->seg_stride + group * pl->ld * pl->s;
}

/* w elements of each of `rows` rows of `array`, from element i on, in double */
static void load(const fn_job *job, const char *array, int64_t i, int64_t rows, int64_t w,
                 double *to) {
    static const double zero[AT_ONCE] = {0};
    const fn_plan *pl = &job->plan;
    pl->k->widen(array + i * (int64_t)pl->esize, rows, pl->ld, w, zero, NULL, to);
}

/* What walks over planes: a function is called for some rows at a time of columns [p, p + w) of a
 * group, w <= COLUMNS.  Element k of them belongs to column k % w, and to row `row` + k / w. */
typedef struct {
    const fn_job *job;
    int64_t p, w;
    void *state;
} walk;
typedef void (*visit)(const walk *at, int64_t row, int64_t n, const double *x, const double *dy,
                      double *out);

static void visit_rows(walk at, int64_t g, int64_t r, int64_t r1, visit function) {
    const fn_plan *pl = &at.job->plan;
    double x[AT_ONCE], dy[AT_ONCE], out[AT_ONCE];
    for (int64_t rows; r < r1; r += rows) {
        const int64_t i = run_at(pl, at.p / pl->cols, g) + r * pl->ld + at.p % pl->cols;
        rows = fn_min(AT_ONCE / at.w, r1 - r);
        load(at.job, at.job->x, i, rows, at.w, x);
        if (at.job->dy)
            load(at.job, at.job->dy, i, rows, at.w, dy);
        function(&at, r, rows * at.w, x, dy, out);
        for (int64_t k = 0; k < rows && at.job->out; k++)
            pl->k->narrow(out + k * at.w, at.w,
                          at.job->out + (i + k * pl->ld) * (int64_t)pl->esize);
    }
}

/* ---- a glance at planes --------------------------------------------------------------------*/

/* the least and the largest element, NaN passed over, of planes [p, p1) of a group */
typedef struct {
    int64_t p, p1;
    double low[COLUMNS], high[COLUMNS];
} glance;

static void look(glance *at, const fn_job *job, const char *array, int64_t p, int64_t p1) {
    const fn_plan *pl = &job->plan;
    if (at->p <= p && p < at->p1)
        return;
    const int64_t w = fn_min(fn_min(COLUMNS, p1 - p), pl->cols - p % pl->cols);
    at->p = p;
    at->p1 = p + w;
    for (int64_t c = 0; c < w; c++) {
        at->low[c] = INFINITY;
        at->high[c] = -INFINITY;
    }
    for (int64_t g = 0; g < pl->nseg; g++) {
        const int64_t i = run_at(pl, p / pl->cols, g) + p % pl->cols;
        double low[COLUMNS], high[COLUMNS];
        pl->k->extremes(array + i * (int64_t)pl->esize, &(fn_view){pl->s, pl->ld, w, w, w, 0, 0, 0},
                        job->scratch, low, high);
        for (int64_t c = 0; c < w; c++) {
            at->low[c] = low[c] < at->low[c] ? low[c] : at->low[c];
            at->high[c] = high[c] > at->high[c] ? high[c] : at->high[c];
        }
    }
}

/* whether the first two elements of plane p are the same: most that are not constant differ at once
 */
FN_INLINE int starts_alike(const fn_job *job, const char *array, int64_t p) {
    const fn_plan *pl = &job->plan;
    const int64_t size = (int64_t)pl->esize, start = run_at(pl, p / pl->cols, 0) + p % pl->cols;
    const int64_t step = pl->s > 1 ? pl->ld : pl->nseg > 1 ? pl->seg_stride : 0;
    const char *first = array + start * size, *second = first + step * size;
    switch (size) { /* without a call */
    case 2: return memcmp(first, second, 2) == 0;
    case 4: return memcmp(first, second, 4) == 0;
    default: return memcmp(first, second, 8) == 0;
    }
}

/* Whether plane p is constant: its elements are *value.  Where a plane is a row, its bytes are
 * compared with themselves one element on. */
static int is_constant(glance *at, const fn_job *job, const char *array, int64_t p, int64_t p1,
                       double *value) {
    const fn_plan *pl = &job->plan;
    const int64_t size = (int64_t)pl->esize, start = run_at(pl, p / pl->cols, 0) + p % pl->cols;
    if (!starts_alike(job, array, p))
        return 0;
    if (pl->cols > 1) {
        look(at, job, array, p, p1);
        *value = at->low[p - at->p];
        return at->low[p - at->p] == at->high[p - at->p];
    }
    load(job, array, start, 1, 1, value);
    for (int64_t g = 0; g < pl->nseg; g++) {
        const char *run = array + run_at(pl, p, g) * size;
        if (memcmp(array + start * size, run, pl->esize) != 0 ||
            memcmp(run, run + size, (size_t)((pl->s - 1) * size)) != 0)
            return 0;
    }
    return 1;
}

/* ---- moments -------------------------------------------------------------------------------*/

/* whether the elements of domain d are all the same: its planes end before p1 */
static int same_elements(glance *at, const fn_job *job, int64_t d, int64_t p1, double *value) {
    const fn_plan *pl = &job->plan;
    const int64_t first = fn_first_plane(pl, d);
    double other;
    int same = is_constant(at, job, job->x, first, p1, value);
    for (int64_t p = first + 1; p < first + pl->per_domain && same; p++)
        same = is_constant(at, job, job->x, p, p1, &other) && other == *value;
    return same;
}

/* whether the elements of domain d have a NaN, so that all that follows from them is NaN */
static int has_nan(const fn_job *job, int64_t d) {
    const fn_plan *pl = &job->plan;
    const int64_t first = fn_first_plane(pl, d), planes = pl->per_domain;
    double x[AT_ONCE];
    int found = 0;
    for (int64_t i = 0; i < planes * pl->nseg && !found; i++) {
        const int64_t p = first + i % planes;
        const int64_t at = run_at(pl, p / pl->cols, i / planes) + p % pl->cols;
        for (int64_t r = 0, n; r < pl->s && !found; r += n) {
            n = fn_min(AT_ONCE, pl->s - r);
            load(job, job->x, at + r * pl->ld, pl->cols == 1 ? 1 : n, pl->cols == 1 ? n : 1, x);
            for (int64_t k = 0; k < n; k++)
                found |= x[k] != x[k];
        }
    }
    return found;
}

/* whether a domain is a channel that fills a block up: its coefficients are 0 whatever x holds */
static int is_padding(const fn_plan *pl, int64_t d) {
    return pl->c != pl->p.c && pl->per_domain == 1 && fn_first_plane(pl, d) % pl->c >= pl->p.c;
}

void fn_careful_moments(fn_job *job, int64_t d, int64_t d1) {
    const int64_t p1 = fn_first_plane(&job->plan, d1);
    glance x = {.p = 0, .p1 = 0};
    for (; d < d1; d++) {
        double mean, m2, value;
        int exponent;
        if (is_padding(&job->plan, d) || !fn_out_of_range(&job->cf, d))
            continue;
        if (job->cf.std[d] == 0 && same_elements(&x, job, d, p1, &value) &&
            (value == 0 || !fn_uncentered(&job->plan)))
            continue;
        if (isnan(job->cf.std[d]) && isnan(job->cf.mean[d]) && has_nan(job, d))
            continue;
        fn_exact_moments(&job->plan, job->x, job->scratch, d, &mean, &m2, &exponent);
        fn_put_moments(&job->cf, d, mean, m2, exponent);
    }
}

/* ---- gradient sums -------------------------------------------------------------------------*/

typedef struct {
    double center, part, dy, dy_xc; /* part: one over the unit of x - center */
    const void *weight;             /* of the rows, or NULL */
} grad_sums;

static void visit_sums(const walk *at, int64_t row, int64_t n, const double *x, const double *dy,
                       double *out) {
    grad_sums *s = at->state;
    const int64_t first = fn_elem_first(&at->job->plan, at->p);
    (void)out;
    for (int64_t k = 0; k < n; k++) { /* of one column */
        const double g =
            dy[k] * (s->weight ? fn_get(&at->job->plan, s->weight, first + row + k) : 1);
        s->dy += g;
        s->dy_xc += g * ((x[k] - s->center) * s->part);
    }
}

static void sum_again(const fn_job *job, int64_t p, double unit) {
    const fn_plan *pl = &job->plan;
    fn_job sums_only = *job;
    sums_only.out = NULL;
    grad_sums s = {.center = fn_get(pl, job->cf.center, p),
                   .part = 1 / unit,
                   .weight = pl->elem ? job->weight : NULL};
    for (int64_t g = 0; g < pl->nseg; g++)
        visit_rows((walk){&sums_only, p, 1, &s}, g, 0, pl->s, visit_sums);
    job->cf.sum_dy[p] = s.dy;
    job->cf.sum_dy_xc[p] = s.dy_xc;
}

/* Sums of products that may have overflowed, or lost digits to underflow, over m elements: beyond
 * `high`, and below `least` where |sum dy| * std is below `small`, as they may also be those of a
 * gradient that is 0. */
typedef struct {
    double high, small, least;
    int measured; /* std is that of x: where it is 0, x is constant and the sums are right */
} doubt;
static doubt doubt_of(const fn_plan *pl) {
    const double m = (double)(pl->s * pl->nseg);
    const int measured = fn_needs_moments(pl);
    return pl->asize == 4 ? (doubt){0x1p100, m * 0x1p-100, m * 0x1p-118, measured}
                          : (doubt){0x1p1000, m * 0x1p-940, m * 0x1p-958, measured};
}
FN_INLINE double is_doubtful(doubt of, double dy, double dy_xc, double std) {
    const double least = (std == 0) & of.measured ? 0 : of.least;
    const double small = fabs(dy) * std < of.small ? least : 0, nan = std == std ? 0 : 1;
    return fn_outside(dy, -of.high, of.high) + fn_outside(fabs(dy_xc), small, of.high) > 4 * nan;
}

/* whether dy * weight is constant over domain d, whose planes end before p1; not where it is 0, as
 * then dx is so anyway */
static int same_gradient(glance *at, const fn_job *job, int64_t d, int64_t p1, double *gradient) {
    const fn_plan *pl = &job->plan;
    const void *weight = job->weight;
    const int64_t first = fn_first_plane(pl, d);
    double value = 0;
    for (int64_t p = first; p < first + pl->per_domain; p++) {
        double dy, factor;
        if (!is_constant(at, job, job->dy, p, p1, &dy) || isnan(job->cf.sum_dy[p]))
            return 0;
        fn_params_of(&job->cf, weight, 1, pl->elem ? 0 : p % pl->c, 1, &factor);
        dy *= factor;
        if (p > first && dy != value)
            return 0;
        value = dy;
    }
    const int64_t start = fn_elem_first(pl, first);
    for (int64_t i = 1; i < pl->s && pl->elem && weight; i++)
        if (fn_get(pl, weight, start + i) != fn_get(pl, weight, start))
            return 0;
    *gradient = value;
    return isfinite(value) && value != 0;
}

/* Whether x may be constant over domain d, as its deviation is 0; where the mean is not subtracted,
 * that tells nothing. */
static int may_be_flat(const fn_job *job, int64_t d) {
    const fn_plan *pl = &job->plan;
    return fn_uncentered(pl) || (job->cf.std[d] == 0 && fn_needs_moments(pl));
}

/* Whether no sum is doubtful, in a loop that compilers make vectors of, over domains that are a
 * plane each; and whether x may be constant over one of them. */
static int are_right(const fn_job *job, int64_t d, int64_t d1, int *constant) {
    const fn_coefs *cf = &job->cf;
    const doubt of = doubt_of(&job->plan);
    double doubts = 0, zeros = 0;
    *constant = 1;
    if (job->plan.planes != job->plan.domains)
        return 0;
    for (; d < d1; d++) {
        doubts += is_doubtful(of, cf->sum_dy[d], cf->sum_dy_xc[d], cf->std[d]);
        zeros += cf->std[d] > 0 ? 0 : 1;
    }
    *constant = zeros > 0 || fn_uncentered(&job->plan);
    return doubts == 0;
}

/* Whether the sums of plane p are to be computed again: not where dy is 0, nor where x is its
 * center, as a dead channel may be. */
static int is_wrong(const fn_job *job, doubt of, int64_t d, int64_t p, int64_t p1, glance *x,
                    glance *dy) {
    const fn_coefs *cf = &job->cf;
    double value;
    if (!(is_doubtful(of, cf->sum_dy[p], cf->sum_dy_xc[p], cf->std[d]) > 0))
        return 0;
    if (cf->sum_dy[p] == 0 && is_constant(dy, job, job->dy, p, p1, &value) && value == 0)
        return 0;
    return !(cf->sum_dy_xc[p] == 0 && is_constant(x, job, job->x, p, p1, &value) &&
             value == fn_get(&job->plan, cf->center, p));
}

/* The sums of domain d, where they are wrong; its planes end before p1.  Where running statistics
 * serve, no sum goes into dx, which stays as it is: else it would depend on the other samples. */
static void mend_sums(const fn_job *job, int64_t d, int64_t p1, glance *x, glance *dy) {
    const fn_plan *pl = &job->plan;
    const unsigned char marks = fn_needs_moments(pl) ? FN_SCALED | FN_CAREFUL : FN_SCALED;
    const doubt of = doubt_of(pl);
    const int64_t first = fn_first_plane(pl, d), end = first + pl->per_domain;
    int scaled = 0;
    for (int64_t p = first; p < end && !scaled; p++) {
        if (!is_wrong(job, of, d, p, p1, x, dy))
            continue;
        scaled = pl->asize == sizeof(double); /* all planes of the domain alike */
        if (!scaled)
            sum_again(job, p, 1);
        if (pl->elem)
            job->cf.marks[p] |= FN_CAREFUL;
    }
    for (int64_t p = first; p < end && scaled; p++) {
        sum_again(job, p, fn_size_of(job->cf.std[d]));
        job->cf.marks[p] |= marks;
    }
}

void fn_careful_grads(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    const int64_t p1 = fn_first_plane(pl, d1);
    int constant;
    const int right = are_right(job, d, d1, &constant) || pl->p.dtype == FN_F16; /* small ones */
    if (right && !constant)
        return;
    glance x = {.p = 0, .p1 = 0}, dy = {.p = 0, .p1 = 0};
    for (; d < d1; d++) {
        const int64_t first = fn_first_plane(pl, d);
        double value;
        if (is_padding(pl, d))
            continue;
        if (!right)
            mend_sums(job, d, p1, &x, &dy);
        if (may_be_flat(job, d) && same_gradient(&dy, job, d, p1, &value) &&
            (job->cf.std[d] == 0 || same_elements(&x, job, d, p1, &value)))
            for (int64_t p = first; p < first + pl->per_domain; p++)
                job->cf.marks[p] |= FN_FLAT;
    }
}

/* Batch norm in parts, processes or samples with weights of their own: dy * weight is constant in
 * all of them where it is here, and where the sum over all is what follows from that. */
void fn_flat_everywhere(fn_job *job) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const double rounding = pl->asize == 4 ? 1e-6 : 1e-14;
    glance dy = {.p = 0, .p1 = 0};
    for (int64_t d = 0; d < pl->domains; d++) {
        double value;
        if (!may_be_flat(job, d) || !same_gradient(&dy, job, d, pl->planes, &value))
            continue;
        double weight;
        fn_params_of(cf, cf->weighted ? NULL : job->weight, 1, d % pl->c, 1, &weight);
        const double wanted = value * cf->count, sum = weight * cf->sum_dy[d];
        if (fabs(sum - wanted) <= rounding * fabs(wanted))
            cf->marks[d] |= FN_FLAT;
    }
}

/* ---- y and dx ------------------------------------------------------------------------------*/

/* what columns are computed with */
typedef struct {
    int careful[COLUMNS];
    fn_careful in_double[COLUMNS];
    double floor[COLUMNS], center[COLUMNS], scale[COLUMNS], shift[COLUMNS], a[COLUMNS], b[COLUMNS],
        e[COLUMNS];
    double *dweight, *dbias;
} coefficients;

/* The kernels' arithmetic, in type A, with the kernels' order of operations. */
#define ORDINARY(A)                                                                                \
    const A xc = (A)x[k] - (A)c->center[j];                                                        \
    const A xhat = xc * (A)c->scale[j] + (A)c->shift[j];                                           \
    if (backward && params)                                                                        \
        out[k] = ((A)dy[k] * (A)weight) * (A)c->scale[j] + (xc * (A)c->b[j] + (A)c->e[j]);         \
    else if (backward)                                                                             \
        out[k] = (A)dy[k] * (A)c->a[j] + (xc * (A)c->b[j] + (A)c->e[j]);                           \
    else if (!params)                                                                              \
        out[k] = xhat;                                                                             \
    else if (at->job->bias || pl->col)                                                             \
        out[k] = xhat * (A)weight + (A)bias;                                                       \
    else                                                                                           \
        out[k] = xhat * (A)weight;                                                                 \
    normalized = xhat

static void visit_apply(const walk *at, int64_t row, int64_t n, const double *x, const double *dy,
                        double *out) {
    const fn_plan *pl = &at->job->plan;
    const coefficients *c = at->state;
    const int backward = at->job->dy && !at->job->masking;
    const int64_t first = fn_elem_first(pl, at->p); /* where it is not 0, the planes are rows */
    const int params = pl->elem && (at->job->weight || at->job->bias || c->dweight);
    for (int64_t k = 0; k < n; k++) {
        const int64_t j = k % at->w, r = first + row + k / at->w;
        const double weight = params && at->job->weight ? fn_get(pl, at->job->weight, r) : 1;
        const double bias = params && at->job->bias ? fn_get(pl, at->job->bias, r) : 0;
        double normalized;
        if (c->careful[j]) {
            const fn_careful *w = &c->in_double[j];
            const double xhat = (x[k] - w->mean) / w->sigma;
            normalized = xhat;
            out[k] = backward ? dy[k] * weight * w->scale / w->over + (xhat * w->b + w->e)
                              : (xhat * w->scale + w->shift) * weight + bias;
        } else if (pl->asize == 4) {
            ORDINARY(float);
        } else {
            ORDINARY(double);
        }
        if (at->job->masking)
            out[k] = out[k] > c->floor[j] ? dy[k] : 0;
        else if (!backward && at->job->cf.floor)
            out[k] = c->floor[j] > out[k] ? c->floor[j] : out[k];
        if (c->dweight) {
            c->dweight[r] += dy[k] * normalized;
            c->dbias[r] += dy[k];
        }
    }
}

static void take_coefficients(const fn_job *job, int64_t p, int64_t w, coefficients *c) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const void *from[] = {cf->center, cf->scale, cf->shift, cf->a, cf->b, cf->e};
    double *to[] = {c->center, c->scale, c->shift, c->a, c->b, c->e};
    const int backward = job->dy && !job->masking;
    for (int64_t j = 0; j < w; j++) {
        if (cf->floor)
            c->floor[j] = fn_get(pl, cf->floor, p + j);
        for (int i = 0; i < (backward ? 6 : 3); i++)
            if (i == 0 || i > 2 || !backward || pl->elem) /* else there is no scale and shift */
                to[i][j] = fn_get(pl, from[i], p + j);
        c->careful[j] = cf->marks[p + j] & FN_CAREFUL;
        if (c->careful[j])
            c->in_double[j] = pl->row->careful(cf, p + j, backward);
    }
}

void fn_careful_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t from,
                     int64_t to, double *dweight, double *dbias) {
    const int64_t cols = job->plan.cols;
    coefficients c = {
        .careful = {0}, .scale = {0}, .shift = {0}, .dweight = dweight, .dbias = dbias};
    for (int64_t w; p < p1; p += w) {
        w = fn_min(fn_min(COLUMNS, p1 - p), cols - p % cols);
        take_coefficients(job, p, w, &c);
        for (int64_t seg = g; seg < g1; seg++)
            visit_rows((walk){job, p, w, &c}, seg, from / cols, to / cols, visit_apply);
    }
}
