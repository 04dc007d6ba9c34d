/* Each kernel alone: against plain loops in double, and byte for byte the same for every
 * instruction set, alignment, and way to memory (past the cache, fetched ahead, in place).
 *
 * A kernel is a row of the table `kernels`: what it computes (an operation), to what its
 * coefficients belong (a row, a column, ...), and a call.  There is one plain loop for an
 * operation.  Kernels of the list that have no row are told.
 *
 *     build/test_kernels [ROUNDS] */
#include "plain.h"

/* ---- the kernels ----------------------------------------------------------------------------*/

enum {
    ONE_SEGMENT = 1,
    ONE_ROW = 2,
    DENSE = 4,
    WEIGHTS = 8,
    NEEDS_ONE = 16,
    COMPUTE_SUMS = 32,
    OF_DOUBLES = 128,
    NO_BIAS = 256,
    WIDE_ONLY = 512 /* not of 16 bits */
};
/* the shape as a view */
static fn_view view_of(const problem *p) {
    const shape *s = &p->s;
    if (s->by == COLUMN)
        return (fn_view){s->rows, s->ld, s->cols, s->cols, s->cols, p->fetch, 0, 0};
    const int64_t run = s->by == TILE ? s->period : s->cols;
    return (fn_view){
        s->nseg, s->seg_stride, s->rows * s->cols, run, s->by == BLOCK ? s->period : 1, p->fetch, 0,
        0};
}
#define VIEW (&(fn_view[]){view_of(p)}[0])
#define MATRIX p->s.rows, p->s.ld, p->s.cols
#define CALL(does, name, ...)                                                                      \
    static void call_##does(const fn_kernels *k, const problem *p) { k->name(__VA_ARGS__); }

CALL(moments, moments, p->x, VIEW, p->scratch, p->sum1, p->sum2)
CALL(squares, squares, p->x, VIEW, p->scratch, p->sum2)
CALL(extremes, extremes, p->x, VIEW, p->scratch, p->sum1, p->sum2)
CALL(gradients, gradients, p->x, p->dy, VIEW, p->center, p->weight, p->scratch, p->sum1, p->sum2)
CALL(apply, apply, p->x, NULL, p->y, VIEW, p->center, p->scale, p->shift, NULL, p->hints,
     p->scratch)
CALL(floored, apply, p->x, NULL, p->y, VIEW, p->center, p->scale, p->shift, p->extra, p->hints,
     p->scratch)
CALL(above, above, p->x, p->dy, NULL, p->y, VIEW, p->center, p->scale, p->shift, p->extra, p->hints,
     p->scratch)
CALL(grad_apply, grad_apply, p->x, p->dy, p->y, VIEW, p->center, p->scale, p->slope, p->extra,
     p->hints, p->scratch)
CALL(apply_elem, apply_elem, p->x, p->y, p->s.rows, p->s.ld, p->s.ld, p->s.cols, p->s.by == ROW,
     p->center, p->scale, p->shift, p->weight, p->bias, p->hints)
CALL(grad_apply_elem, grad_apply_elem, p->x, p->dy, p->y, MATRIX, p->s.by == ROW, p->center,
     p->scale, p->shift, p->slope, p->extra, p->weight,
     p->weight || p->s.by == COLUMN ? p->sum1 : NULL,
     p->s.biased || p->s.by == COLUMN ? p->sum2 : NULL, p->hints)
CALL(added, apply, p->x, p->dy, p->y, VIEW, p->center, p->scale, p->shift, p->extra, p->hints,
     p->scratch)
CALL(above_added, above, p->x, p->dy, p->dy, p->y, VIEW, p->center, p->scale, p->shift, p->extra,
     p->hints, p->scratch)
#define ACTIVATE(kind)                                                                             \
    kind, 0, p->x, p->s.weighted ? p->dy : NULL, p->y, p->s.cols, p->hints.stream, NULL
CALL(activate, activate, ACTIVATE(FN_SILU))
CALL(gelu, activate, ACTIVATE(FN_GELU))
CALL(relu6, activate, ACTIVATE(FN_RELU6))
CALL(activate_grad, activate_grad, FN_SILU, 0, p->x, NULL, p->dy, p->y, p->s.cols, p->hints.stream,
     NULL)
CALL(relu6_grad, activate_grad, FN_RELU6, 0, p->x, NULL, p->dy, p->y, p->s.cols, p->hints.stream,
     NULL)
/* both to one place; what is streamed comes last */
CALL(add_to_both, add_to_both, p->x, p->dy, p->y, p->y, p->s.cols, NULL)
CALL(gate, gate, FN_SILU, 0, p->x, p->dy, p->y, p->s.cols, p->hints.stream)
/* dgate, which is written last; x is its dy too */
CALL(gate_grad, gate_grad, FN_SILU, 0, p->x, p->dy, p->x, p->y, p->y, p->s.cols)
CALL(widen, widen, p->x, MATRIX, p->center, p->s.weighted ? p->scale : NULL, p->sum1)
CALL(add_sums, add_sums, p->x, MATRIX, p->center, p->sum1, p->sum2)
CALL(narrow, narrow, p->scale, p->s.cols, p->y)
CALL(limit, limit, p->x, p->s.weighted ? p->dy : NULL, p->y, p->s.cols, p->hints.stream)

typedef struct {
    const char *name;
    operation does;
    sharing by;
    int flags;
    void (*call)(const fn_kernels *, const problem *);
} kernel;
#define KERNEL(name, does, by, flags) {#name, does, by, flags, call_##name}
/* rows, columns, blocks and small planes side by side */
#define OF_VIEWS(name, does)                                                                       \
    KERNEL(name, does, ROW, DENSE), KERNEL(name, does, COLUMN, ONE_SEGMENT),                       \
        KERNEL(name, does, BLOCK, DENSE), KERNEL(name, does, TILE, ONE_ROW)
static const kernel kernels[] = {
    OF_VIEWS(moments, MOMENTS),
    OF_VIEWS(squares, SQUARES),
    KERNEL(extremes, EXTREMES, COLUMN, ONE_SEGMENT),
    OF_VIEWS(gradients, GRADIENT_SUMS),
    KERNEL(gradients, GRADIENT_SUMS, ROW, DENSE | ONE_SEGMENT | WEIGHTS),
    KERNEL(gradients, GRADIENT_SUMS, COLUMN, ONE_SEGMENT | WEIGHTS),
    OF_VIEWS(apply, APPLY),
    OF_VIEWS(floored, FLOORED),
    OF_VIEWS(above, ABOVE),
#define OF_WIDE_VIEWS(name, does)                                                                  \
    KERNEL(name, does, ROW, DENSE | WIDE_ONLY),                                                    \
        KERNEL(name, does, COLUMN, ONE_SEGMENT | WIDE_ONLY),                                       \
        KERNEL(name, does, BLOCK, DENSE | WIDE_ONLY),                                              \
        KERNEL(name, does, TILE, ONE_ROW | WIDE_ONLY)
    OF_WIDE_VIEWS(added, ADDED),
    OF_WIDE_VIEWS(above_added, ABOVE_ADDED),
    OF_VIEWS(grad_apply, GRADIENT),
    KERNEL(apply_elem, APPLY, ROW, ONE_SEGMENT | WEIGHTS | NEEDS_ONE),
    KERNEL(apply_elem, APPLY, COLUMN, ONE_SEGMENT | WEIGHTS),
    KERNEL(grad_apply_elem, GRADIENT_AND_SUMS, ROW,
           ONE_SEGMENT | WEIGHTS | NEEDS_ONE | COMPUTE_SUMS),
    KERNEL(grad_apply_elem, GRADIENT_AND_SUMS, COLUMN, ONE_SEGMENT | WEIGHTS),
    KERNEL(widen, WIDEN, COLUMN, ONE_SEGMENT | WEIGHTS | OF_DOUBLES),
    KERNEL(add_sums, ADD_SUMS, COLUMN, ONE_SEGMENT | OF_DOUBLES),
    KERNEL(narrow, NARROW, ROW, DENSE | ONE_SEGMENT | ONE_ROW | OF_DOUBLES),
#define OF_RUNS(name, does, more) KERNEL(name, does, ROW, DENSE | ONE_SEGMENT | ONE_ROW | more)
    OF_RUNS(activate, SILU, WEIGHTS),
    OF_RUNS(gelu, GELU, WEIGHTS),
    OF_RUNS(relu6, RELU6, WEIGHTS),
    OF_RUNS(activate_grad, SILU_GRAD, 0),
    OF_RUNS(relu6_grad, RELU6_GRAD, 0),
    OF_RUNS(add_to_both, SUM, 0),
    OF_RUNS(gate, GATED, 0),
    OF_RUNS(gate_grad, GATE_GRAD, 0),
    KERNEL(limit, LIMIT, ROW, DENSE | ONE_SEGMENT | ONE_ROW | WEIGHTS),
};
enum { KERNELS = (int)(sizeof kernels / sizeof *kernels) };

/* ---- shapes and numbers ---------------------------------------------------------------------*/

static uint64_t state;
static int64_t below(int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)n);
}
#define ONE_OF(list) (list)[below((int64_t)(sizeof(list) / sizeof *(list)))]
/* around the widths of registers (4 to 16 elements), lines (8 to 32) and lanes (64), or any */
static int64_t some_length(int64_t most) {
    static const int64_t around[] = {1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 9000};
    const int64_t n = below(3) ? ONE_OF(around) + below(3) - 1 : 1 + below(300);
    return n < 1 ? 1 : n > most ? most : n;
}

static shape some_shape(const kernel *k) {
    static const int64_t segments[] = {1, 1, 2, 5, 40}, few[] = {1, 2, 3, 5},
                         many[] = {1, 2, 3, 15, 16, 17, 40, 257, 600, 3000},
                         images[] = {1, 2, 3, 7, 9, 16, 49, 81}, gaps[] = {0, 0, 1, 16};
    shape s = {.by = k->by, .nseg = 1, .rows = 1, .period = 1};
    if (!(k->flags & ONE_SEGMENT))
        s.nseg = k->by == TILE ? ONE_OF(many) : ONE_OF(segments);
    if (!(k->flags & ONE_ROW))
        s.rows = k->by == COLUMN ? ONE_OF(many) : ONE_OF(few);
    if (k->by == BLOCK)
        s.period = 8 << below(2);
    if (k->by == TILE)
        s.period = ONE_OF(images);
    int64_t most = ELEMENTS / s.nseg / s.rows;
    if (k->does == EXTREMES && most > FN_STRIP)
        most = FN_STRIP;
    s.cols = some_length(most);
    s.period = s.period < most ? s.period : most;
    s.cols = s.cols < s.period ? s.period : s.cols / s.period * s.period;
    s.ld = s.cols + (k->flags & DENSE ? 0 : ONE_OF(gaps));
    s.seg_stride = s.rows * s.ld + ONE_OF(gaps);
    s.weighted = k->flags & WEIGHTS ? (int)below(2) : 0;
    s.biased = k->flags & WEIGHTS ? (int)below(2) : 0;
    if (k->flags & NEEDS_ONE && !s.weighted)
        s.biased = 1;
    return s;
}

/* sixteen bits hold it */
static double some_number(fn_dtype t) {
    const double v = (double)(below(255) - 127) / 16;
    return t == FN_F32   ? (float)(v + (double)below(1 << 20) * 1e-7)
           : t == FN_F64 ? v + (double)below(1 << 20) * 1e-7
                         : v;
}
static double some_coefficient(fn_dtype t, double from) {
    const double v = from + (double)below(1 << 20) / (1 << 20);
    return t == FN_F64 ? v : (float)v;
}

static void draw_numbers(const kernel *k, const shape *s, fn_dtype t) {
    const fn_dtype compute = k->flags & OF_DOUBLES ? FN_F64 : t;
    for (int64_t i = 0; i < span(s); i++) {
        x_value[i] = some_number(t);
        dy_value[i] = some_number(t) / 4;
        if (k->does == EXTREMES && below(4) == 0)
            x_value[i] = below(8) ? NAN : below(2) ? INFINITY : -INFINITY;
    }
    const int64_t n = shares(s) > s->cols ? shares(s) : s->cols;
    for (int64_t i = 0; i < n + AROUND; i++) {
        center[i] = some_coefficient(compute, -0.5);
        scale[i] = some_coefficient(compute, 0.5);
        shift[i] = some_coefficient(compute, -1);
        slope[i] = some_coefficient(compute, -0.3);
        extra[i] = some_coefficient(compute, -0.7);
    }
    for (int64_t i = 0; i < others(s); i++) {
        weight[i] = some_coefficient(compute, -0.5);
        bias[i] = some_coefficient(compute, -2);
    }
    for (int64_t i = 0; i < ROOM && (k->does == GRADIENT_AND_SUMS || k->does == ADD_SUMS); i++)
        before1[i] = before2[i] = some_coefficient(compute, 0);
}

/* ---- one call, and what it must give --------------------------------------------------------*/

/* lies at a cache line, but for the elements that it is moved by; lines around it are watched */
typedef struct {
    char *at;
    size_t size;
} buffer;
static buffer bx, bdy, by, bc, ba, bs, bb, be, bw, bbias, b1, b2, bscratch;
static char *before_y;

static buffer new_buffer(void) {
    buffer b = {aligned_alloc(4096, (size_t)ROOM * LARGEST), (size_t)ROOM * LARGEST};
    if (!b.at)
        exit(1);
    return b;
}

static void *coefficients(buffer to, const double *from, int64_t n, fn_dtype compute, int move) {
    char *at = to.at + (size_t)move * (compute == FN_F64 ? 8 : 4);
    for (int64_t i = 0; i < n; i++)
        write_compute(compute, at, i, from[i]);
    return at;
}

/* how a kernel may be called for the same result */
typedef struct {
    const char *name;
    int fetch, stream, move_x, move_y, move_coefficients, in_place;
    int64_t prefetch;
} way;
static const way ways[] = {
    {"plain", 0, 0, 0, 0, 0, 0, 0},           {"streamed", 1, 1, 0, 0, 1, 0, 256},
    {"moved, far", FN_FAR, 1, 1, 5, 0, 0, 0}, {"moved", 0, 0, 7, 3, 3, 0, 64},
    {"over x", 1, 1, 2, 2, 0, 1, 0},          {"over dy", FN_FAR, 0, 3, 3, 2, 2, 128},
};
enum { WAYS = (int)(sizeof ways / sizeof *ways) };

static const char *isa_name, *way_name;
static int failures;
static void fail(const kernel *k, const shape *s, fn_dtype t, const char *what, int64_t i) {
    if (failures++ < 20)
        printf("failed: %s_%s, %s, %s: %s, at %lld; segments %lld (%lld apart), rows %lld (%lld "
               "apart), columns %lld, period %lld, weight %d, bias %d\n",
               k->name, dtypes[t].name, isa_name, way_name, what, (long long)i, (long long)s->nseg,
               (long long)s->seg_stride, (long long)s->rows, (long long)s->ld, (long long)s->cols,
               (long long)s->period, s->weighted, s->biased);
}

/* how many of the sums there are; those behind them stay as they were */
static void counts(const kernel *k, const shape *s, int64_t *first, int64_t *second) {
    const int64_t n = k->does == GRADIENT_AND_SUMS ? others(s) : shares(s);
    *first = *second = n;
    if (k->does == WIDEN) {
        *first = s->rows * s->cols;
        *second = 0;
    } else if (writes_elements(k->does) && k->does != GRADIENT_AND_SUMS) {
        *first = *second = 0;
    } else if (k->does == SQUARES) {
        *first = 0;
    } else if (k->flags & COMPUTE_SUMS) { /* those that are wanted alone */
        *first = s->weighted ? n : 0;
        *second = s->biased ? n : 0;
    }
}

/* Runs the kernel and gathers in `to` all that it wrote; how many bytes. */
static size_t run(const kernel *k, const shape *s, fn_dtype t, const way *w, char *to) {
    const fn_dtype compute = k->flags & OF_DOUBLES ? FN_F64 : t;
    const fn_dtype sums = k->flags & COMPUTE_SUMS ? t : FN_F64;
    const size_t size = dtypes[t].size, wide = sums == FN_F64 ? 8 : 4;
    const int64_t n = span(s), cn = shares(s) > s->cols ? shares(s) : s->cols;
    int64_t n1, n2;
    counts(k, s, &n1, &n2);
    char *x = bx.at + (size_t)w->move_x * size, *dy = bdy.at + (size_t)w->move_x * size;
    char *y = w->in_place == 1   ? x
              : w->in_place == 2 ? dy
                                 : by.at + (size_t)(AROUND + w->move_y) * size;
    memset(by.at, 0xA5, (size_t)(n + 3 * AROUND) * size);
    for (int64_t i = 0; i < n; i++) {
        write_element(t, x, i, x_value[i]);
        write_element(t, dy, i, dy_value[i]);
    }
    for (int64_t i = 0; i < n1 + AROUND; i++)
        write_compute(sums, b1.at, i, before1[i]);
    for (int64_t i = 0; i < n2 + AROUND; i++)
        write_compute(sums, b2.at, i, before2[i]);
    memset(bscratch.at, 0xFF, fn_scratch_bytes(size, dtypes[t].compute, s->rows * s->cols));
    const int m = w->move_coefficients;
    const problem p = {*s,
                       w->fetch,
                       {w->prefetch, w->prefetch, w->stream},
                       x,
                       dy,
                       y,
                       bscratch.at,
                       coefficients(bc, center, cn + AROUND, compute, m),
                       coefficients(ba, scale, cn + AROUND, compute, m),
                       coefficients(bs, shift, cn + AROUND, compute, m),
                       coefficients(bb, slope, cn + AROUND, compute, m),
                       coefficients(be, extra, cn + AROUND, compute, m),
                       s->weighted ? coefficients(bw, weight, others(s), compute, m) : NULL,
                       s->biased ? coefficients(bbias, bias, others(s), compute, m) : NULL,
                       b1.at,
                       b2.at};
    memcpy(before_y, w->in_place ? y : by.at, (size_t)(n + 3 * AROUND) * size);
    k->call(fn_active_kernels(t), &p);

    size_t found = 0;
    if (writes_elements(k->does)) {
        char *was = w->in_place ? before_y : before_y + (size_t)(AROUND + w->move_y) * size;
        EACH(s) {
            memcpy(to + found, y + (size_t)at * size, size);
            found += size;
            memcpy(was + (size_t)at * size, y + (size_t)at * size, size);
        }
    }
    if (memcmp(before_y, w->in_place ? y : by.at, (size_t)(n + 3 * AROUND) * size) != 0)
        fail(k, s, t, "wrote beside its elements", 0);
    memcpy(to + found, b1.at, (size_t)n1 * wide);
    found += (size_t)n1 * wide;
    memcpy(to + found, b2.at, (size_t)n2 * wide);
    found += (size_t)n2 * wide;
    for (int64_t i = 0; i < AROUND; i++)
        if (read_compute(sums, b1.at, n1 + i) != before1[n1 + i] ||
            read_compute(sums, b2.at, n2 + i) != before2[n2 + i])
            fail(k, s, t, "wrote behind its sums", i);
    return found;
}

static int is_close(double got, sum want, double tolerance, double least) {
    return got == want.value || fabs(got - want.value) <= tolerance * want.size + least;
}

/* what was gathered against the plain loops */
static void compare(const kernel *k, const shape *s, fn_dtype t, const char *got) {
    const fn_dtype sums = k->flags & COMPUTE_SUMS ? t : FN_F64;
    int64_t n1, n2, i = 0;
    counts(k, s, &n1, &n2);
    if (writes_elements(k->does)) {
        EACH(s) {
            if (!is_close(read_element(t, got, i), want_y[at], dtypes[t].element, dtypes[t].least))
                fail(k, s, t, "element", at);
            i++;
        }
    }
    got += (size_t)i * dtypes[t].size;
    char *copy = before_y; /* it lies anywhere in what was gathered */
    memcpy(copy, got, (size_t)(n1 + n2) * 8);
    for (i = 0; i < n1 + n2; i++)
        if (!is_close(read_compute(sums, copy, i), i < n1 ? want1[i] : want2[i - n1], dtypes[t].sum,
                      0))
            fail(k, s, t, i < n1 ? "first sum" : "second sum", i < n1 ? i : i - n1);
}

/* A shape: plain loops once, then every instruction set in every way, which give the same bytes. */
static void check(const kernel *k, const shape *s, fn_dtype t, char *first, char *found) {
    draw_numbers(k, s, t);
    plain(k->does, s);
    size_t size = 0;
    for (int i = 0; i < fn_isa_count(); i++) {
        isa_name = fn_isa_name(i);
        if (fn_set_isa(isa_name) != 0)
            fail(k, s, t, "no such instruction set", 0);
        for (int w = 0; w < WAYS; w++) {
            if (ways[w].in_place && !writes_elements(k->does))
                continue;
            way_name = ways[w].name;
            if (i == 0 && w == 0) {
                size = run(k, s, t, ways, first);
                compare(k, s, t, first);
            } else if (run(k, s, t, ways + w, found) != size || memcmp(found, first, size) != 0)
                fail(k, s, t, "other bytes than the first", 0);
        }
    }
}

static int row_of(const char *name) {
    for (int i = 0; i < KERNELS; i++)
        if (strcmp(kernels[i].name, name) == 0)
            return i;
    return -1;
}

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 25;
    buffer *const all[] = {&bx, &bdy, &by,    &bc, &ba, &bs,      &bb,
                           &be, &bw,  &bbias, &b1, &b2, &bscratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        *all[i] = new_buffer();
    before_y = new_buffer().at;
    char *first = malloc((size_t)ROOM * LARGEST * 3), *found = malloc((size_t)ROOM * LARGEST * 3);
    if (!first || !found)
        return 1;
#define HAS_A_ROW(name, args)                                                                      \
    if (row_of(#name) < 0) {                                                                       \
        printf("failed: %s is not tested\n", #name);                                               \
        failures++;                                                                                \
    }
    FN_KERNELS(HAS_A_ROW)
    for (int t = 0; t < FN_DTYPE_COUNT; t++)
        for (int k = 0; k < KERNELS && fn_has_dtype((fn_dtype)t); k++) {
            state = (uint64_t)(t * KERNELS + k); /* a kernel's shapes do not depend on the others */
            const int skipped = kernels[k].flags & WIDE_ONLY && t >= FN_F16;
            for (int round = 0; round < rounds && !skipped; round++) {
                const shape s = some_shape(kernels + k);
                check(kernels + k, &s, (fn_dtype)t, first, found);
            }
        }
    printf("%d kernels, %d shapes of each dtype, %d instruction sets: %s\n", KERNELS, rounds,
           fn_isa_count(), failures ? "failed" : "passed");
    return failures != 0;
}
