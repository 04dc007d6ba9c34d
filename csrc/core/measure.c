/* Moments of features, exact to the last digits of a double whatever the dtype, the size and the
 * order of the array: for statistics that are kept, merged and compared (scalers, tables larger
 * than memory, several processes), and for domains that kernels cannot be trusted with.
 *
 * x is taken as matrices whose columns are features, some rows at a time.  With d = x - reference,
 * in double, the rows' sums of d and d^2 give their mean and m2, which join those of the rows
 * before: sums of two doubles, the second with what rounding took from the first, around the
 * feature's first value, its `origin`.  The reference is the mean so far.  So neither a mean of 1e6
 * standard deviations, nor an outlier, nor a million merges cost digits. */
#include "core/measure.h"

#include "core/workspace.h"
#include "norms/coefs.h"
#include "system/threads.h"

#include <math.h>
#include <stdlib.h>

#define STRIP 1024        /* columns that are measured side by side */
#define ROWS 128          /* that are summed before they join */
#define FLAT 64           /* narrow rows that follow one another are read as longer ones */
#define TILE 4096         /* doubles of what is read twice */
#define CHUNK_ELEMS 65536 /* of a task, or more where there would be too many chunks */
#define MOST_CHUNKS 64
#define CHUNK_TABLE (4 << 20) /* bytes for the moments of all chunks, or one chunk */

/* Group `g` of cols features: in each of nseg segments a matrix of rows rows, ld elements apart,
 * from segment * seg_stride + g * rows * ld on. */
typedef struct {
    const char *x;
    const fn_kernels *k;
    int64_t esize, groups, nseg, seg_stride, rows, cols, ld;
    int skip_nan;
    const double *weight; /* of each row, or NULL */
    double heavy;         /* half the largest of them, */
    int64_t first_heavy;  /* and the first row of that weight */
} view;

static const char *row_of(const view *v, int64_t group, int64_t c, int64_t i) {
    const int64_t seg = i / v->rows, r = i % v->rows;
    return v->x + (seg * v->seg_stride + (group * v->rows + r) * v->ld + c) * v->esize;
}

/* of neighbouring features: arrays of their fields */
typedef struct {
    double *count, *mean, *mean_low, *m2, *m2_low; /* means are relative to the origin */
} sums;
enum { FIELDS = 5 };
static sums sums_at(double *fields, int64_t stride, int64_t i) {
    double *f = fields + i;
    return (sums){f, f + stride, f + 2 * stride, f + 3 * stride, f + 4 * stride};
}

/* a + b, and what rounding took from it */
static inline double two_sum(double a, double b, double *low) {
    const double s = a + b, t = s - a;
    *low = (a - (s - t)) + (b - t);
    return s;
}

/* Chan, Golub & LeVeque (1979), with sums of two doubles: the moments (n, mean + mean_low,
 * m2 + m2_low) of feature i join `to`. */
static inline void join(sums to, int64_t i, double n, double mean, double mean_low, double m2,
                        double m2_low) {
    const double total = to.count[i] + n, part = total > 0 ? n / total : 0;
    const double delta = (mean - to.mean[i]) + (mean_low - to.mean_low[i]);
    double low, low2;
    to.mean[i] = two_sum(to.mean[i], to.mean_low[i] + delta * part, &low);
    to.mean_low[i] = low;
    to.m2[i] = two_sum(to.m2[i], m2, &low);
    to.m2[i] = two_sum(to.m2[i], delta * delta * (to.count[i] * part), &low2);
    to.m2_low[i] += m2_low + (low + low2);
    to.count[i] = total;
}

/* What a task has in its scratch. */
typedef struct {
    double *reference, *sum, *square; /* repeated as often as FLAT needs */
    double *count, *mean, *m2;
    double *tile;
    int64_t elems; /* of the tile */
} room;
static room room_of(char *scratch) {
    enum { EACH = STRIP + FLAT }; /* with room for whole vectors */
    double *d = (double *)scratch;
    return (room){
        d, d + EACH, d + 2 * EACH, d + 3 * EACH, d + 4 * EACH, d + 5 * EACH, d + 6 * EACH, TILE};
}
static int64_t room_bytes(void) { return (TILE + 6 * (STRIP + FLAT)) * (int64_t)sizeof(double); }

/* ---- rows that are read twice --------------------------------------------------------------
 * Those that have weights, those with values that do not count, and what is measured in a unit. */

static void count_tile(const view *v, int64_t rows, int64_t w, const double *weight, room at) {
    double *sum = at.sum, *left = at.square;
    for (int64_t c = 0; c < w; c++)
        at.count[c] = at.m2[c] = sum[c] = left[c] = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < w; c++) {
            const double x = at.tile[r * w + c];
            const int counts = x == x || !v->skip_nan;
            at.count[c] += counts ? (weight ? weight[r] : 1) : 0;
            sum[c] += counts ? (weight ? weight[r] : 1) * x : 0;
        }
    for (int64_t c = 0; c < w; c++)
        at.mean[c] = at.count[c] > 0 ? sum[c] / at.count[c] : 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < w; c++) {
            const double x = at.tile[r * w + c], d = x - at.mean[c];
            const int counts = x == x || !v->skip_nan;
            const double part = counts ? (weight ? weight[r] : 1) * d : 0;
            left[c] += part;
            at.m2[c] += counts ? part * d : 0;
        }
    for (int64_t c = 0; c < w; c++) {
        const double rest = at.count[c] > 0 ? left[c] / at.count[c] : 0;
        at.mean[c] += rest; /* what rounding took from it */
        at.m2[c] -= rest * left[c];
    }
}

/* Rows [i, end) of columns [c, c + w) of a group join `to`, x * unit - origin. */
static void read_twice(const view *v, int64_t group, int64_t c, int64_t w, int64_t i, int64_t end,
                       const double *origin, const double *unit, room at, sums to) {
    for (int64_t n; i < end; i += n) {
        n = fn_min(fn_min(fn_max(1, at.elems / w), v->rows - i % v->rows), end - i);
        v->k->widen(row_of(v, group, c, i), n, v->ld, w, origin, unit, at.tile);
        count_tile(v, n, w, v->weight ? v->weight + i : NULL, at);
        for (int64_t j = 0; j < w; j++)
            join(to, j, at.count[j], at.mean[j], 0, at.m2[j], 0);
    }
}

/* ---- rows that are read once ---------------------------------------------------------------*/

/* Sums of d and d^2 over rows [i, end), to the first w of at.sum and at.square. */
static void sum_rows(const view *v, int64_t group, int64_t c, int64_t w, int64_t fold, int64_t i,
                     int64_t end, room at) {
    const int64_t wide = fold * w;
    for (int64_t j = 0; j < wide; j++)
        at.sum[j] = at.square[j] = 0;
    for (int64_t n; i < end; i += n) {
        n = fn_min(v->rows - i % v->rows, end - i);
        const char *x = row_of(v, group, c, i);
        v->k->add_sums(x, n / fold, fold * v->ld, wide, at.reference, at.sum, at.square);
        v->k->add_sums(x + n / fold * fold * v->ld * v->esize, 1, v->ld, n % fold * w, at.reference,
                       at.sum, at.square);
    }
    for (int64_t j = w; j < wide; j++) {
        at.sum[j % w] += at.sum[j];
        at.square[j % w] += at.square[j];
    }
}

/* at.reference becomes row i, or the origin where that is not finite */
static void refer_to_row(const view *v, int64_t group, int64_t c, int64_t w, int64_t i,
                         const double *origin, room at) {
    memset(at.sum, 0, (size_t)w * sizeof *at.sum);
    v->k->widen(row_of(v, group, c, i), 1, v->ld, w, at.sum, NULL, at.reference);
    for (int64_t j = 0; j < w; j++)
        at.reference[j] = isfinite(at.reference[j]) ? at.reference[j] : origin[j];
}

/* Rows [i, end) of columns [c, c + w) of a group join `to`; w is STRIP at most.
 *
 * Few rows first, as the first may be an outlier: of n rows around a reference that is D off, m2 is
 * the difference of numbers of n D^2, and that of all rows is D^2 at least.  Each block has at most
 * GROWTH times the rows before it, so that the mean so far is a reference that loses no digits. */
enum { FIRST_ROWS = 8, GROWTH = 8 };
static void read_once(const view *v, int64_t group, int64_t c, int64_t w, int64_t i, int64_t end,
                      const double *origin, room at, sums to) {
    const int64_t fold = w == v->ld ? fn_max(1, FLAT / w) : 1;
    const int64_t start = i;
    for (int64_t k; i < end; i = k) {
        const int64_t most = i == start ? FIRST_ROWS : GROWTH * (i - start);
        k = fn_min(i + fn_min(ROWS * fold, most), end);
        if (i == start)
            refer_to_row(v, group, c, w, i, origin, at);
        for (int64_t j = i == start ? w : 0; j < fold * w; j++)
            at.reference[j] = i == start ? at.reference[j - w] : origin[j % w] + to.mean[j % w];
        sum_rows(v, group, c, w, fold, i, k, at);
        int counts = 0;
        for (int64_t j = 0; j < w && v->skip_nan; j++)
            counts |= !isfinite(at.square[j]);
        if (counts) {
            read_twice(v, group, c, w, i, k, origin, NULL, at, to);
            continue;
        }
        const double n = (double)(k - i);
        for (int64_t j = 0; j < w; j++) {
            const double mean = at.sum[j] / n, m2 = at.square[j] - at.sum[j] * mean;
            join(to, j, n, (at.reference[j] - origin[j]) + mean, 0, m2 > 0 ? m2 : m2 * 0, 0);
        }
    }
}

static void clear(double *fields, int64_t stride, int64_t i, int64_t n) {
    for (int f = 0; f < FIELDS; f++)
        memset(fields + f * stride + i, 0, (size_t)n * sizeof *fields);
}

/* ---- one feature, with a unit -------------------------------------------------------------*/

/* element i of a feature, in double */
static double element(const view *v, int64_t group, int64_t c, int64_t i) {
    static const double zero = 0;
    double value;
    v->k->widen(row_of(v, group, c, i), 1, 1, 1, &zero, NULL, &value);
    return value;
}

/* the first value from row i on that is no NaN, of a row of such a weight; NaN where there is none
 */
static double value_of_weight(const view *v, int64_t group, int64_t c, int64_t i, double least) {
    double value = NAN;
    for (; i < v->nseg * v->rows && value != value; i++)
        if (!v->weight || v->weight[i] >= least)
            value = element(v, group, c, i);
    return value;
}

/* A feature's origin: the first value that is no NaN, where that is finite; else 0.  Not one of a
 * small weight, which may be far from all that counts. */
static double first_value(const view *v, int64_t group, int64_t c) {
    double value = value_of_weight(v, group, c, v->first_heavy, v->heavy);
    if (value != value && v->weight)
        value = value_of_weight(v, group, c, 0, 0x1p-1074); /* any above 0 */
    return isfinite(value) ? value : 0;
}

/* the least and the largest value of columns [c, c + w) of a group, w <= LOOK, NaN passed over */
#define LOOK 64
static void extremes(const view *v, int64_t group, int64_t c, int64_t w, char *scratch, double *low,
                     double *high) {
    double lo[LOOK], hi[LOOK];
    for (int64_t i = 0; i < v->nseg * v->rows; i += v->rows) {
        v->k->extremes(row_of(v, group, c, i), &(fn_view){v->rows, v->ld, w, w, w, 0, 0, 0},
                       scratch, lo, hi);
        for (int64_t j = 0; j < w; j++) {
            low[j] = i == 0 || lo[j] < low[j] ? lo[j] : low[j];
            high[j] = i == 0 || hi[j] > high[j] ? hi[j] : high[j];
        }
    }
}

/* The squares of float64 beyond 1e154 and below 1e-162 are no doubles.  Such a feature, of values
 * from `low` to `high`, is measured in units of 2^exponent, the size of its largest deviation from
 * the origin: the exponent; 0 where squares are doubles, or nothing has a finite size. */
static int unit_exponent(double low, double high, double origin) {
    const fn_range range = fn_range_of(sizeof(double));
    const double above = high / 2 - origin / 2, below = origin / 2 - low / 2;
    const double half = above > below ? above : below;
    int exponent = 0;
    if (half > 0 && half <= 0x1p1023 && !(half > range.std_low && half < range.std_high))
        frexp(half, &exponent);
    return exponent < -1000 ? -1000 : exponent;
}

static int is_extreme(double count, double m2, double origin) {
    const fn_range range = fn_range_of(sizeof(double));
    if (m2 == 0)
        return count > 0 && fabs(origin) < range.zero;
    return !(m2 >= count * range.std_low * range.std_low &&
             m2 <= count * range.std_high * range.std_high);
}

/* (count, mean, mean_low, m2, m2_low) of a feature, in units of 2^exponent; on the stack, so that
 * it can be called where there is no other memory */
#define SMALL_TILE 512
static void measure_feature(const view *v, int64_t group, int64_t c, double origin, int exponent,
                            double *feature) {
    const double unit = ldexp(1, -exponent), scaled = origin * unit;
    double tile[SMALL_TILE], sum, square, count, mean, m2;
    const room at = {NULL, &sum, &square, &count, &mean, &m2, tile, SMALL_TILE};
    clear(feature, 1, 0, 1);
    read_twice(v, group, c, 1, 0, v->nseg * v->rows, &scaled, exponent ? &unit : NULL, at,
               sums_at(feature, 1, 0));
}

/* ---- all features --------------------------------------------------------------------------*/

typedef struct {
    fn_team team;
    view v;
    int64_t strips, chunks, chunk_rows, each; /* each: groups of a task, where they are small */
    double *origins, *low, *high, *tables;    /* of all features; FIELDS of them for each chunk */
} measure_job;

static int64_t features(const measure_job *m) { return m->v.groups * m->v.cols; }

static void task_origins(const measure_job *m, int64_t i, char *scratch) {
    (void)scratch;
    for (int64_t g = i * m->each; g < fn_min((i + 1) * m->each, m->v.groups); g++)
        for (int64_t c = 0; c < m->v.cols; c++)
            m->origins[g * m->v.cols + c] = first_value(&m->v, g, c);
}

static void task_measure(const measure_job *m, int64_t i, char *scratch) {
    const view *v = &m->v;
    const int64_t k = i % m->chunks, strip = i / m->chunks % m->strips;
    const int64_t first = i / m->chunks / m->strips * m->each, F = features(m);
    const int64_t c = strip * STRIP, w = fn_min(STRIP, v->cols - c), rows = v->nseg * v->rows;
    const int64_t r = k * m->chunk_rows, end = fn_min(r + m->chunk_rows, rows);
    double *table = m->tables + k * FIELDS * F;
    for (int64_t g = first; g < fn_min(first + m->each, v->groups); g++) {
        const int64_t at = g * v->cols + c;
        clear(table, F, at, w);
        const room own = room_of(scratch);
        const sums to = sums_at(table, F, at);
        if (v->weight)
            read_twice(v, g, c, w, r, end, m->origins + at, NULL, own, to);
        else
            read_once(v, g, c, w, r, end, m->origins + at, own, to);
    }
}

/* the chunks, in order, to the first */
static void join_chunks(measure_job *m) {
    const int64_t F = features(m);
    for (int64_t k = 1; k < m->chunks; k++) {
        const sums from = sums_at(m->tables + k * FIELDS * F, F, 0), to = sums_at(m->tables, F, 0);
        for (int64_t i = 0; i < F; i++)
            join(to, i, from.count[i], from.mean[i], from.mean_low[i], from.m2[i], from.m2_low[i]);
    }
}

/* LOOK columns of each of some groups: their extremes, where one of them is extreme */
static void task_extremes(const measure_job *m, int64_t i, char *scratch) {
    const view *v = &m->v;
    const int64_t looks = fn_ceil_div(v->cols, LOOK), first = i / looks * m->each;
    const int64_t c = i % looks * LOOK, w = fn_min(LOOK, v->cols - c);
    for (int64_t g = first; g < fn_min(first + m->each, v->groups); g++) {
        const int64_t at = g * v->cols + c;
        const sums s = sums_at(m->tables, features(m), at);
        int extreme = 0;
        for (int64_t j = 0; j < w; j++)
            extreme |= is_extreme(s.count[j], s.m2[j], m->origins[at + j]);
        if (extreme)
            extremes(v, g, c, w, scratch, m->low + at, m->high + at);
    }
}

/* what is extreme is measured again */
static void put_statistics(measure_job *m, double *statistics) {
    const view *v = &m->v;
    const int64_t F = features(m);
    for (int64_t i = 0; i < F; i++) {
        const sums s = sums_at(m->tables, F, i);
        double one[FIELDS] = {*s.count, *s.mean, *s.mean_low, *s.m2, *s.m2_low};
        int exponent = 0;
        if (v->esize == sizeof(double) && is_extreme(one[0], one[3], m->origins[i]))
            exponent = unit_exponent(m->low[i], m->high[i], m->origins[i]);
        if (exponent)
            measure_feature(v, i / v->cols, i % v->cols, m->origins[i], exponent, one);
        double low;
        const double mean = two_sum(m->origins[i], ldexp(one[1], exponent), &low);
        statistics[i] = one[0];
        statistics[F + i] = two_sum(mean, low + ldexp(one[2], exponent), &statistics[2 * F + i]);
        statistics[3 * F + i] = one[3] + one[4];
        statistics[4 * F + i] = exponent;
    }
}

typedef struct {
    const measure_job *m;
    void (*task)(const measure_job *, int64_t, char *);
} work;

static void take_share(void *context, fn_share *share, char *scratch) {
    const work *of = context;
    for (int64_t i; (i = fn_next(share)) >= 0;)
        of->task(of->m, i, scratch);
}

static void for_all(const measure_job *m, int64_t count,
                    void (*task)(const measure_job *, int64_t, char *)) {
    work of = {m, task};
    fn_parallel(&m->team, count, 0, take_share, &of);
}

static view view_of(const fn_plan *pl, const char *x) {
    /* a group is what lies side by side: a matrix, a block, a domain in row form */
    const int64_t rows = pl->cols > 1 ? pl->s : pl->s * pl->per_domain;
    const int64_t groups = pl->cols > 1 ? pl->planes / pl->cols : pl->domains;
    return (view){.x = x,
                  .k = pl->k,
                  .esize = (int64_t)pl->esize,
                  .groups = groups,
                  .nseg = pl->nseg,
                  .seg_stride = pl->seg_stride,
                  .rows = rows,
                  .cols = pl->cols,
                  .ld = pl->ld};
}

static void cut(measure_job *m) {
    const view *v = &m->v;
    const int64_t rows = v->nseg * v->rows, F = features(m);
    const int64_t most = fn_max(1, fn_min(MOST_CHUNKS, CHUNK_TABLE / (FIELDS * 8 * F)));
    m->strips = fn_ceil_div(v->cols, STRIP);
    m->chunk_rows =
        fn_max(fn_max(1, CHUNK_ELEMS / fn_min(v->cols, STRIP)), fn_ceil_div(rows, most));
    m->chunks = fn_ceil_div(rows, m->chunk_rows);
    m->each = fn_max(1, CHUNK_ELEMS / (rows * v->cols));
}

fn_status fn_measure_features(const fn_plan *pl, const void *x, int threads, int skip_nan,
                              const double *weight, double *statistics) {
    measure_job m = {.v = view_of(pl, x)};
    m.v.skip_nan = skip_nan;
    m.v.weight = weight;
    for (int64_t i = 0; i < m.v.nseg * m.v.rows && weight; i++)
        m.v.heavy = fmax(m.v.heavy, weight[i] / 2);
    while (weight && weight[m.v.first_heavy] < m.v.heavy)
        m.v.first_heavy++;
    m.team = (fn_team){.threads = threads, .scratch_bytes = room_bytes()};
    cut(&m);
    const int64_t F = features(&m), team = fn_team_bytes(&m.team);
    char *w = fn_allocate(team + (3 + m.chunks * FIELDS) * F * (int64_t)sizeof(double));
    if (!w)
        return FN_NO_MEMORY;
    char *at = fn_line(w);
    m.team.memory = at;
    m.origins = (double *)(at + team);
    m.low = m.origins + F;
    m.high = m.low + F;
    m.tables = m.high + F;
    const int64_t tasks = fn_ceil_div(m.v.groups, m.each);
    for_all(&m, tasks, task_origins);
    for_all(&m, tasks * m.strips * m.chunks, task_measure);
    join_chunks(&m);
    if (m.v.esize == sizeof(double))
        for_all(&m, tasks * fn_ceil_div(m.v.cols, LOOK), task_extremes);
    put_statistics(&m, statistics);
    free(w);
    return FN_OK;
}

void fn_exact_moments(const fn_plan *pl, const void *x, char *scratch, int64_t d, double *mean,
                      double *m2, int *exponent) {
    const view v = view_of(pl, x);
    const int64_t columns = pl->cols > 1 ? pl->per_domain : 1;
    const int64_t first = pl->cols > 1 ? fn_first_plane(pl, d) : d;
    const double origin = first_value(&v, first / pl->cols, first % pl->cols);
    double total[FIELDS] = {0}, one[FIELDS];
    const sums all = sums_at(total, 1, 0);
    *exponent = 0;
    /* first as if the domain had no exponent; a domain that leaves the range all columns again */
    for (int pass = 0; pass < 2; pass++) {
        clear(total, 1, 0, 1);
        for (int64_t c = first; c < first + columns; c++) {
            measure_feature(&v, c / pl->cols, c % pl->cols, origin, *exponent, one);
            join(all, 0, one[0], one[1], one[2], one[3], one[4]);
        }
        if (pass || pl->esize < sizeof(double) || !is_extreme(total[0], total[3], origin))
            break;
        double low = INFINITY, high = -INFINITY;
        for (int64_t c = first; c < first + columns; c++) {
            double least = 0, most = 0;
            extremes(&v, c / pl->cols, c % pl->cols, 1, scratch, &least, &most);
            low = least < low ? least : low;
            high = most > high ? most : high;
        }
        *exponent = unit_exponent(low, high, origin);
        if (*exponent == 0)
            break;
    }
    *mean = origin + ldexp(total[1], *exponent);
    *m2 = total[3] + total[4];
}
