/* One step on one part of the arrays: where the part lies, and which kernel takes it. */
#include "core/run.h"

#include <string.h>

/* ---- moments -------------------------------------------------------------------------------*/

/* Chunk k of a reduction over `run`: its offset in elements, and its own run. */
static int64_t chunk_of(const fn_chunks *ch, fn_run run, int64_t k, fn_run *out) {
    *out = run;
    if (ch->pieces) {
        const int64_t at = k % ch->pieces * ch->size;
        out->nseg = 1;
        out->len = fn_min(ch->size, run.len - at);
        return k / ch->pieces * run.seg_stride + at;
    }
    out->nseg = fn_min(ch->size, run.nseg - k * ch->size);
    return k * ch->size * run.seg_stride;
}

/* what row and block kernels reduce: a domain or block, and for gradients a plane or block */
static fn_run domain_run(const fn_job *job) {
    const fn_plan *pl = &job->plan;
    const int64_t planes = pl->block ? pl->block : pl->per_domain;
    return (fn_run){pl->nseg, pl->seg_stride, pl->s * planes, job->fetch};
}
static fn_run plane_run(const fn_job *job) {
    const fn_plan *pl = &job->plan;
    return (fn_run){pl->nseg, pl->seg_stride, pl->s * pl->cols, job->fetch};
}

static const char *x_at(const fn_job *job, int64_t i) {
    return job->x + i * (int64_t)job->plan.esize;
}
static const char *dy_at(const fn_job *job, int64_t i) {
    return job->dy + i * (int64_t)job->plan.esize;
}
static char *out_at(const fn_job *job, int64_t i) {
    return job->out + i * (int64_t)job->plan.esize;
}

/* Column form: row r of plane p, in elements. */
static int64_t row_at(const fn_plan *pl, int64_t p, int64_t r) {
    return (p / pl->cols * pl->s + r) * pl->ld + p % pl->cols;
}
static int64_t chunk_rows(const fn_plan *pl, int64_t k) {
    return fn_min(pl->mchunks.size, pl->s - k * pl->mchunks.size);
}
static int64_t chunk_at(const fn_plan *pl, int64_t p, int64_t k) {
    return row_at(pl, p, k * pl->mchunks.size);
}

/* Segments [g, g1) of planes [p, p1). */
static fn_tile tile_of(const fn_plan *pl, int64_t p, int64_t p1, int64_t g, int64_t g1) {
    return (fn_tile){g1 - g, pl->seg_stride, p1 - p, pl->s};
}
static int64_t plane_at(const fn_plan *pl, int64_t p, int64_t g) {
    return g * pl->seg_stride + p * pl->s;
}

/* Where the moments of chunk k of reduction i (a domain in row form, else a plane) go.
 * With one chunk that is where those of the domain, or the sums of the plane, are wanted. */
static int64_t slot(const fn_plan *pl, int64_t chunks, int64_t i, int64_t k) {
    return (i / pl->cols * chunks + k) * pl->cols + i % pl->cols;
}

void fn_moments_chunk(fn_job *job, int64_t i, int64_t i1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const fn_chunks *ch = &pl->mchunks;
    const int64_t to = slot(pl, ch->count, i, k);
    if (pl->tile) {
        const int64_t g = k * ch->size, g1 = fn_min(g + ch->size, pl->nseg);
        pl->k->tile_moments(x_at(job, plane_at(pl, i, g)), tile_of(pl, i, i1, g, g1), job->fetch,
                            job->scratch, job->mean + to, job->m2 + to);
    } else if (pl->col) {
        (pl->squares ? pl->k->col_squares : pl->k->col_moments)(
            x_at(job, chunk_at(pl, i, k)), chunk_rows(pl, k), pl->ld, i1 - i, job->fetch,
            job->scratch, job->mean + to, job->m2 + to);
    } else if (pl->block) {
        fn_run run;
        const int64_t off = chunk_of(ch, domain_run(job), k, &run);
        pl->k->block_moments(x_at(job, i * pl->s + off), run, pl->block, job->mean + to,
                             job->m2 + to);
    } else {
        fn_run run;
        const int64_t off = chunk_of(ch, domain_run(job), k, &run);
        (pl->squares ? pl->k->row_squares : pl->k->row_moments)(
            x_at(job, i * pl->s * pl->per_domain + off), i1 - i, run, job->mean + to, job->m2 + to);
    }
}

void fn_grad_chunk(fn_job *job, int64_t p, int64_t p1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const fn_chunks *ch = &pl->gchunks;
    const int64_t to = slot(pl, ch->count, p, k);
    void *const w = pl->elem ? job->weight : NULL;
    const void *center = fn_at(job, job->cf.center, p);
    if (pl->tile) {
        const int64_t g = k * ch->size, g1 = fn_min(g + ch->size, pl->nseg);
        const int64_t at = plane_at(pl, p, g);
        pl->k->tile_grad_moments(x_at(job, at), dy_at(job, at), tile_of(pl, p, p1, g, g1),
                                 job->fetch, center, job->scratch, job->mean + to, job->m2 + to);
    } else if (pl->col) {
        const int64_t off = chunk_at(pl, p, k);
        pl->k->col_grad_moments(x_at(job, off), dy_at(job, off), chunk_rows(pl, k), pl->ld, p1 - p,
                                job->fetch, center, w ? fn_at(job, w, k * ch->size) : NULL,
                                job->scratch, job->mean + to, job->m2 + to);
    } else {
        fn_run run;
        const int64_t in = chunk_of(ch, plane_run(job), k, &run), off = p * pl->s + in;
        if (pl->block) {
            pl->k->block_grad_moments(x_at(job, off), dy_at(job, off), run, pl->block, center,
                                      job->mean + to, job->m2 + to);
            return;
        }
        pl->k->row_grad_moments(x_at(job, off), dy_at(job, off), p1 - p, run, center,
                                w ? fn_at(job, w, in) : NULL, job->mean + to, job->m2 + to);
    }
}

/* elements of a reduction that are in chunk k */
static double chunk_count(const fn_job *job, int64_t k) {
    const fn_plan *pl = &job->plan;
    fn_run run = {1, 0, 0, 0};
    if (pl->col)
        run.len = chunk_rows(pl, k);
    else
        chunk_of(&pl->mchunks, domain_run(job), k, &run);
    return (double)(run.nseg * run.len / (pl->block ? pl->block : 1));
}

/* fn_merge for `count` reductions side by side */
static void merge_side_by_side(double *restrict mean, double *restrict m2, double n,
                               const double *restrict mean_k, const double *restrict m2_k,
                               double n_k, int64_t count) {
    const double part = n_k / (n + n_k), cross = n * part;
    for (int64_t j = 0; j < count; j++) {
        const double delta = mean_k[j] - mean[j];
        mean[j] += delta * part;
        m2[j] += m2_k[j] + delta * delta * cross;
    }
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
            merge_side_by_side(job->mean + to, job->m2 + to, n, job->mean + from, job->m2 + from,
                               n_k, end - i);
            n += n_k;
        }
    }
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
        fn_moments m = {0, 0, 0};
        for (int64_t i = first; i < first + per; i++) {
            const int64_t from = slot(pl, pl->mchunks.count, i, 0);
            fn_merge(&m, (double)(pl->count / per), job->mean[from], job->m2[from]);
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

void fn_row_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                 int64_t len, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = plane_at(pl, p, g) + off;
    const fn_run run = {g1 - g, pl->seg_stride, len, 0};
    if (fn_any_careful(cf, p, p1)) {
        fn_careful_part(job, p, p1, g, g1, off, off + len, NULL, NULL);
        return;
    }
    const char *center = fn_at(job, cf->center, p);
    if (pl->block && job->dy)
        pl->k->block_grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), (p1 - p) / pl->block,
                                run, pl->block, center, fn_at(job, cf->a, p), fn_at(job, cf->b, p),
                                fn_at(job, cf->e, p), hints);
    else if (pl->block)
        pl->k->block_apply(x_at(job, i), out_at(job, i), (p1 - p) / pl->block, run, pl->block,
                           center, fn_at(job, cf->scale, p), fn_at(job, cf->shift, p), hints);
    else if (job->dy)
        pl->k->row_grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), p1 - p, run, center,
                              fn_at(job, cf->a, p), fn_at(job, cf->b, p), fn_at(job, cf->e, p),
                              hints);
    else if (pl->elem && (job->weight || job->bias))
        pl->k->row_apply_elem(x_at(job, i), out_at(job, i), p1 - p, pl->s, len, center,
                              fn_at(job, cf->scale, p), fn_at(job, cf->shift, p),
                              job->weight ? fn_at(job, job->weight, off) : NULL,
                              job->bias ? fn_at(job, job->bias, off) : NULL, hints.stream);
    else
        pl->k->row_apply(x_at(job, i), out_at(job, i), p1 - p, run, center,
                         fn_at(job, cf->scale, p), fn_at(job, cf->shift, p), hints);
}

void fn_col_part(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = row_at(pl, p, r);
    if (fn_any_careful(cf, p, p1)) {
        fn_careful_part(job, p, p1, 0, 1, r * pl->cols, r1 * pl->cols, NULL, NULL);
        return;
    }
    const char *center = fn_at(job, cf->center, p);
    if (job->dy)
        pl->k->col_grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), r1 - r, pl->ld, p1 - p,
                              center, fn_at(job, cf->a, p), fn_at(job, cf->b, p),
                              fn_at(job, cf->e, p), job->stream, job->scratch);
    else
        pl->k->col_apply(
            x_at(job, i), out_at(job, i), r1 - r, pl->ld, p1 - p, center, fn_at(job, cf->scale, p),
            fn_at(job, cf->shift, p), pl->elem && job->weight ? fn_at(job, job->weight, r) : NULL,
            pl->elem && job->bias ? fn_at(job, job->bias, r) : NULL, job->stream, job->scratch);
}
