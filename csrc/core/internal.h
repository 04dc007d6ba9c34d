/* What the C files share: the kernel table and the plan. */
#ifndef FN_INTERNAL_H
#define FN_INTERNAL_H

#include "kernels/list.h"
#include "kernels/moments.h"
#include "norms/table.h"

#include <string.h>

/* ---- plan: shapes to domains ---------------------------------------------------------------
 * plane   the smallest set of elements with common coefficients: a channel of a sample, or, when
 *         the domain spans the samples (batch norm), a channel
 * domain  planes that share a mean and a variance
 * chunk   a piece of a plane or domain: a reduction is cut in chunks, whose moments are merged in
 *         order.  Chunks depend on the shape alone: so do the bits of the result.
 * unit    consecutive domains that a thread takes through moments, coefficients and apply while
 *         they are in its cache
 */
typedef struct {
    int64_t count, size; /* size: segments, or elements of a segment (pieces > 0), or rows */
    int64_t pieces;      /* chunks of a segment; 0: a chunk is `size` whole segments */
} fn_chunks;

struct fn_plan {
    fn_problem p;
    const fn_row *row; /* of p.norm */
    const fn_kernels *k;
    size_t esize;    /* bytes of an element of x */
    size_t asize;    /* bytes of an element of the coefficients */
    int col;         /* column form: matrices of s rows and cols columns */
    int64_t block;   /* block form: x[n][c / block][s][block], 0 in the others; else row form */
    int elem;        /* domains are (n, c); weight and bias belong to the elements of s */
    int squares;     /* moments are the sums of squares */
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

/* how many pieces of so many bytes, behind one another, are whole cache lines */
static inline int64_t fn_whole_lines(int64_t bytes) {
    const int64_t power = bytes & -bytes;
    return power < 64 ? 64 / power : 1;
}

/* FN_BAD_PROBLEM, or a plan; an empty problem has none: *elements is 0 */
fn_status fn_plan_make(fn_plan *plan, const fn_problem *problem, const fn_params *params,
                       int backward, int64_t *elements);

/* ---- coefficients --------------------------------------------------------------------------*/
struct fn_coefs {
    const fn_plan *plan;
    const fn_params *params;
    double count;                 /* elements of a domain, in all arrays that share it */
    double *mean, *std;           /* statistics of each domain */
    double *r, *d;                /* renorm: corrections of each domain; else NULL */
    void *center, *scale, *shift; /* y = (x - center) * scale + shift, for each plane */
    void *a, *b, *e;              /* dx = a*dy + b*(x - center) + e, for each plane */
    double *sum_dy, *sum_dy_xc;   /* sums over each plane of dy and dy*(x - center) */
    unsigned char *marks;         /* of each plane: fn_mark */
    void *floor;                  /* what y is at least, for each plane; NULL: nothing */
    double *sum_all;              /* then: sums over each plane of dy, where dy is that above it */
    double *more, *own;           /* of the normalizer alone: fn_row */
};

/* FN_CAREFUL: its coefficients leave the range of the kernels, and careful.c computes it.  FN_FLAT:
 * x and dy * weight are constant over its domain, so that nothing but eps is left of dx. FN_SCALED:
 * sum_dy_xc is that of dy * (x - center) / fn_size_of(std), as the products may be no doubles. */
enum { FN_CAREFUL = 1, FN_FLAT = 2, FN_SCALED = 4 };

/* Where the kernels' arithmetic keeps its digits.  Outside of it squares, products of coefficients,
 * or of one and an element, may overflow, or lose digits to underflow.  careful.c takes such
 * planes. */
typedef struct {
    double low, high;         /* of coefficients, in magnitude */
    double std_low, std_high; /* of standard deviations that were measured */
    double zero;              /* elements of at least this magnitude differ by enough for a square:
                                 a deviation of 0 around such a mean is one of equal elements */
} fn_range;
static inline fn_range fn_range_of(size_t asize) {
    return asize == 4 ? (fn_range){0x1p-100, 0x1p100, 0x1p-55, 0x1p62, 0x1p-50}
                      : (fn_range){0x1p-480, 0x1p480, 0x1p-450, 0x1p450, 0x1p-480};
}

/* The coefficients of a plane in double, in a form whose numbers stay in range:
 *     y = (x - mean) / sigma * scale + shift
 *     dx = dy * scale / sigma + (x - mean) / sigma * b + e
 * (where the elements have weights, scale is without them, and dy is dy * weight) */
struct fn_careful {
    double mean, sigma, scale, shift, b, e;
};

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
/* domains [d0, d1): `std` holds m2, and becomes the standard deviation.  Returns whether there are
 * such as kernels cannot be trusted with, and that have to be measured again. */
int fn_deviations(fn_coefs *cf, int64_t d0, int64_t d1);
/* whether domain d is one of them; and its statistics, from m2 * 4^exponent */
int fn_out_of_range(const fn_coefs *cf, int64_t d);
void fn_put_moments(fn_coefs *cf, int64_t d, double mean, double m2, int exponent);
/* what else the norm makes of the statistics of domains [d0, d1) */
void fn_statistics(fn_coefs *cf, int64_t d0, int64_t d1);
/* statistics of domains [d0, d1) to center, scale and shift; for backward, which takes the center
 * alone but in layer and RMS norm, at least to that */
void fn_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
void fn_centers(fn_coefs *cf, int64_t d0, int64_t d1);
/* sum dy * (x - center) of plane p, where each domain is one plane, to sum dy * (x - mean), or back
 */
void fn_center_sums(fn_coefs *cf, int back);
/* sums of the planes of domains [d0, d1) to a, b, e; sum_dy_xc becomes sum dy * xhat */
void fn_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
/* dweight and dbias of channel normalizers, for channels [c0, c1), at most FN_CHANNELS of them, are
 * added to sums of c elements each */
#define FN_CHANNELS 64
void fn_param_grads(const fn_coefs *cf, double *dweight, double *dbias, double *dtau, int64_t c0,
                    int64_t c1);
/* running statistics of channels [c0, c1), at most FN_CHANNELS of them; the last thing a successful
 * forward does */
void fn_update_running(const fn_coefs *cf, int64_t c0, int64_t c1);

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
