/* Walks a plan: moments, coefficients, apply, and back.
 *
 * Units that are numerous enough go to the threads whole: a thread takes a unit through all steps
 * while it is in its cache.  Otherwise the steps go one by one over the whole array, chunks shared
 * among the threads.  The sums are the same, in the same order, either way. */
#include "core/run.h"

#include <string.h>

typedef struct {
    fn_job *job;
    void (*task)(fn_job *, int64_t);
} work;

static void take_share(void *context, fn_share *share, char *scratch) {
    const work *of = context;
    fn_job job = *of->job;
    job.scratch = scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;)
        of->task(&job, i);
}

void fn_for_all(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards) {
    work of = {job, task};
    job->team.fence = job->stream;
    fn_parallel(&job->team, count, backwards, take_share, &of);
}

static int64_t groups_of(const fn_plan *pl) { return pl->planes / pl->cols; }

/* all chunks of the reductions [i, i1) */
static void all_chunks(fn_job *job, int64_t chunks, int64_t i, int64_t i1,
                       void (*chunk)(fn_job *, int64_t, int64_t, int64_t)) {
    const fn_plan *pl = &job->plan;
    if (pl->cols > 1) {
        for (int64_t end; i < i1; i = end) {
            end = fn_group_end(pl, i, i1);
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
        fn_row_part(job, p, p1, 0, pl->nseg, 0, pl->s * pl->cols, hints);
        return;
    }
    for (int64_t end; p < p1; p = end) {
        end = fn_group_end(pl, p, p1);
        fn_col_part(job, p, end, 0, pl->s);
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

/* the statistics of domains [d, d1), from the moments of their chunks where x is read */
static void statistics(fn_job *job, int64_t d, int64_t d1) {
    if (fn_needs_moments(&job->plan)) {
        fn_merge_domains(job, d, d1);
        if (fn_deviations(&job->cf, d, d1))
            fn_careful_moments(job, d, d1);
    }
    fn_statistics(&job->cf, d, d1);
}

/* what spans the domains of each sample among [d, d1) */
static void by_samples(fn_job *job, int64_t d, int64_t d1, void (*of)(fn_coefs *, int64_t)) {
    const int64_t each = job->plan.sample_domains;
    for (int64_t n = d / each; of && n * each < d1; n++)
        of(&job->cf, n);
}

/* moments, coefficients and apply of domains [d, d1), of one sample in column and block form */
static void forward_domains(fn_job *job, int64_t d, int64_t d1, fn_hints hints) {
    const fn_plan *pl = &job->plan;
    const int64_t p = fn_first_plane(pl, d), p1 = fn_first_plane(pl, d1);
    all_chunks(job, pl->mchunks.count, pl->cols > 1 ? p : d, pl->cols > 1 ? p1 : d1,
               fn_moments_chunk);
    statistics(job, d, d1);
    by_samples(job, d, d1, pl->row->sample_statistics);
    fn_coefficients(&job->cf, d, d1);
    apply_unit(job, p, p1, hints);
}

/* Writes to memory overlap with the reads of what comes next only while they fit the processor's
 * store queue: of arrays larger than the cache, one thread takes small domains a few kilobytes at a
 * time, and by whole lines: one of which a part is written has to be read.  Several threads fill
 * each other's pauses. */
#define BATCH_BYTES 8192
static int64_t domains_at_once(const fn_job *job, int64_t unit_domains) {
    const fn_plan *pl = &job->plan;
    const int64_t bytes = pl->count * (int64_t)pl->esize;
    const int small = pl->cols == 1 && pl->nseg == 1 && 0 < bytes && bytes <= BATCH_BYTES / 2;
    if (!job->stream || job->team.threads > 1 || !small || pl->row->sample_statistics)
        return unit_domains;
    const int64_t some = BATCH_BYTES / bytes, whole = fn_whole_lines(bytes);
    return some < whole ? some : some / whole * whole;
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
    all_chunks(job, pl->gchunks.count, p, p1, fn_grad_chunk);
    fn_merge_grad_planes(job, p, p1);
    fn_careful_grads(job, d, d1);
    by_samples(job, d, d1, pl->row->sample_grads);
    fn_grad_coefficients(&job->cf, d, d1);
}

/* the sums of planes [p, p1) that were taken of all dy are kept */
static void keep_sums(fn_job *job, int64_t p, int64_t p1) {
    memcpy(job->cf.sum_all + p, job->cf.sum_dy + p, (size_t)(p1 - p) * sizeof(double));
}

static void task_backward_unit(fn_job *job, int64_t u) {
    const fn_plan *pl = &job->plan;
    const char *dy = job->dy;
    int64_t d0, d1;
    unit_domains(pl, u, &d0, &d1);
    const int64_t p = fn_first_plane(pl, d0), p1 = fn_first_plane(pl, d1);
    if (job->cf.floor) {
        all_chunks(job, pl->gchunks.count, p, p1, fn_grad_chunk);
        fn_merge_grad_planes(job, p, p1);
        keep_sums(job, p, p1);
        job->masking = 1;
        apply_unit(job, p, p1, (fn_hints){0, 0, 0});
        job->masking = 0;
        job->dy = job->out;
    }
    fn_grad_sums_of(job, d0, d1);
    apply_unit(job, p, p1, unit_hints(job, u));
    job->dy = dy;
}

/* ---- steps of the walk over the whole array ------------------------------------------------*/

/* reductions that are worth a task: a group, or in row form several that are small */
#define TASK_ELEMS 8192
static int64_t at_once(const fn_plan *pl, const fn_chunks *ch, int64_t elems) {
    return pl->cols > 1 || ch->count > 1 ? pl->cols : fn_max(1, TASK_ELEMS / fn_max(elems, 1));
}
static int64_t reductions(const fn_plan *pl) { return pl->cols > 1 ? pl->planes : pl->domains; }
static int64_t moment_tasks(const fn_plan *pl) {
    return fn_ceil_div(reductions(pl), at_once(pl, &pl->mchunks, pl->count)) * pl->mchunks.count;
}
static void task_moments(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t K = pl->mchunks.count, each = at_once(pl, &pl->mchunks, pl->count);
    fn_moments_chunk(job, i / K * each, fn_min((i / K + 1) * each, reductions(pl)), i % K);
}
/* what is done for each domain, each plane, by blocks that are worth a task */
#define BLOCK 256
static void task_statistics(fn_job *job, int64_t i) {
    statistics(job, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_coefficients(fn_job *job, int64_t i) {
    fn_coefficients(&job->cf, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_centers(fn_job *job, int64_t i) {
    fn_centers(&job->cf, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_grad_merge(fn_job *job, int64_t i) {
    fn_merge_grad_planes(job, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.planes));
}
static void task_careful_grads(fn_job *job, int64_t i) {
    fn_careful_grads(job, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_grad_coefficients(fn_job *job, int64_t i) {
    fn_grad_coefficients(&job->cf, i * BLOCK, fn_min((i + 1) * BLOCK, job->plan.domains));
}
static void task_sample_statistics(fn_job *job, int64_t n) {
    job->plan.row->sample_statistics(&job->cf, n);
}
static void task_sample_grads(fn_job *job, int64_t n) { job->plan.row->sample_grads(&job->cf, n); }

/* steps that touch planes, not elements: below this many they are not worth waking threads for */
#define PLANES_FOR_THREADS 8192
static void by_planes(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t)) {
    if (job->plan.planes >= PLANES_FOR_THREADS)
        fn_for_all(job, count, task, 0);
    else
        for (int64_t i = 0; i < count; i++)
            task(job, i);
}

/* what is done for blocks of channels */
static int64_t channel_blocks(const fn_plan *pl) { return fn_ceil_div(pl->c, FN_CHANNELS); }
static void task_channel_statistics(fn_job *job, int64_t i) {
    job->plan.row->channel_statistics(&job->cf, i * FN_CHANNELS,
                                      fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_channel_grads(fn_job *job, int64_t i) {
    job->plan.row->channel_grads(&job->cf, i * FN_CHANNELS,
                                 fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_update_running(fn_job *job, int64_t i) {
    fn_update_running(&job->cf, i * FN_CHANNELS, fn_min((i + 1) * FN_CHANNELS, job->plan.c));
}
static void task_param_grads(fn_job *job, int64_t i) {
    fn_param_grads(&job->cf, job->dweight, job->dbias, job->dtau, i * FN_CHANNELS,
                   fn_min((i + 1) * FN_CHANNELS, job->plan.p.c));
}
static int64_t grad_tasks(const fn_plan *pl) {
    const int64_t elems = pl->s * pl->nseg;
    return fn_ceil_div(pl->planes, at_once(pl, &pl->gchunks, elems)) * pl->gchunks.count;
}
static void task_grad_moments(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t K = pl->gchunks.count, each = at_once(pl, &pl->gchunks, pl->s * pl->nseg);
    fn_grad_chunk(job, i / K * each, fn_min((i / K + 1) * each, pl->planes), i % K);
}

/* The array in pieces of about PIECE elements, in memory order. */
#define PIECE 32768
static int64_t piece_count(const fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (pl->col)
        return groups_of(pl) * fn_ceil_div(pl->s, fn_max(1, PIECE / pl->cols));
    const int64_t len = pl->s * pl->cols, runs = groups_of(pl);
    if (len > PIECE)
        return pl->nseg * runs * fn_ceil_div(len, PIECE);
    return pl->nseg * fn_ceil_div(runs, PIECE / len);
}
static void task_apply_piece(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const fn_hints hints = {0, 0, job->stream};
    const int64_t len = pl->s * pl->cols, runs = groups_of(pl);
    if (pl->col) {
        const int64_t rows = fn_max(1, PIECE / pl->cols), in_matrix = fn_ceil_div(pl->s, rows);
        const int64_t p = i / in_matrix * pl->cols, r = i % in_matrix * rows;
        fn_col_part(job, p, p + pl->cols, r, fn_min(r + rows, pl->s));
    } else if (len > PIECE) {
        const int64_t in_run = fn_ceil_div(len, PIECE), off = i % in_run * PIECE;
        const int64_t run = i / in_run % runs, g = i / in_run / runs, p = run * pl->cols;
        fn_row_part(job, p, p + pl->cols, g, g + 1, off, fn_min(PIECE, len - off), hints);
    } else {
        const int64_t each = PIECE / len, in_seg = fn_ceil_div(runs, each);
        const int64_t g = i / in_seg, run = i % in_seg * each;
        fn_row_part(job, run * pl->cols, fn_min(run + each, runs) * pl->cols, g, g + 1, 0, len,
                    hints);
    }
}

/* ---- walks --------------------------------------------------------------------------------*/

/* Units to whole threads, when that keeps every thread busy. */
static int by_units(const fn_job *job) {
    const int64_t U = job->plan.units, T = job->team.threads;
    return !job->plan.row->channel_statistics && (U >= 4 * T || U % T == 0);
}

static int64_t domain_blocks(const fn_plan *pl) { return fn_ceil_div(pl->domains, BLOCK); }

void fn_run_apply(fn_job *job) {
    by_planes(job, domain_blocks(&job->plan), task_coefficients);
    fn_for_all(job, piece_count(job), task_apply_piece, fn_needs_moments(&job->plan));
}

void fn_run_forward(fn_job *job) {
    fn_plan *pl = &job->plan;
    if (fn_needs_moments(pl) && by_units(job)) {
        fn_for_all(job, pl->units, task_forward_unit, 0);
    } else {
        if (fn_needs_moments(pl))
            fn_for_all(job, moment_tasks(pl), task_moments, 0);
        by_planes(job, domain_blocks(pl), task_statistics);
        if (pl->row->sample_statistics)
            by_planes(job, pl->n, task_sample_statistics);
        if (pl->row->channel_statistics)
            by_planes(job, channel_blocks(pl), task_channel_statistics);
        fn_run_apply(job);
    }
    by_planes(job, channel_blocks(pl), task_update_running);
}

void fn_run_measure_grad(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_for_all(job, grad_tasks(pl), task_grad_moments, 0);
    by_planes(job, fn_ceil_div(pl->planes, BLOCK), task_grad_merge);
    by_planes(job, domain_blocks(pl), task_careful_grads);
}

/* gradient sums of all planes and the coefficients of dx */
void fn_grad_sums(fn_job *job) {
    const fn_plan *pl = &job->plan;
    fn_run_measure_grad(job);
    if (pl->row->sample_grads)
        by_planes(job, pl->n, task_sample_grads);
    if (pl->row->channel_grads)
        by_planes(job, channel_blocks(pl), task_channel_grads);
    by_planes(job, domain_blocks(pl), task_grad_coefficients);
}

void fn_run_apply_grad(fn_job *job) {
    by_planes(job, domain_blocks(&job->plan), task_grad_coefficients);
    fn_for_all(job, piece_count(job), task_apply_piece, 1);
}

/* dx becomes dy above the floor, and then is dy */
static void mask_all(fn_job *job) {
    fn_for_all(job, grad_tasks(&job->plan), task_grad_moments, 0);
    by_planes(job, fn_ceil_div(job->plan.planes, BLOCK), task_grad_merge);
    keep_sums(job, 0, job->plan.planes);
    job->masking = 1;
    fn_for_all(job, piece_count(job), task_apply_piece, 1);
    job->masking = 0;
    job->dy = job->out;
}

void fn_run_backward(fn_job *job) {
    const fn_plan *pl = &job->plan;
    by_planes(job, domain_blocks(pl), task_centers);
    if (job->elem_parts) {
        fn_backward_elem(job);
        return;
    }
    if (by_units(job)) {
        fn_for_all(job, pl->units, task_backward_unit, 0);
    } else {
        if (job->cf.floor)
            mask_all(job);
        fn_grad_sums(job);
        fn_for_all(job, piece_count(job), task_apply_piece, 1);
    }
    if (!pl->elem)
        by_planes(job, channel_blocks(pl), task_param_grads);
}
