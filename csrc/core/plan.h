/* Shapes to domains, and how domains are cut: depends on the problem alone, not on the arrays. */
#ifndef FN_PLAN_H
#define FN_PLAN_H

#include "kernels/list.h"
#include "norms/table.h"

#include <string.h>

/* What a call walks.
 *
 * plane   the smallest set of elements with common coefficients: a channel of a sample, or, when
 *         the domain spans the samples (batch norm), a channel
 * domain  planes that share a mean and a variance
 * chunk   a part of a plane or domain: a reduction is cut in chunks, whose moments are merged in
 *         order.  Chunks depend on the shape alone: so do the bits of the result.
 * unit    consecutive domains that a thread takes through moments, coefficients and apply while
 *         they are in its cache
 */
typedef struct {
    int64_t count, size; /* size: in column form rows, else elements of a segment, or segments */
    int64_t per_segment; /* chunks of a segment; 0: a chunk is `size` whole segments */
} fn_chunks;

struct fn_plan {
    fn_problem p;
    const fn_row *row; /* of p.norm */
    const fn_kernels *k;
    size_t esize;        /* bytes of an element of x */
    size_t asize;        /* bytes of an element of the coefficients */
    int col;             /* column form: matrices of s rows and cols columns */
    int64_t block;       /* block form: x[n][c / block][s][block], 0 in the others; else row form */
    int elem;            /* domains are (n, c); weight and bias belong to the elements of s, */
    int64_t weight_rows; /* which all channels share (1), or of which each has its own (c) */
    int squares;         /* moments are the sums of squares */
    int64_t n, c, s; /* as walked: batch norm channels last has n = 1, s = n*s; c is a multiple of
                        the block, and those from p.c on are padding */
    int64_t cols;    /* planes side by side: c in column form, the block, 1 in row form */
    int64_t ld;      /* elements from row to row: cols, or more in a slice of columns */

    int64_t count;            /* elements of a domain */
    int64_t domains;          /* number of domains */
    int64_t sample_domains;   /* domains among the c planes of a sample */
    int64_t planes;           /* number of planes = coefficient triples */
    int64_t per_domain;       /* planes of a domain */
    int64_t nseg, seg_stride; /* segments of a plane */
    int flat;                 /* many short segments, read as columns (fn_is_flat) */

    fn_chunks mchunks, gchunks; /* of what moments and gradient moments reduce */
    int64_t units, unit_domains;
    /* the next unit is fetched while this one is written: two fit the L2, all come from memory; and
     * the lines that it writes, where these fit as well */
    int prefetch, prefetch_out;
};

/* the planes of domains [d0, d1) are [fn_first_plane(d0), fn_first_plane(d1)), with the padding
 * behind the last domain of a sample */
static inline int64_t fn_first_plane(const fn_plan *plan, int64_t d) {
    if (plan->c == plan->p.c)
        return d * plan->per_domain;
    return d / plan->sample_domains * plan->c + d % plan->sample_domains * plan->per_domain;
}

/* elem: how many weights there are, and the first one of plane p */
static inline int64_t fn_elem_count(const fn_plan *plan) { return plan->weight_rows * plan->s; }
static inline int64_t fn_elem_first(const fn_plan *plan, int64_t p) {
    return plan->weight_rows > 1 ? p % plan->weight_rows * plan->s : 0;
}

/* FN_BAD_PROBLEM, or a plan; an empty problem has none: *elements is 0 */
fn_status fn_plan_make(fn_plan *plan, const fn_problem *problem, const fn_params *params,
                       int backward, int64_t *elements);

/* bytes that kernels need of a thread's scratch, for this plan or for a few of its columns */
int64_t fn_plan_scratch(const fn_plan *plan);

/* What lies side by side, cols planes, is a group: a matrix in column form, a block, a plane
 * (domain) in row form.  Where that of p ends, or p1 if that is before. */
static inline int64_t fn_group_end(const fn_plan *pl, int64_t p, int64_t p1) {
    return fn_min(p1, (p / pl->cols + 1) * pl->cols);
}

/* ---- what the normalizer says --------------------------------------------------------------*/

/* whether x has to be read for its moments (else the running statistics serve, and are constants of
 * the backward pass) */
static inline int fn_needs_moments(const fn_plan *plan) {
    return plan->p.training || !(plan->row->facts & FN_RUNNING_SERVES);
}
/* sigma is the length of a vector: the root of a sum of squares, not of a mean */
static inline int fn_is_length(const fn_plan *plan) { return !!(plan->row->facts & FN_LENGTH); }
/* whether the mean is not subtracted */
static inline int fn_uncentered(const fn_plan *plan) {
    return !!(plan->row->facts & FN_UNCENTERED);
}

/* ---- numbers of the compute type: coefficients, parameters ---------------------------------*/

/* an element of the compute type, whose size is asize */
static inline double fn_get_as(size_t asize, const void *p, int64_t i) {
    return asize == 4 ? ((const float *)p)[i] : ((const double *)p)[i];
}
static inline void fn_put_as(size_t asize, void *p, int64_t i, double v) {
    if (asize == 4)
        ((float *)p)[i] = (float)v;
    else
        ((double *)p)[i] = v;
}
static inline double fn_get(const fn_plan *plan, const void *p, int64_t i) {
    return fn_get_as(plan->asize, p, i);
}
static inline void fn_put(const fn_plan *plan, void *p, int64_t i, double v) {
    fn_put_as(plan->asize, p, i, v);
}
static inline char *fn_element(const fn_plan *plan, void *p, int64_t i) {
    return (char *)p + i * (int64_t)plan->asize;
}
/* n of them, from element i on */
static inline void fn_get_all(const fn_plan *plan, const void *p, int64_t i, double *v, int64_t n) {
    if (plan->asize == 8)
        memcpy(v, (const double *)p + i, (size_t)n * sizeof *v);
    else
        for (int64_t k = 0; k < n; k++)
            v[k] = ((const float *)p)[i + k];
}
static inline void fn_put_all(const fn_plan *plan, void *p, int64_t i, const double *v, int64_t n) {
    if (plan->asize == 8)
        memcpy((double *)p + i, v, (size_t)n * sizeof *v);
    else
        for (int64_t k = 0; k < n; k++)
            ((float *)p)[i + k] = (float)v[k];
}

#endif
