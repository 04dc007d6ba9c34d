/* A call in progress: what calls.c, run.c, parts.c, backward_elem.c, columns.c and threads.c
 * share. */
#ifndef FN_RUN_H
#define FN_RUN_H

#include "internal.h"

typedef struct {
    fn_plan plan;
    fn_coefs cf;
    const char *x, *dy; /* dy NULL: forward */
    char *out;          /* y or dx */
    void *weight, *bias;
    const fn_grads *grads; /* backward */
    double *mean, *m2;     /* moments, or gradient sums, of each chunk */
    void *elem_work;       /* backward of layer and RMS norm: sums of dweight and dbias */
    int threads;
    int stream; /* y or dx is written past the cache */
    int fetch;  /* what has to be fetched of what is read: fn_fetch */
} fn_job;

/* element i of coefficients or parameters */
static inline char *fn_at(const fn_job *job, void *p, int64_t i) {
    return fn_element(&job->plan, p, i);
}

/* the next cache line: where coefficients and sums begin, as a vector in two lines is two loads */
#define FN_LINE_BYTES 64
static inline char *fn_line(char *p) { return p + -(uintptr_t)p % FN_LINE_BYTES; }

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
/* the steps: moments of all domains, whose m2 is in `var`; coefficients of y, and y; sums over all
 * planes; coefficients of dx, and dx */
void fn_run_measure(fn_job *job);
void fn_run_apply(fn_job *job);
void fn_run_measure_grad(fn_job *job);
void fn_run_apply_grad(fn_job *job);
void fn_run_forward(fn_job *job);
void fn_run_backward(fn_job *job);

int fn_threads_for(int64_t bytes);
void fn_parallel(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards);
/* gradient sums and the coefficients of dx: of all domains; of domains [d, d1) of one sample */
void fn_grad_sums(fn_job *job);
void fn_grad_sums_of(fn_job *job, int64_t d, int64_t d1);

/* backward of layer and RMS norm with weight or bias */
fn_status fn_elem_workspace(fn_job *job);
void fn_backward_elem(fn_job *job);

#endif
