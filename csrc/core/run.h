/* A call in progress: what the files share that walk over arrays. */
#ifndef FN_RUN_H
#define FN_RUN_H

#include "core/internal.h"
#include "core/traffic.h"
#include "system/threads.h"

typedef struct {
    fn_plan plan;
    fn_params params; /* from its first channel on */
    fn_coefs cf;
    const char *x, *dy; /* dy NULL: forward */
    char *out;          /* y or dx */
    void *weight, *bias;
    double *mean, *m2;              /* moments, or gradient sums, of each chunk */
    void *extra;                    /* what tasks of columns.c need besides */
    double *dweight, *dbias, *dtau; /* sums over the samples so far */
    int masking;        /* what is written is dy above the floor; from then on that is dy */
    int64_t elem_parts; /* where parameters belong to the elements: their sums of so many parts */
    int want_dbias;     /* of the elements; dweight, where there is a weight */
    fn_team team;
    char *scratch; /* of this thread */
    int stream;    /* y or dx is written past the cache */
    int fetch;     /* what has to be fetched of what is read: fn_fetch */
} fn_job;

/* bytes that column kernels, and the walks that read a few columns, need of a thread's scratch */
static inline int64_t fn_job_scratch(const fn_plan *pl) {
    const int64_t cols = pl->flat ? FN_STRIP : pl->cols;
    if (cols == 1) /* rows: extremes alone */
        return 2 * fn_table(1) * (int64_t)pl->asize;
    return (int64_t)fn_scratch_bytes(pl->esize, pl->asize, cols);
}

/* element i of coefficients or parameters */
static inline char *fn_at(const fn_job *job, void *p, int64_t i) {
    return fn_element(&job->plan, p, i);
}

/* the next cache line: where coefficients and sums begin, as a vector in two lines is two loads */
static inline char *fn_line(char *p) { return p + -(uintptr_t)p % FN_LINE; }

/* so many bytes, and a line to begin at; NULL where there are none, or more than an address holds
 */
void *fn_allocate(int64_t bytes);

/* What lies side by side, cols planes, is a group: a matrix in column form, a block, a plane
 * (domain) in row form.  Where that of p ends, or p1 if that is before. */
static inline int64_t fn_group_end(const fn_plan *pl, int64_t p, int64_t p1) {
    return fn_min(p1, (p / pl->cols + 1) * pl->cols);
}

/* ---- parts.c ---- */
/* Chunk k of the reductions [i, i1), domains in row form, else planes: moments; gradient sums of
 * planes [p, p1).  Of one matrix or block; in row form of one when there are several chunks. */
void fn_moments_chunk(fn_job *job, int64_t i, int64_t i1, int64_t k);
void fn_grad_chunk(fn_job *job, int64_t p, int64_t p1, int64_t k);
/* the chunks, in order, to the moments of domains [d, d1), the sums of planes [p, p1) */
void fn_merge_domains(fn_job *job, int64_t d, int64_t d1);
void fn_merge_grad_planes(fn_job *job, int64_t p, int64_t p1);
/* y, or dx, of a part of planes [p, p1) in segments [g, g1): of `len` elements from `off` on, of
 * each plane or block; in column form of rows [r, r1) of planes of one matrix */
void fn_row_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                 int64_t len, fn_hints hints);
void fn_col_part(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1);

/* ---- run.c ---- */
/* the steps: coefficients of y, and y; sums over all planes; coefficients of dx, and dx */
void fn_run_apply(fn_job *job);
void fn_run_measure_grad(fn_job *job);
void fn_run_apply_grad(fn_job *job);
void fn_run_forward(fn_job *job);
void fn_run_backward(fn_job *job);

/* task(job, i) for all i in [0, count), on the threads of the job's team, each with a job of its
 * own
 */
void fn_for_all(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards);
/* gradient sums and the coefficients of dx: of all domains; of domains [d, d1) of one sample */
void fn_grad_sums(fn_job *job);
void fn_grad_sums_of(fn_job *job, int64_t d, int64_t d1);

/* ---- measure.c ---- */
/* Exact moments of all features, the domains of the plan (of a group of channels, its planes; the
 * padding of blocks too): arrays of count, mean, mean_low, m2 and exponent, where
 * mean + mean_low is the mean and m2 * 4^exponent the sum of squared deviations.  NaN does not
 * count with skip_nan; weight: of each row, or NULL. */
fn_status fn_measure_features(const fn_plan *pl, const void *x, int threads, int skip_nan,
                              const double *weight, double *statistics);
/* those of domain d of a call: mean, and m2 * 4^exponent */
void fn_exact_moments(const fn_job *job, int64_t d, double *mean, double *m2, int *exponent);

/* ---- careful.c: what leaves the range of the kernels ---- */
/* domains [d, d1) whose deviation kernels cannot be trusted with are measured again */
void fn_careful_moments(fn_job *job, int64_t d, int64_t d1);
/* gradient sums of the planes of domains [d, d1) likewise; FN_FLAT where dx is 0 */
void fn_careful_grads(fn_job *job, int64_t d, int64_t d1);
/* FN_FLAT likewise, where the sums are those of several processes */
void fn_flat_everywhere(fn_job *job);
static inline int fn_any_careful(const fn_coefs *cf, int64_t p, int64_t p1) {
    int any = 0;
    for (; p < p1; p++)
        any |= cf->marks[p];
    return any & FN_CAREFUL;
}
/* y, or dx, of elements [from, to) of the runs of planes [p, p1) in segments [g, g1); where sums
 * are given, what the elements add to dweight and dbias of their row */
void fn_careful_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t from,
                     int64_t to, double *dweight, double *dbias);

/* Backward of layer and RMS norm with parameters.  Where dweight lies it needs so many bytes, set
 * to 0 before the first slice: sums of so many parts; then the parts are added to the first. */
int64_t fn_elem_parts(const fn_plan *pl);
int64_t fn_elem_bytes(const fn_plan *pl);
void fn_backward_elem(fn_job *job);
void fn_add_elem_parts(double *sums, int64_t parts, int64_t s);

#endif
