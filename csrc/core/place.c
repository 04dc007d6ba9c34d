/* See place.h: where a part of the arrays lies, and which kernel takes it. */
#include "core/place.h"

#include "core/around.h"
#include "core/careful.h"
#include "kernels/moments.h"

#include <string.h>

/* ---- moments -------------------------------------------------------------------------------*/

static const char *x_at(const fn_job *job, int64_t i) {
    return job->x + i * (int64_t)job->plan.esize;
}
static const char *dy_at(const fn_job *job, int64_t i) {
    return job->dy + i * (int64_t)job->plan.esize;
}
static char *out_at(const fn_job *job, int64_t i) {
    return job->out + i * (int64_t)job->plan.esize;
}

static int64_t chunk_rows(const fn_plan *pl, int64_t k) {
    return fn_min(pl->mchunks.size, pl->s - k * pl->mchunks.size);
}
/* Where the moments of chunk k of reduction i go: a domain in row form, else a plane.  The chunks
 * of a group lie behind one another, each a row of cols numbers: with 2 chunks of matrices of 3
 * columns chunk 1 of plane 4, which is column 1 of the second matrix, is number (1 * 2 + 1) * 3 + 1
 * = 10. */
static int64_t slot(const fn_plan *pl, int64_t chunks, int64_t i, int64_t k) {
    return (i / pl->cols * chunks + k) * pl->cols + i % pl->cols;
}

/* Chunk k of reductions [i, i1), of `elems` elements in a segment each (not in column form): what
 * the kernel walks, and where it begins, in elements from the first of them. */
static int64_t chunk_of(const fn_job *job, const fn_chunks *ch, int64_t elems, int64_t i,
                        int64_t i1, int64_t k, fn_view *view) {
    const fn_plan *pl = &job->plan;
    if (pl->col) {
        const int64_t cols = i1 - i;
        *view = (fn_view){chunk_rows(pl, k), pl->ld, cols, cols, cols, job->use.fetch, 0, 0};
        return k * ch->size * pl->ld;
    }
    const int64_t together = pl->block ? 1 : i1 - i, outputs = pl->block ? pl->block : 1;
    if (ch->per_segment) {
        const int64_t at = k % ch->per_segment * ch->size, len = fn_min(ch->size, elems - at);
        *view = (fn_view){1, pl->seg_stride, len, len, outputs, job->use.fetch, 0, 0};
        return k / ch->per_segment * pl->seg_stride + at;
    }
    const int64_t g = k * ch->size;
    *view = (fn_view){fn_min(ch->size, pl->nseg - g),
                      pl->seg_stride,
                      together * elems,
                      elems,
                      outputs,
                      job->use.fetch,
                      0,
                      0};
    return g * pl->seg_stride;
}

/* elements of a domain, and of a plane, in a segment; of a block of them where there are some */
static int64_t domain_elems(const fn_plan *pl) {
    return pl->s * (pl->block ? pl->block : pl->per_domain);
}
static int64_t plane_elems(const fn_plan *pl) { return pl->s * pl->cols; }

void fn_moments_chunk(fn_job *job, int64_t i, int64_t i1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const int64_t to = slot(pl, pl->mchunks.count, i, k);
    fn_view view;
    int64_t at = chunk_of(job, &pl->mchunks, domain_elems(pl), i, i1, k, &view);
    at += pl->col ? fn_row_at(pl, i, 0) : i * pl->s * (pl->block ? 1 : pl->per_domain);
    fn_add_residual(job, at, &view);
    if (!pl->squares) {
        pl->k->moments(x_at(job, at), &view, job->scratch, job->mean + to, job->m2 + to);
        return;
    }
    memset(job->mean + to, 0, (size_t)(i1 - i) * sizeof *job->mean);
    pl->k->squares(x_at(job, at), &view, job->scratch, job->m2 + to);
}

/* A chunk that begins at element `in` of planes from p on, where dy has to be made first: a part
 * of it is made, and summed while it is in the L1. */
static void grad_parts(fn_job *job, int64_t p, int64_t p1, int64_t in, fn_view view,
                       const char *weight, double *sum_dy, double *sum_dy_xc) {
    const fn_plan *pl = &job->plan;
    const int64_t lanes = 4 * FN_LINE / (int64_t)pl->asize, stretch = FN_SUM_ROWS * lanes;
    const int64_t size = (int64_t)pl->esize, rows = view.rows, len = view.len;
    const int64_t g = pl->nseg > 1 ? in / pl->seg_stride : 0, off = in - g * pl->seg_stride;
    const int by_rows = pl->col && pl->cols >= FN_NARROW;
    const int by_elems = !pl->col && rows == 1 && len == view.run && len > 2 * stretch;
    const int64_t each = by_rows ? FN_SUM_ROWS : by_elems ? stretch : pl->col ? rows : len;
    const int64_t whole = pl->col ? rows : len;
    for (int64_t i = 0, n; i < whole; i += n) {
        /* the last part takes the rest, as a short run would be summed in another way */
        n = whole - i < 2 * each ? whole - i : each;
        int64_t at = in + (pl->col ? fn_row_at(pl, p, 0) + i * pl->ld : p * pl->s + i);
        const char *w = weight ? weight + i * (int64_t)pl->asize : NULL;
        if (pl->col) {
            const int64_t r = in / pl->ld + i;
            fn_make_columns_before(job, p, p1, r, r + n);
            view.rows = n;
        } else {
            fn_make_rows_before(job, p, p1, g, g + rows, off + i, by_elems ? n : view.run);
            view.len = n;
            view.run = by_elems ? n : view.run;
        }
        pl->k->gradients(x_at(job, at), job->before + at * size, &view,
                         fn_at(job, job->cf.center, p), w, job->scratch, sum_dy, sum_dy_xc);
        view.more = 1;
    }
}

void fn_grad_chunk(fn_job *job, int64_t p, int64_t p1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const int64_t to = slot(pl, pl->gchunks.count, p, k);
    fn_view view;
    if (pl->weight_rows > 1 && p1 - p > 1) {
        for (; p < p1; p++)
            fn_grad_chunk(job, p, p + 1, k);
        return;
    }
    const int64_t in = chunk_of(job, &pl->gchunks, plane_elems(pl), p, p1, k, &view);
    const int64_t at = in + (pl->col ? fn_row_at(pl, p, 0) : p * pl->s);
    void *w = pl->elem ? job->weight : NULL;
    if (w)
        w = fn_at(job, w, fn_elem_first(pl, p) + (pl->col ? k * pl->gchunks.size : in));
    if (job->grads_before == FN_BY_CHUNKS)
        grad_parts(job, p, p1, in, view, w, job->mean + to, job->m2 + to);
    else
        pl->k->gradients(x_at(job, at), dy_at(job, at), &view, fn_at(job, job->cf.center, p), w,
                         job->scratch, job->mean + to, job->m2 + to);
}

/* elements of a reduction that are in chunk k */
static double chunk_count(const fn_job *job, int64_t k) {
    const fn_plan *pl = &job->plan;
    fn_view view;
    chunk_of(job, &pl->mchunks, domain_elems(pl), 0, 1, k, &view);
    return (double)(view.rows * view.run / view.outputs);
}

/* the chunks of reductions [i, i1), in order, to the first */
static void merge_chunks(fn_job *job, int64_t i, int64_t i1) {
    const fn_plan *pl = &job->plan;
    const int64_t chunks = pl->mchunks.count;
    for (int64_t end; i < i1; i = end) {
        end = fn_group_end(pl, i, i1);
        const int64_t to = slot(pl, chunks, i, 0);
        double n = chunk_count(job, 0);
        for (int64_t k = 1; k < chunks; k++) {
            const int64_t from = slot(pl, chunks, i, k);
            const double n_k = chunk_count(job, k);
            fn_merge_each(job->mean + to, job->m2 + to, n, job->mean + from, job->m2 + from, n_k,
                          end - i);
            n += n_k;
        }
    }
}

/* Planes side by side of n elements each, taken together.  The mean is counted from the first's. */
static void merge_planes(const double *mean, const double *m2, int64_t planes, double n,
                         double *to_mean, double *to_m2) {
    enum { L = 4 }; /* sums that do not wait for one another */
    double sum[L] = {0}, square[L] = {0};
    for (int64_t i = 0; i < planes; i++)
        sum[i % L] += mean[i] - mean[0];
    const double rest = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (double)planes;
    for (int64_t i = 0; i < planes; i++) {
        const double d = (mean[i] - mean[0]) - rest;
        square[i % L] += m2[i] + d * d * n;
    }
    *to_mean = mean[0] + rest;
    *to_m2 = (square[0] + square[1]) + (square[2] + square[3]);
}

void fn_merge_domains(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    if (job->mean == job->cf.mean || !fn_needs_moments(pl))
        return;
    const int planes = pl->cols > 1; /* what was reduced; else domains */
    const int64_t per = planes ? pl->per_domain : 1;
    merge_chunks(job, planes ? fn_first_plane(pl, d) : d, planes ? fn_first_plane(pl, d1) : d1);
    for (; d < d1; d++) {
        const int64_t first = planes ? fn_first_plane(pl, d) : d;
        const double n = (double)(pl->count / per);
        fn_moments m = {0, 0, 0};
        for (int64_t i = first, end; i < first + per; i = end) {
            end = fn_group_end(pl, i, first + per);
            const int64_t from = slot(pl, pl->mchunks.count, i, 0);
            double mean, m2;
            merge_planes(job->mean + from, job->m2 + from, end - i, n, &mean, &m2);
            fn_merge(&m, n * (double)(end - i), mean, m2);
        }
        job->cf.mean[d] = m.mean;
        job->cf.std[d] = m.m2;
    }
}

void fn_merge_grad_planes(fn_job *job, int64_t p, int64_t p1) {
    const fn_plan *pl = &job->plan;
    if (job->mean == job->cf.sum_dy)
        return;
    for (int64_t end; p < p1; p = end) {
        end = fn_group_end(pl, p, p1);
        double *s1 = job->cf.sum_dy + p, *s2 = job->cf.sum_dy_xc + p;
        memset(s1, 0, (size_t)(end - p) * sizeof *s1);
        memset(s2, 0, (size_t)(end - p) * sizeof *s2);
        for (int64_t k = 0; k < pl->gchunks.count; k++) {
            const int64_t from = slot(pl, pl->gchunks.count, p, k);
            for (int64_t j = 0; j < end - p; j++) {
                s1[j] += job->mean[from + j];
                s2[j] += job->m2[from + j];
            }
        }
    }
}

/* ---- apply ---------------------------------------------------------------------------------*/

/* y or dx of a view that begins at element i, with the coefficients of planes from p on */
static void apply(fn_job *job, int64_t i, int64_t p, const fn_view *view, fn_hints hints) {
    const fn_coefs *cf = &job->cf;
    const fn_kernels *k = job->plan.k;
    const char *center = fn_at(job, cf->center, p);
    const void *floor = cf->floor ? fn_at(job, cf->floor, p) : NULL;
    if (job->masking)
        k->above(x_at(job, i), dy_at(job, i), NULL, out_at(job, i), view, center,
                 fn_at(job, cf->scale, p), fn_at(job, cf->shift, p), floor, hints, job->scratch);
    else if (job->dy)
        k->grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), view, center,
                      fn_at(job, cf->a, p), fn_at(job, cf->b, p), fn_at(job, cf->e, p), hints,
                      job->scratch);
    else
        k->apply(x_at(job, i), NULL, out_at(job, i), view, center, fn_at(job, cf->scale, p),
                 fn_at(job, cf->shift, p), floor, hints, job->scratch);
}

/* Likewise with what comes after, where that is a kernel's too: a shortcut, relu, or both. */
static int in_kernel(const fn_job *job, int64_t p, int64_t p1) {
    return job->in_kernel && !job->masking && !fn_any_careful(&job->cf, p, p1) && fn_is_of_y(job);
}
static void apply_after(fn_job *job, int64_t i, int64_t p, const fn_view *view, fn_hints hints) {
    const fn_coefs *cf = &job->cf;
    const fn_kernels *k = job->plan.k;
    const int64_t at = i * (int64_t)job->plan.esize;
    const char *add = job->beside.shortcut ? job->beside.shortcut + at : NULL;
    const char *center = fn_at(job, cf->center, p), *scale = fn_at(job, cf->scale, p),
               *shift = fn_at(job, cf->shift, p), *floor = fn_at(job, job->floor, p);
    if (job->dy)
        k->above(x_at(job, i), dy_at(job, i), add, job->before + at, view, center, scale, shift,
                 floor, hints, job->scratch);
    else
        k->apply(x_at(job, i), add, out_at(job, i), view, center, scale, shift, floor, hints,
                 job->scratch);
}

/* where the rows from p on, before p1, that share their weights end */
static int64_t same_weights_end(const fn_plan *pl, int64_t p, int64_t p1) {
    return pl->weight_rows > 1 ? p + 1 : p1;
}

/* elements from `off` on of rows [p, p1), which share their weights */
static void apply_elem_rows(fn_job *job, int64_t p, int64_t p1, int64_t off, int64_t len,
                            fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = fn_plane_at(pl, p, 0) + off, w = fn_elem_first(pl, p) + off;
    pl->k->apply_elem(x_at(job, i), out_at(job, i), p1 - p, pl->s, pl->s, len, 1,
                      fn_at(job, cf->center, p), fn_at(job, cf->scale, p), fn_at(job, cf->shift, p),
                      job->weight ? fn_at(job, job->weight, w) : NULL,
                      job->bias ? fn_at(job, job->bias, w) : NULL, hints);
}

void fn_place_rows(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                   int64_t len, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t i = fn_plane_at(pl, p, g) + off;
    const fn_view view = {g1 - g, pl->seg_stride, (p1 - p) / pl->cols * len, len, pl->cols, 0, 0,
                          0};
    if (in_kernel(job, p, p1)) {
        apply_after(job, i, p, &view, hints);
        return;
    }
    if (job->after && !job->masking) {
        fn_after_rows(job, p, p1, g, g1, off, len, hints);
        return;
    }
    if (fn_any_careful(&job->cf, p, p1)) {
        fn_careful_part(job, p, p1, g, g1, off, off + len, NULL, NULL);
        return;
    }
    if (!job->dy && pl->elem && (job->weight || job->bias)) {
        for (int64_t end; p < p1; p = end) {
            end = same_weights_end(pl, p, p1);
            apply_elem_rows(job, p, end, off, len, hints);
        }
        return;
    }
    apply(job, i, p, &view, hints);
}

void fn_place_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = fn_row_at(pl, p, r);
    const fn_view view = {r1 - r, pl->ld, p1 - p, p1 - p, p1 - p, 0, job->out_ld, 0};
    if (in_kernel(job, p, p1)) {
        apply_after(job, i, p, &view, hints);
        return;
    }
    if (job->after && !job->masking) {
        fn_after_columns(job, p, p1, r, r1, hints);
        return;
    }
    if (fn_any_careful(cf, p, p1)) {
        fn_careful_part(job, p, p1, 0, 1, r * pl->cols, r1 * pl->cols, NULL, NULL);
        return;
    }
    if (!job->dy && pl->elem && (job->weight || job->bias)) {
        pl->k->apply_elem(x_at(job, i), out_at(job, i), r1 - r, pl->ld, job->out_ld, p1 - p, 0,
                          fn_at(job, cf->center, p), fn_at(job, cf->scale, p),
                          fn_at(job, cf->shift, p), job->weight ? fn_at(job, job->weight, r) : NULL,
                          job->bias ? fn_at(job, job->bias, r) : NULL, hints);
        return;
    }
    apply(job, i, p, &view, hints);
}

void fn_place_unit(fn_job *job, int64_t p, int64_t p1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    if (!pl->col) {
        fn_place_rows(job, p, p1, 0, pl->nseg, 0, pl->s * pl->cols, hints);
        return;
    }
    for (int64_t end; p < p1; p = end) {
        end = fn_group_end(pl, p, p1);
        fn_place_columns(job, p, end, 0, pl->s, (fn_hints){0, 0, hints.stream});
    }
}

/* ---- parameters of the elements ------------------------------------------------------------*/

/* rows [p, p1), which share their weights */
static void grad_elem_rows(fn_job *job, int64_t p, int64_t p1, int64_t off, int64_t len,
                           fn_hints hints, char *dweight, char *dbias) {
    const fn_plan *pl = &job->plan;
    hints.stream = hints.stream && !job->after;
    const fn_coefs *cf = &job->cf;
    const int64_t i = p * pl->s + off, w = fn_elem_first(pl, p);
    pl->k->grad_apply_elem(x_at(job, i), dy_at(job, i), out_at(job, i), p1 - p, pl->s, len, 1,
                           fn_at(job, cf->center, p), fn_at(job, cf->scale, p),
                           fn_at(job, cf->shift, p), fn_at(job, cf->b, p), fn_at(job, cf->e, p),
                           job->weight ? fn_at(job, job->weight, w + off) : NULL,
                           job->weight ? fn_at(job, dweight, w) : NULL,
                           job->want_dbias ? fn_at(job, dbias, w) : NULL, hints);
}

#define AFTER_BYTES (8 * 1024)
void fn_place_elem_rows(fn_job *job, int64_t p, int64_t p1, int64_t off, int64_t len,
                        fn_hints hints, char *block, double *sums) {
    const fn_plan *pl = &job->plan;
    if (fn_any_careful(&job->cf, p, p1)) {
        fn_careful_part(job, p, p1, 0, 1, off, off + len, sums, sums + fn_elem_count(pl));
        if (job->after)
            fn_after_in_place(job, p * pl->s + off, p1 - p, len, pl->s);
        return;
    }
    /* A few rows at a time, so that what comes after finds dx in the L1.  A multiple of 4, as the
     * kernel takes two pairs of rows: else their sums would be added in another order. */
    const int64_t few = fn_max(4, AFTER_BYTES / (len * (int64_t)pl->esize) / 4 * 4);
    for (int64_t q = p, end; q < p1; q = end) {
        end = same_weights_end(pl, q, job->after ? fn_min(q + few, p1) : p1);
        const int64_t i = q * pl->s + off, n = (end - q) * len;
        char *const out = job->out, *tile = job->after && len == pl->s ? fn_tile(job, i, n) : NULL;
        job->out = tile ? tile : out;
        grad_elem_rows(job, q, end, off, len, hints, block,
                       fn_at(job, block, pl->weight_rows * len));
        job->out = out;
        if (tile)
            fn_after_tile(job, i, n, hints.stream);
        else if (job->after)
            fn_after_in_place(job, i, end - q, len, pl->s);
    }
}

void fn_place_elem_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1,
                           double *sums) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = fn_row_at(pl, p, r);
    if (fn_any_careful(cf, p, p1))
        fn_careful_part(job, p, p1, 0, 1, r * pl->cols, r1 * pl->cols, sums, sums + pl->s);
    else
        pl->k->grad_apply_elem(x_at(job, i), dy_at(job, i), out_at(job, i), r1 - r, pl->ld, p1 - p,
                               0, fn_at(job, cf->center, p), fn_at(job, cf->scale, p),
                               fn_at(job, cf->shift, p), fn_at(job, cf->b, p), fn_at(job, cf->e, p),
                               job->weight ? fn_at(job, job->weight, r) : NULL, sums + r,
                               sums + pl->s + r, (fn_hints){0, 0, 0});
    if (job->after)
        fn_after_in_place(job, i, r1 - r, p1 - p, pl->ld);
}
