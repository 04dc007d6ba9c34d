/* Walks a plan: moments, coefficients, apply, and back.
 *
 * Units that are numerous enough go to the threads whole: a thread takes a unit through all steps
 * while it is in its cache.  Otherwise the steps go one by one over the whole array, chunks shared
 * among the threads.  The sums are the same, in the same order, either way. */
#include "run.h"

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
static fn_run domain_run(const fn_plan *pl) {
    return (fn_run){pl->nseg, pl->seg_stride, pl->s * (pl->block ? pl->block : pl->per_domain)};
}
static fn_run plane_run(const fn_plan *pl) {
    return (fn_run){pl->nseg, pl->seg_stride, pl->s * pl->cols};
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

/* Column form: row r of segment g of plane p, in elements.  Column and block form: how many
 * matrices or blocks there are; and where the planes of that of p end, or p1 if that is before. */
static int64_t row_at(const fn_plan *pl, int64_t p, int64_t g, int64_t r) {
    return g * pl->seg_stride + (p / pl->cols * pl->s + r) * pl->cols + p % pl->cols;
}
static int64_t matrices(const fn_plan *pl) { return pl->planes / pl->cols; }
static int64_t matrix_end(const fn_plan *pl, int64_t p, int64_t p1) {
    return fn_min(p1, (p / pl->cols + 1) * pl->cols);
}
static int64_t chunk_rows(const fn_plan *pl, int64_t k) {
    return fn_min(pl->mchunks.size, pl->s - k % pl->mchunks.pieces * pl->mchunks.size);
}
static int64_t chunk_at(const fn_plan *pl, int64_t p, int64_t k) {
    return row_at(pl, p, k / pl->mchunks.pieces, k % pl->mchunks.pieces * pl->mchunks.size);
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

/* Chunk k of the reductions [i, i1); of one matrix or block, in row form one when there are several
 * chunks. */
static void moments_chunk(fn_job *job, int64_t i, int64_t i1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const fn_chunks *ch = &pl->mchunks;
    const int64_t to = slot(pl, ch->count, i, k);
    const int rms = pl->p.norm == FN_RMS;
    if (pl->tile) {
        const int64_t g = k * ch->size, g1 = fn_min(g + ch->size, pl->nseg);
        pl->k->tile_moments(x_at(job, plane_at(pl, i, g)), tile_of(pl, i, i1, g, g1),
                            job->mean + to, job->m2 + to);
    } else if (pl->col) {
        (rms ? pl->k->col_squares : pl->k->col_moments)(x_at(job, chunk_at(pl, i, k)),
                                                        chunk_rows(pl, k), pl->cols, i1 - i,
                                                        job->mean + to, job->m2 + to);
    } else if (pl->block) {
        fn_run run;
        const int64_t off = chunk_of(ch, domain_run(pl), k, &run);
        pl->k->block_moments(x_at(job, i * pl->s + off), run, pl->block, job->mean + to,
                             job->m2 + to);
    } else {
        fn_run run;
        const int64_t off = chunk_of(ch, domain_run(pl), k, &run);
        (rms ? pl->k->row_squares : pl->k->row_moments)(x_at(job, i * pl->s * pl->per_domain + off),
                                                        i1 - i, run, job->mean + to, job->m2 + to);
    }
}

/* Sums of dy and dy * (x - center) of planes, as moments_chunk. */
static void grad_chunk(fn_job *job, int64_t p, int64_t p1, int64_t k) {
    const fn_plan *pl = &job->plan;
    const fn_chunks *ch = &pl->gchunks;
    const int64_t to = slot(pl, ch->count, p, k);
    void *const w = pl->elem ? job->weight : NULL;
    const void *center = fn_at(job, job->cf.center, p);
    if (pl->tile) {
        const int64_t g = k * ch->size, g1 = fn_min(g + ch->size, pl->nseg);
        const int64_t at = plane_at(pl, p, g);
        pl->k->tile_grad_moments(x_at(job, at), dy_at(job, at), tile_of(pl, p, p1, g, g1), center,
                                 job->mean + to, job->m2 + to);
    } else if (pl->col) {
        const int64_t off = chunk_at(pl, p, k);
        pl->k->col_grad_moments(x_at(job, off), dy_at(job, off), chunk_rows(pl, k), pl->cols,
                                p1 - p, center, w ? fn_at(job, w, k * ch->size) : NULL,
                                job->mean + to, job->m2 + to);
    } else {
        fn_run run;
        const int64_t in = chunk_of(ch, plane_run(pl), k, &run), off = p * pl->s + in;
        if (pl->block) {
            pl->k->block_grad_moments(x_at(job, off), dy_at(job, off), run, pl->block, center,
                                      job->mean + to, job->m2 + to);
            return;
        }
        pl->k->row_grad_moments(x_at(job, off), dy_at(job, off), p1 - p, run, center,
                                w ? fn_at(job, w, in) : NULL, job->mean + to, job->m2 + to);
    }
}

/* all chunks of the reductions [i, i1) */
static void all_chunks(fn_job *job, int64_t chunks, int64_t i, int64_t i1,
                       void (*chunk)(fn_job *, int64_t, int64_t, int64_t)) {
    const fn_plan *pl = &job->plan;
    if (pl->cols > 1) {
        for (int64_t end; i < i1; i = end) {
            end = matrix_end(pl, i, i1);
            for (int64_t k = 0; k < chunks; k++)
                chunk(job, i, end, k);
        }
    } else if (chunks == 1) {
        chunk(job, i, i1, 0);
    } else {
        for (; i < i1; i++)
            for (int64_t k = 0; k < chunks; k++)
                chunk(job, i, i + 1, k);
    }
}

/* chunks of domain d, in order, to its mean and m2 */
static void merge_domain(fn_job *job, int64_t d) {
    const fn_plan *pl = &job->plan;
    const fn_chunks *ch = &pl->mchunks;
    const int planes = pl->cols > 1; /* what was reduced; else domains */
    const int64_t first = planes ? fn_first_plane(pl, d) : d, per = planes ? pl->per_domain : 1;
    fn_moments m = {0, 0, 0};
    if (job->mean == job->cf.mean || !fn_needs_moments(pl))
        return;
    for (int64_t i = first; i < first + per; i++)
        for (int64_t k = 0; k < ch->count; k++) {
            fn_run run = {1, 0, 0};
            if (pl->col)
                run.len = chunk_rows(pl, k);
            else
                chunk_of(ch, domain_run(pl), k, &run);
            if (pl->block)
                run.len /= pl->block;
            const int64_t from = slot(pl, ch->count, i, k);
            fn_merge(&m, (double)(run.nseg * run.len), job->mean[from], job->m2[from]);
        }
    job->cf.mean[d] = m.mean;
    job->cf.var[d] = m.m2;
}

static void merge_grad_plane(fn_job *job, int64_t p) {
    const fn_plan *pl = &job->plan;
    if (job->mean == job->cf.sum_dy)
        return;
    double s1 = 0, s2 = 0;
    for (int64_t k = 0; k < pl->gchunks.count; k++) {
        s1 += job->mean[slot(pl, pl->gchunks.count, p, k)];
        s2 += job->m2[slot(pl, pl->gchunks.count, p, k)];
    }
    job->cf.sum_dy[p] = s1;
    job->cf.sum_dy_xc[p] = s2;
}

/* ---- apply ---------------------------------------------------------------------------------*/

/* Row and block form: `len` elements of planes or blocks [p, p1) from element `off` of each on, in
 * the segments [g, g1).  More than one only with whole ones. */
static void row_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                     int64_t len, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = plane_at(pl, p, g) + off;
    const fn_run run = {g1 - g, pl->seg_stride, len};
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

/* Segments [g, g1) of planes [p, p1). */
static void tile_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const fn_tile t = tile_of(pl, p, p1, g, g1);
    const int64_t i = plane_at(pl, p, g);
    const char *center = fn_at(job, cf->center, p);
    if (job->dy)
        pl->k->tile_grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), t, center,
                               fn_at(job, cf->a, p), fn_at(job, cf->b, p), fn_at(job, cf->e, p),
                               hints);
    else
        pl->k->tile_apply(x_at(job, i), out_at(job, i), t, center, fn_at(job, cf->scale, p),
                          fn_at(job, cf->shift, p), hints);
}

/* Column form: rows [r, r1) of segment g of planes [p, p1) of one matrix. */
static void col_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t r, int64_t r1) {
    const fn_plan *pl = &job->plan;
    const fn_coefs *cf = &job->cf;
    const int64_t i = row_at(pl, p, g, r);
    const char *center = fn_at(job, cf->center, p);
    if (job->dy)
        pl->k->col_grad_apply(x_at(job, i), dy_at(job, i), out_at(job, i), r1 - r, pl->cols, p1 - p,
                              center, fn_at(job, cf->a, p), fn_at(job, cf->b, p),
                              fn_at(job, cf->e, p), job->stream);
    else
        pl->k->col_apply(x_at(job, i), out_at(job, i), r1 - r, pl->cols, p1 - p, center,
                         fn_at(job, cf->scale, p), fn_at(job, cf->shift, p),
                         pl->elem && job->weight ? fn_at(job, job->weight, r) : NULL,
                         pl->elem && job->bias ? fn_at(job, job->bias, r) : NULL, job->stream);
}

/* ---- tasks ---------------------------------------------------------------------------------*/

static void unit_domains(const fn_plan *pl, int64_t u, int64_t *d0, int64_t *d1) {
    int64_t in_group = pl->domains, first = 0;
    if (pl->cols > 1) { /* units do not cross samples */
        in_group = pl->sample_domains;
        const int64_t per_sample = fn_ceil_div(in_group, pl->unit_domains);
        first = u / per_sample * in_group;
        u %= per_sample;
    }
    *d0 = first + u * pl->unit_domains;
    *d1 = first + fn_min(in_group, (u + 1) * pl->unit_domains);
}

/* planes [p, p1) of a unit: all of them, in all segments or rows */
static void apply_unit(fn_job *job, int64_t p, int64_t p1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    if (!pl->col) {
        if (pl->tile)
            tile_part(job, p, p1, 0, pl->nseg, hints);
        else
            row_part(job, p, p1, 0, pl->nseg, 0, pl->s * pl->cols, hints);
        return;
    }
    for (int64_t end; p < p1; p = end) {
        end = matrix_end(pl, p, p1);
        for (int64_t g = pl->nseg - 1; g >= 0; g--) /* backwards, as in row_apply */
            col_part(job, p, end, g, 0, pl->s);
    }
}

/* how unit u is written, while the next one of the same shape is fetched */
static fn_hints unit_hints(const fn_job *job, int64_t u) {
    const fn_plan *pl = &job->plan;
    const int64_t next = pl->unit_domains * pl->s * (int64_t)pl->esize;
    const int fetch = pl->prefetch && u + 1 < pl->units;
    const int fetch_out = fetch && pl->prefetch_out && !job->stream;
    return (fn_hints){fetch ? next : 0, fetch_out ? next : 0, job->stream};
}

/* moments, coefficients and apply of domains [d, d1), of one sample in column form */
static void forward_domains(fn_job *job, int64_t d, int64_t d1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t p = fn_first_plane(pl, d), p1 = fn_first_plane(pl, d1);
    all_chunks(job, pl->mchunks.count, pl->cols > 1 ? p : d, pl->cols > 1 ? p1 : d1, moments_chunk);
    for (int64_t i = d; i < d1; i++)
        merge_domain(job, i);
    fn_statistics(&job->cf, d, d1);
    fn_coefficients(&job->cf, d, d1);
    apply_unit(job, p, p1, hints);
}

/* Writes to memory overlap with the reads of what comes next only while they fit the processor's
 * store queue: of arrays larger than the cache, small domains go by a few kilobytes at a time. */
#define BATCH_BYTES 8192
static int64_t domains_at_once(const fn_job *job, int64_t unit_domains) {
    const fn_plan *pl = &job->plan;
    const int64_t bytes = pl->count * (int64_t)pl->esize * (job->dy ? 2 : 1);
    const int small = pl->cols == 1 && pl->nseg == 1 && 0 < bytes && bytes <= BATCH_BYTES / 2;
    return job->stream && small ? BATCH_BYTES / bytes : unit_domains;
}

static void task_forward_unit(fn_job *job, int64_t u) {
    const fn_plan *pl = &job->plan;
    int64_t d0, d1;
    unit_domains(pl, u, &d0, &d1);
    const int64_t step = domains_at_once(job, d1 - d0);
    for (int64_t d = d0; d < d1; d += step)
        forward_domains(job, d, fn_min(d + step, d1), unit_hints(job, u));
}

/* gradient sums and the coefficients of dx of domains [d, d1), of one sample */
void fn_grad_sums_of(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    const int64_t p = fn_first_plane(pl, d), p1 = fn_first_plane(pl, d1);
    all_chunks(job, pl->gchunks.count, p, p1, grad_chunk);
    for (int64_t q = p; q < p1; q++)
        merge_grad_plane(job, q);
    fn_grad_coefficients(&job->cf, d, d1);
}

static void task_backward_unit(fn_job *job, int64_t u) {
    const fn_plan *pl = &job->plan;
    int64_t d0, d1;
    unit_domains(pl, u, &d0, &d1);
    const int64_t step = domains_at_once(job, d1 - d0);
    for (int64_t d = d0; d < d1; d += step) {
        const int64_t end = fn_min(d + step, d1);
        fn_grad_sums_of(job, d, end);
        apply_unit(job, fn_first_plane(pl, d), fn_first_plane(pl, end), unit_hints(job, u));
    }
}

/* steps of the walk over the whole array */
static void task_moments(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t K = pl->mchunks.count;
    if (pl->cols > 1)
        moments_chunk(job, i / K * pl->cols, (i / K + 1) * pl->cols, i % K);
    else
        moments_chunk(job, i / K, i / K + 1, i % K);
}
/* what is done for each domain, each plane, by blocks that are worth a task */
#define BLOCK 256
static void task_statistics(fn_job *job, int64_t i) {
    const int64_t d1 = fn_min((i + 1) * BLOCK, job->plan.domains);
    for (int64_t d = i * BLOCK; d < d1; d++)
        merge_domain(job, d);
    fn_statistics(&job->cf, i * BLOCK, d1);
}
static void task_merge(fn_job *job, int64_t i) {
    for (int64_t d = i * BLOCK; d < fn_min((i + 1) * BLOCK, job->plan.domains); d++)
        merge_domain(job, d);
}
static void task_coefficients(fn_job *job, int64_t i) {
    fn_coefficients(&job->cf, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_grad_merge(fn_job *job, int64_t i) {
    for (int64_t p = i * BLOCK; p < fn_min((i + 1) * BLOCK, job->plan.planes); p++)
        merge_grad_plane(job, p);
}
static void task_grad_coefficients(fn_job *job, int64_t i) {
    fn_grad_coefficients(&job->cf, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_layer_statistics(fn_job *job, int64_t n) { fn_layer_statistics(&job->cf, n); }
static void task_layer_grad_sums(fn_job *job, int64_t n) { fn_layer_grad_sums(&job->cf, n); }

/* steps that touch planes, not elements: below this many they are not worth waking threads for */
#define PLANES_FOR_THREADS 8192
static void by_planes(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t)) {
    if (job->plan.planes >= PLANES_FOR_THREADS)
        fn_parallel(job, count, task, 0);
    else
        for (int64_t i = 0; i < count; i++)
            task(job, i);
}

/* what is done for blocks of channels */
static int64_t channel_blocks(const fn_plan *pl) { return fn_ceil_div(pl->c, FN_CHANNELS); }
static void task_batch_statistics(fn_job *job, int64_t i) {
    fn_batch_statistics(&job->cf, i * FN_CHANNELS, fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_batch_grad_sums(fn_job *job, int64_t i) {
    fn_batch_grad_sums(&job->cf, i * FN_CHANNELS, fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_param_grads(fn_job *job, int64_t i) {
    fn_param_grads(&job->cf, job->grads, i * FN_CHANNELS,
                   fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_grad_moments(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t K = pl->gchunks.count;
    if (pl->cols > 1)
        grad_chunk(job, i / K * pl->cols, (i / K + 1) * pl->cols, i % K);
    else
        grad_chunk(job, i / K, i / K + 1, i % K);
}

/* The array in pieces of about PIECE elements, in memory order. */
#define PIECE 32768
static int64_t tile_planes(const fn_job *job) { return job->stream ? job->plan.stream_planes : 0; }
static int64_t piece_count(const fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (tile_planes(job))
        return fn_ceil_div(pl->planes, tile_planes(job));
    if (pl->col)
        return pl->nseg * matrices(pl) * fn_ceil_div(pl->s, fn_max(1, PIECE / pl->cols));
    const int64_t len = pl->s * pl->cols, runs = matrices(pl);
    if (len > PIECE)
        return pl->nseg * runs * fn_ceil_div(len, PIECE);
    return pl->nseg * fn_ceil_div(runs, PIECE / len);
}
static void task_apply_piece(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const fn_hints hints = {0, 0, job->stream};
    const int64_t together = tile_planes(job), len = pl->s * pl->cols, runs = matrices(pl);
    if (together) {
        tile_part(job, i * together, fn_min((i + 1) * together, pl->planes), 0, pl->nseg, hints);
    } else if (pl->col) {
        const int64_t rows = fn_max(1, PIECE / pl->cols), in_matrix = fn_ceil_div(pl->s, rows);
        const int64_t p = i / in_matrix % matrices(pl) * pl->cols, r = i % in_matrix * rows;
        col_part(job, p, p + pl->cols, i / in_matrix / matrices(pl), r, fn_min(r + rows, pl->s));
    } else if (len > PIECE) {
        const int64_t in_run = fn_ceil_div(len, PIECE), off = i % in_run * PIECE;
        const int64_t run = i / in_run % runs, g = i / in_run / runs, p = run * pl->cols;
        row_part(job, p, p + pl->cols, g, g + 1, off, fn_min(PIECE, len - off), hints);
    } else {
        const int64_t each = PIECE / len, in_seg = fn_ceil_div(runs, each);
        const int64_t g = i / in_seg, run = i % in_seg * each;
        row_part(job, run * pl->cols, fn_min(run + each, runs) * pl->cols, g, g + 1, 0, len, hints);
    }
}

/* ---- walks --------------------------------------------------------------------------------*/

/* Units to whole threads, when that keeps every thread busy. */
static int by_units(const fn_job *job) {
    const int64_t U = job->plan.units, T = job->threads;
    return job->plan.p.norm != FN_SWITCHABLE && (U >= 4 * T || U % T == 0);
}

static int64_t domain_blocks(const fn_plan *pl) { return fn_ceil_div(pl->domains, BLOCK); }

static void measure(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_parallel(job, (pl->cols > 1 ? matrices(pl) : pl->domains) * pl->mchunks.count, task_moments,
                0);
}

void fn_run_measure(fn_job *job) {
    measure(job);
    by_planes(job, domain_blocks(&job->plan), task_merge);
}

void fn_run_apply(fn_job *job) {
    by_planes(job, domain_blocks(&job->plan), task_coefficients);
    fn_parallel(job, piece_count(job), task_apply_piece, fn_needs_moments(&job->plan));
}

void fn_run_forward(fn_job *job) {
    fn_plan *pl = &job->plan;
    if (fn_needs_moments(pl) && by_units(job)) {
        fn_parallel(job, pl->units, task_forward_unit, 0);
    } else {
        if (fn_needs_moments(pl))
            measure(job);
        by_planes(job, domain_blocks(pl), task_statistics);
        if (pl->p.norm == FN_SWITCHABLE) {
            by_planes(job, pl->n, task_layer_statistics);
            by_planes(job, channel_blocks(pl), task_batch_statistics);
        }
        fn_run_apply(job);
    }
    fn_update_running(&job->cf);
}

void fn_run_measure_grad(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_parallel(job, matrices(pl) * pl->gchunks.count, task_grad_moments, 0);
    by_planes(job, fn_ceil_div(pl->planes, BLOCK), task_grad_merge);
}

/* gradient sums of all planes and the coefficients of dx */
void fn_grad_sums(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_run_measure_grad(job);
    if (pl->p.norm == FN_SWITCHABLE) {
        by_planes(job, pl->n, task_layer_grad_sums);
        by_planes(job, channel_blocks(pl), task_batch_grad_sums);
    }
    by_planes(job, domain_blocks(pl), task_grad_coefficients);
}

void fn_run_apply_grad(fn_job *job) {
    by_planes(job, domain_blocks(&job->plan), task_grad_coefficients);
    fn_parallel(job, piece_count(job), task_apply_piece, 1);
}

void fn_run_backward(fn_job *job) {
    const fn_plan *pl = &job->plan;
    by_planes(job, domain_blocks(pl), task_coefficients);
    if (pl->elem && (job->weight || job->bias)) {
        fn_backward_elem(job);
        return;
    }
    if (by_units(job)) {
        fn_parallel(job, pl->units, task_backward_unit, 0);
    } else {
        fn_grad_sums(job);
        fn_parallel(job, piece_count(job), task_apply_piece, 1);
    }
    if (!pl->elem)
        by_planes(job, channel_blocks(pl), task_param_grads);
    if (pl->p.norm == FN_SWITCHABLE)
        fn_logit_grads(&job->cf, job->grads);
}
