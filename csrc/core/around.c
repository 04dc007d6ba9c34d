/* See around.h. */
#include "core/around.h"

#include "core/careful.h"
#include "core/elements.h"
#include "core/place.h"
#include "core/steps.h"
#include "core/traffic.h"
#include "core/turns.h"

#include <math.h>

#define TILE_BYTES (16 * 1024)
enum { NORMALIZED, ACTIVE, GATED, UNWANTED, TILES }; /* the tiles of a thread */

/* ---- memory --------------------------------------------------------------------------------*/

static char *tile(const fn_job *job, int which) {
    return job->scratch + job->tiles + which * TILE_BYTES;
}

/* Domains that lie behind one another have the gradient of what the normalizer gave in memory of
 * the thread too, so much at a time; in others it takes the place of dx. */
static int64_t own_bytes(const fn_plan *pl) {
    const int64_t domain = pl->count * (int64_t)pl->esize;
    const int64_t most = fn_max(FN_STEP_BYTES, fn_max(pl->unit_domains, 4) * domain);
    return pl->cols == 1 && pl->nseg == 1 ? fn_min(most, fn_l2_bytes() / 2) : 0;
}

int64_t fn_around_bytes(const fn_plan *plan, const fn_around *around) {
    return around ? TILES * TILE_BYTES + own_bytes(plan) + FN_LINE + fn_turn_bytes(around) : 0;
}

static void write_y(fn_job *job, const fn_piece *at, int stream);
static void take_grads(fn_job *job, const fn_piece *at, int stream);
static void add_dsum(fn_job *job, const fn_piece *at, int stream);

int fn_is_of_y(const fn_job *job) { return job->after == write_y || job->after == take_grads; }

/* Relu, a shortcut or both are done by the kernel that writes, in registers; not of 16 bits, as
 * point.inc says. */
static int is_in_kernel(const fn_job *job, int backward) {
    const fn_around *a = job->around;
    const fn_plan *pl = &job->plan;
    const int relu = a->activation == FN_RELU, identity = a->activation == FN_IDENTITY;
    if (pl->esize == 2 || a->gate || job->params.tau ||
        (pl->elem && (job->weight || job->params.bias)) || (a->residual && !fn_needs_moments(pl)))
        return 0;
    return relu || (identity && a->shortcut && !backward);
}
/* what y is at least, for each plane */
void fn_take_floor(fn_job *job, fn_workspace *from) {
    if (!job->around || !job->in_kernel)
        return;
    job->floor = fn_take(from, job->plan.planes, job->plan.asize);
    for (int64_t p = 0; p < job->plan.planes && job->floor; p++)
        fn_put(&job->plan, job->floor, p, job->around->activation == FN_RELU ? 0 : -INFINITY);
}

static char *from_byte(const void *array, int64_t start) {
    return array ? (char *)array + start : NULL;
}

void fn_start_around(fn_job *job, const fn_around *around, const fn_grads *grads, int64_t start) {
    const int activates = around->activation != FN_IDENTITY || around->gate;
    job->around = around;
    job->tiles = fn_ceil_div(fn_plan_scratch(&job->plan), FN_LINE) * FN_LINE;
    job->turns =
        job->tiles + fn_ceil_div(TILES * TILE_BYTES + own_bytes(&job->plan), FN_LINE) * FN_LINE;
    job->by_turns = fn_goes_by_turns(&job->plan, around, job->dy != NULL);
    if (job->by_turns)
        job->first_row = start / (job->plan.s * (int64_t)job->plan.esize);
    job->beside = (fn_beside){.shortcut = from_byte(around->shortcut, start),
                              .gate = from_byte(around->gate, start),
                              .x = around->x_rows ? job->x - start : job->x};
    fn_beside *b = &job->beside;
    if (around->dy_rows)
        job->dy -= start;
    if (around->out_rows)
        job->out -= start;
    job->in_kernel = is_in_kernel(job, job->dy != NULL);
    if (job->dy) {
        b->dsum = from_byte(around->dsum, start);
        b->dshortcut = from_byte(grads->shortcut, start);
        b->dgate = from_byte(grads->gate, start);
        const int ahead = job->plan.row->channel_statistics || job->params.tau;
        if (activates || b->dshortcut)
            job->grads_before = ahead ? FN_AHEAD : FN_BY_CHUNKS;
        job->after = b->dsum ? add_dsum : NULL;
        return;
    }
    b->residual = from_byte(around->residual, start);
    b->sum = from_byte(around->sum, start);
    job->x = b->residual ? b->sum : job->x;
    if (activates || b->shortcut || (b->residual && !fn_needs_moments(&job->plan)))
        job->after = write_y;
}

/* ---- what comes before ---------------------------------------------------------------------*/

static void add_rows(const fn_job *job, int64_t i, int64_t rows, int64_t stride, int64_t len) {
    const fn_beside *b = &job->beside;
    const int64_t size = (int64_t)job->plan.esize;
    if (stride == len) {
        len *= rows;
        rows = 1;
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = (i + r * stride) * size;
        job->plan.k->activate(FN_IDENTITY, 0, b->x + at, b->residual + at, b->sum + at, len, 0,
                              NULL);
    }
}

void fn_add_residual(const fn_job *job, int64_t i, const fn_view *view) {
    if (job->beside.residual && !job->by_turns)
        add_rows(job, i, view->rows, view->stride, view->len);
}

/* ---- what comes after ----------------------------------------------------------------------
 * of one piece:  y = activation(u + shortcut) * gate_activation(gate),  or  dx = u + dsum */

static const char *row_of(const fn_job *job, const char *array, const fn_piece *at, int64_t r) {
    return array ? array + (at->i + r * at->stride) * (int64_t)job->plan.esize : NULL;
}

/* what is read next, where it comes from memory: it is fetched meanwhile */
static const char *next_of(const fn_job *job, const fn_piece *at, int64_t r) {
    return job->use.fetch && !job->by_turns ? row_of(job, job->x, at, at->rows + r) : NULL;
}
/* how far behind x the array lies that is read with what the kernel gives: it is fetched while x is
 * read */
static int64_t beside_x(const fn_job *job) {
    const char *other = job->after == take_grads ? job->dy
                        : job->dy                ? NULL
                        : job->beside.shortcut   ? job->beside.shortcut
                                                 : job->beside.gate;
    return job->use.fetch && !job->by_turns && other ? other - job->x : 0;
}

static void write_y(fn_job *job, const fn_piece *at, int stream) {
    const fn_around *a = job->around;
    const fn_beside *b = &job->beside;
    const fn_kernels *k = job->plan.k;
    for (int64_t r = 0; r < at->rows; r++) {
        const char *u = at->from + r * at->from_stride * (int64_t)job->plan.esize;
        const char *next = next_of(job, at, r);
        char *y = (char *)row_of(job, job->out, at, r), *to = a->gate ? tile(job, ACTIVE) : y;
        k->activate(a->activation, a->slope, u, row_of(job, b->shortcut, at, r), to, at->len,
                    stream && !a->gate, next);
        if (a->gate)
            k->gate(a->gate_activation, a->slope, to, row_of(job, b->gate, at, r), y, at->len,
                    stream);
    }
}

static void add_dsum(fn_job *job, const fn_piece *at, int stream) {
    for (int64_t r = 0; r < at->rows; r++)
        job->plan.k->activate(FN_IDENTITY, 0,
                              at->from + r * at->from_stride * (int64_t)job->plan.esize,
                              row_of(job, job->beside.dsum, at, r),
                              (char *)row_of(job, job->out, at, r), at->len, stream, NULL);
}

/* gradients of the gate and of u + shortcut, from dy and u */
static void take_grads(fn_job *job, const fn_piece *at, int stream) {
    const fn_around *a = job->around;
    const fn_beside *b = &job->beside;
    const fn_kernels *k = job->plan.k;
    for (int64_t r = 0; r < at->rows; r++) {
        const char *u = at->from + r * at->from_stride * (int64_t)job->plan.esize;
        const char *dy = row_of(job, job->dy, at, r), *z = row_of(job, b->shortcut, at, r);
        if (a->gate) {
            char *dgate = (char *)row_of(job, b->dgate, at, r);
            k->activate(a->activation, a->slope, u, z, tile(job, ACTIVE), at->len, 0, NULL);
            k->gate_grad(a->gate_activation, a->slope, tile(job, ACTIVE),
                         row_of(job, b->gate, at, r), dy, tile(job, GATED),
                         dgate ? dgate : tile(job, UNWANTED), at->len);
            dy = tile(job, GATED);
        }
        k->activate_grad(a->activation, a->slope, u, z, dy, (char *)row_of(job, job->before, at, r),
                         at->len, stream, next_of(job, at, r));
    }
}

void fn_after_in_place(fn_job *job, int64_t i, int64_t rows, int64_t len, int64_t stride) {
    const fn_piece at = {i, rows, len, stride, job->out + i * (int64_t)job->plan.esize, stride};
    job->after(job, &at, 0);
}

char *fn_tile(const fn_job *job, int64_t i, int64_t n) {
    const int64_t size = (int64_t)job->plan.esize;
    return n * size > TILE_BYTES
               ? NULL
               : (char *)((uintptr_t)tile(job, NORMALIZED) - (uintptr_t)(i * size));
}
void fn_after_tile(fn_job *job, int64_t i, int64_t n, int stream) {
    const fn_piece at = {i, 1, n, n, tile(job, NORMALIZED), n};
    job->after(job, &at, stream);
}

/* ---- by pieces -----------------------------------------------------------------------------*/

/* what a job is while a kernel writes a piece to a tile, as if that were the output */
typedef struct {
    void (*after)(fn_job *, const fn_piece *, int);
    char *out;
    const char *dy;
    void *bias;
} kept;

static kept to_tile(fn_job *job, fn_piece *at) {
    const kept was = {job->after, job->out, job->dy, job->bias};
    if (job->beside.residual && !fn_needs_moments(&job->plan))
        add_rows(job, at->i, at->rows, at->stride, at->len);
    at->from = tile(job, NORMALIZED);
    at->from_stride = job->out_ld = at->len;
    job->out = fn_tile(job, at->i, at->len);
    if (job->after == take_grads) { /* which asks for what forward gave */
        job->dy = NULL;
        job->bias = (void *)job->params.bias;
    }
    job->after = NULL;
    return was;
}
static void from_tile(fn_job *job, kept was, const fn_piece *at, int stream) {
    job->after = was.after;
    job->out = was.out;
    job->dy = was.dy;
    job->bias = was.bias;
    job->out_ld = job->plan.ld;
    job->after(job, at, stream);
}

void fn_after_rows(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                   int64_t len, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t most = TILE_BYTES / (int64_t)pl->esize, part = fn_min(len, most);
    const int64_t planes = fn_max(1, most / len) * pl->cols;
    for (; g < g1; g++)
        for (int64_t q = p, q1; q < p1; q = q1) {
            q1 = fn_min(q + planes, p1);
            for (int64_t o = 0; o < len; o += part) {
                const int64_t n = fn_min(part, len - o);
                fn_piece at = {.i = fn_plane_at(pl, q, g) + off + o, .rows = 1};
                at.len = at.stride = (q1 - q) / pl->cols * n;
                const int64_t beside = beside_x(job);
                const kept was = to_tile(job, &at);
                fn_place_rows(job, q, q1, g, g + 1, off + o, n, (fn_hints){beside, 0, 0});
                from_tile(job, was, &at, hints.stream);
            }
        }
}

void fn_after_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t most = TILE_BYTES / (int64_t)pl->esize, wide = fn_min(p1 - p, most);
    /* careful.c writes rows of its own where they belong in x */
    const int64_t rows = fn_any_careful(&job->cf, p, p1) ? 1 : fn_max(1, most / wide);
    for (; r < r1; r += rows)
        for (int64_t q = p; q < p1; q += wide) {
            const int64_t q1 = fn_min(q + wide, p1), end = fn_min(r + rows, r1);
            fn_piece at = {fn_row_at(pl, q, r), end - r, q1 - q, pl->ld, NULL, 0};
            const int64_t beside = beside_x(job);
            const kept was = to_tile(job, &at);
            fn_place_columns(job, q, q1, r, end, (fn_hints){beside, 0, 0});
            if (at.len == pl->ld) { /* one run */
                at.len = at.stride = at.rows * at.len;
                at.rows = 1;
            }
            from_tile(job, was, &at, hints.stream);
        }
}

/* ---- backward ------------------------------------------------------------------------------*/

void fn_make_rows_before(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                         int64_t len) {
    void (*const after)(fn_job *, const fn_piece *, int) = job->after;
    job->after = take_grads;
    fn_place_rows(job, p, p1, g, g1, off, len, (fn_hints){0, 0, 0});
    job->after = after;
}
void fn_make_columns_before(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1) {
    void (*const after)(fn_job *, const fn_piece *, int) = job->after;
    job->after = take_grads;
    fn_place_columns(job, p, p1, r, r1, (fn_hints){0, 0, 0});
    job->after = after;
}

/* of planes [p, p1), or of all */
static char *place_before(const fn_job *job, int64_t p, int64_t p1) {
    const fn_plan *pl = &job->plan;
    const int64_t size = (int64_t)pl->esize;
    if (job->beside.dshortcut)
        return job->beside.dshortcut;
    if ((p1 - p) * pl->s * size > own_bytes(pl))
        return job->out;
    return (char *)((uintptr_t)tile(job, TILES) - (uintptr_t)(p * pl->s * size));
}

void fn_begin_grads_before(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    job->before = place_before(job, fn_first_plane(pl, d), fn_first_plane(pl, d1));
    fn_forward_coefficients_of(job, d, d1);
}
void fn_end_grads_before(fn_job *job, int64_t d, int64_t d1) {
    job->dy = job->before;
    fn_centers(&job->cf, d, d1);
}
void fn_begin_all_grads_before(fn_job *job) {
    job->before = job->beside.dshortcut ? job->beside.dshortcut : job->out;
    fn_all_forward_coefficients(job);
}
void fn_end_all_grads_before(fn_job *job) {
    job->dy = job->before;
    fn_all_centers(job);
}

void fn_grads_before(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    void (*const after)(fn_job *, const fn_piece *, int) = job->after;
    fn_begin_grads_before(job, d, d1);
    job->after = take_grads;
    fn_place_unit(job, fn_first_plane(pl, d), fn_first_plane(pl, d1), (fn_hints){0, 0, 0});
    job->after = after;
    fn_end_grads_before(job, d, d1);
}
void fn_all_grads_before(fn_job *job) {
    void (*const after)(fn_job *, const fn_piece *, int) = job->after;
    fn_begin_all_grads_before(job);
    job->after = take_grads;
    fn_all_out(job, 0);
    job->after = after;
    fn_end_all_grads_before(job);
}
