/* See steps.h.  The sums are the same, in the same order, whoever takes a step. */
#include "core/steps.h"

#include "core/around.h"
#include "core/careful.h"
#include "core/place.h"

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

/* ---- some domains --------------------------------------------------------------------------*/

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

void fn_coefficients_of(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    const int of_planes = pl->cols > 1;
    all_chunks(job, pl->mchunks.count, of_planes ? fn_first_plane(pl, d) : d,
               of_planes ? fn_first_plane(pl, d1) : d1, fn_moments_chunk);
    statistics(job, d, d1);
    by_samples(job, d, d1, pl->row->sample_statistics);
    fn_coefficients(&job->cf, d, d1);
}

/* what spans the domains of a sample is not among what forward saved */
static void (*of_samples(const fn_plan *pl))(fn_coefs *, int64_t) {
    return pl->row->saved_more ? NULL : pl->row->sample_statistics;
}
void fn_forward_coefficients_of(fn_job *job, int64_t d, int64_t d1) {
    by_samples(job, d, d1, of_samples(&job->plan));
    fn_coefficients(&job->cf, d, d1);
}

void fn_grad_sums_of(fn_job *job, int64_t p, int64_t p1) {
    all_chunks(job, job->plan.gchunks.count, p, p1, fn_grad_chunk);
    fn_merge_grad_planes(job, p, p1);
}

void fn_grad_coefficients_of(fn_job *job, int64_t d, int64_t d1) {
    const fn_plan *pl = &job->plan;
    if (job->grads_before == FN_BY_CHUNKS)
        fn_begin_grads_before(job, d, d1);
    fn_grad_sums_of(job, fn_first_plane(pl, d), fn_first_plane(pl, d1));
    if (job->grads_before == FN_BY_CHUNKS)
        fn_end_grads_before(job, d, d1);
    fn_careful_grads(job, d, d1);
    by_samples(job, d, d1, pl->row->sample_grads);
    fn_grad_coefficients(&job->cf, d, d1);
}

/* ---- all of them: tasks --------------------------------------------------------------------*/

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
/* what is done for each domain, each plane, by so many as are worth a task */
#define SOME_PLANES 256
static void task_statistics(fn_job *job, int64_t i) {
    statistics(job, i * SOME_PLANES, fn_min((i + 1) * SOME_PLANES, job->plan.domains));
}
static void task_coefficients(fn_job *job, int64_t i) {
    fn_coefficients(&job->cf, i * SOME_PLANES, fn_min((i + 1) * SOME_PLANES, job->plan.domains));
}
static void task_centers(fn_job *job, int64_t i) {
    fn_centers(&job->cf, i * SOME_PLANES, fn_min((i + 1) * SOME_PLANES, job->plan.domains));
}
static void task_grad_merge(fn_job *job, int64_t i) {
    fn_merge_grad_planes(job, i * SOME_PLANES, fn_min((i + 1) * SOME_PLANES, job->plan.planes));
}
static void task_careful_grads(fn_job *job, int64_t i) {
    fn_careful_grads(job, i * SOME_PLANES, fn_min((i + 1) * SOME_PLANES, job->plan.domains));
}
static void task_grad_coefficients(fn_job *job, int64_t i) {
    fn_grad_coefficients(&job->cf, i * SOME_PLANES,
                         fn_min((i + 1) * SOME_PLANES, job->plan.domains));
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

/* what is done for some channels at a time */
static int64_t channel_tasks(const fn_plan *pl) { return fn_ceil_div(pl->c, FN_CHANNELS); }
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

/* What is written: about so many elements a task, in memory order.  Where x comes from memory, what
 * lies FETCH_AHEAD bytes further is fetched: processors fetch by themselves up to the end of a
 * page. */
#define OUT_ELEMS 32768
#define FETCH_AHEAD 8192
static int64_t out_tasks(const fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (pl->col)
        return groups_of(pl) * fn_ceil_div(pl->s, fn_max(1, OUT_ELEMS / pl->cols));
    const int64_t len = pl->s * pl->cols, runs = groups_of(pl);
    if (len > OUT_ELEMS)
        return pl->nseg * runs * fn_ceil_div(len, OUT_ELEMS);
    return pl->nseg * fn_ceil_div(runs, OUT_ELEMS / len);
}
static void task_out(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const fn_hints hints = {job->use.fetch ? FETCH_AHEAD : 0, 0, job->use.stream};
    const int64_t len = pl->s * pl->cols, runs = groups_of(pl);
    if (pl->col) {
        const int64_t rows = fn_max(1, OUT_ELEMS / pl->cols), in_matrix = fn_ceil_div(pl->s, rows);
        const int64_t p = i / in_matrix * pl->cols, r = i % in_matrix * rows;
        fn_place_columns(job, p, p + pl->cols, r, fn_min(r + rows, pl->s), hints);
    } else if (len > OUT_ELEMS) {
        const int64_t in_run = fn_ceil_div(len, OUT_ELEMS), off = i % in_run * OUT_ELEMS;
        const int64_t run = i / in_run % runs, g = i / in_run / runs, p = run * pl->cols;
        fn_place_rows(job, p, p + pl->cols, g, g + 1, off, fn_min(OUT_ELEMS, len - off), hints);
    } else {
        const int64_t each = OUT_ELEMS / len, in_seg = fn_ceil_div(runs, each);
        const int64_t g = i / in_seg, run = i % in_seg * each;
        fn_place_rows(job, run * pl->cols, fn_min(run + each, runs) * pl->cols, g, g + 1, 0, len,
                      hints);
    }
}

/* ---- all of them ---------------------------------------------------------------------------*/

static int64_t domain_tasks(const fn_plan *pl) { return fn_ceil_div(pl->domains, SOME_PLANES); }

void fn_all_statistics(fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (fn_needs_moments(pl))
        fn_for_all(job, moment_tasks(pl), task_moments, 0);
    by_planes(job, domain_tasks(pl), task_statistics);
    if (pl->row->sample_statistics)
        by_planes(job, pl->n, task_sample_statistics);
    if (pl->row->channel_statistics)
        by_planes(job, channel_tasks(pl), task_channel_statistics);
}

void fn_all_coefficients(fn_job *job) {
    by_planes(job, domain_tasks(&job->plan), task_coefficients);
}
void fn_all_forward_coefficients(fn_job *job) {
    if (of_samples(&job->plan))
        by_planes(job, job->plan.n, task_sample_statistics);
    fn_all_coefficients(job);
}
void fn_all_centers(fn_job *job) { by_planes(job, domain_tasks(&job->plan), task_centers); }

static void all_sums(fn_job *job) {
    fn_for_all(job, grad_tasks(&job->plan), task_grad_moments, 0);
    by_planes(job, fn_ceil_div(job->plan.planes, SOME_PLANES), task_grad_merge);
}

void fn_all_grad_sums(fn_job *job) {
    if (job->grads_before == FN_BY_CHUNKS)
        fn_begin_all_grads_before(job);
    all_sums(job);
    if (job->grads_before == FN_BY_CHUNKS)
        fn_end_all_grads_before(job);
    by_planes(job, domain_tasks(&job->plan), task_careful_grads);
}

void fn_all_grad_coefficients(fn_job *job) {
    const fn_plan *pl = &job->plan;
    if (pl->row->sample_grads)
        by_planes(job, pl->n, task_sample_grads);
    if (pl->row->channel_grads)
        by_planes(job, channel_tasks(pl), task_channel_grads);
    by_planes(job, domain_tasks(pl), task_grad_coefficients);
}

void fn_all_out(fn_job *job, int backwards) {
    fn_for_all(job, out_tasks(job), task_out, backwards);
}

void fn_all_masked(fn_job *job) {
    all_sums(job);
    memcpy(job->cf.sum_all, job->cf.sum_dy, (size_t)job->plan.planes * sizeof(double));
    job->masking = 1;
    fn_all_out(job, 1);
    job->masking = 0;
    job->dy = job->out;
}

void fn_all_param_grads(fn_job *job) {
    by_planes(job, channel_tasks(&job->plan), task_param_grads);
}
void fn_all_running(fn_job *job) { by_planes(job, channel_tasks(&job->plan), task_update_running); }
