/* What the C files share: the kernel table and the plan. */
#ifndef FN_INTERNAL_H
#define FN_INTERNAL_H

#include "fastnorm.h"

#include <string.h>

/* for what compilers make better code of where its arguments are constants */
#define FN_INLINE static inline __attribute__((always_inline))

/* ---- kernels -------------------------------------------------------------------------------
 * One list: every entry is a kernel of the table, instantiated for each dtype and instruction
 * set.  `void` stands for an element of x's dtype (x, y, dy, dx), or for the compute type (the
 * coefficients, weight, bias: double for FN_F64, else float).  Contracts: kernels_*.inc. */

/* Which elements a row or block kernel walks: nseg segments of len contiguous elements.  `fetch`:
 * it comes from memory, and moments and sums fetch ahead where that helps. */
typedef struct {
    int64_t nseg, seg_stride, len;
    int fetch;
} fn_run;

/* Column kernels fill their registers with several rows when there are fewer columns than this;
 * then a unit has all columns, because the sums depend on it. */
#define FN_NARROW 64

/* Which elements a tile kernel walks: in each of nseg segments `planes` planes of `inner` elements.
 */
typedef struct {
    int64_t nseg, seg_stride, planes, inner;
} fn_tile;

/* Columns that column kernels keep the state of in the L1; those of a tile are taken so many at a
 * time. */
#define FN_STRIP 1024

/* How a kernel writes: `prefetch` bytes ahead of the element of x that is read, the input of the
 * next unit is fetched (0: none), and in blocks `prefetch_out` bytes ahead the lines of
 * the output that it writes; `stream` writes past the cache. */
typedef struct {
    int64_t prefetch, prefetch_out;
    int stream;
} fn_hints;

#define FN_KERNELS(X)                                                                              \
    X(row_moments, (const void *x, int64_t items, fn_run run, double *mean, double *m2))           \
    X(row_squares, (const void *x, int64_t items, fn_run run, double *mean, double *m2))           \
    X(row_apply, (const void *x, void *y, int64_t planes, fn_run run, const void *center,          \
                  const void *scale, const void *shift, fn_hints hints))                           \
    X(row_apply_elem,                                                                              \
      (const void *x, void *y, int64_t rows, int64_t stride, int64_t len, const void *center,      \
       const void *scale, const void *shift, const void *weight, const void *bias, int stream))    \
    X(row_grad_moments,                                                                            \
      (const void *x, const void *dy, int64_t items, fn_run run, const void *center,               \
       const void *weight, double *sum_dy, double *sum_dy_xc))                                     \
    X(row_grad_apply,                                                                              \
      (const void *x, const void *dy, void *dx, int64_t planes, fn_run run, const void *center,    \
       const void *a, const void *b, const void *e, fn_hints hints))                               \
    X(row_grad_apply_elem,                                                                         \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t stride, int64_t len,         \
       const void *center, const void *scale, const void *shift, const void *b, const void *e,     \
       const void *weight, void *dweight, void *dbias, int stream))                                \
    X(col_moments, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,              \
                    double *mean, double *m2))                                                     \
    X(col_squares, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,              \
                    double *mean, double *m2))                                                     \
    X(col_extremes, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,             \
                     double *low, double *high))                                                   \
    X(col_apply,                                                                                   \
      (const void *x, void *y, int64_t rows, int64_t ld, int64_t cols, const void *center,         \
       const void *scale, const void *shift, const void *weight, const void *bias, int stream))    \
    X(col_grad_moments,                                                                            \
      (const void *x, const void *dy, int64_t rows, int64_t ld, int64_t cols, int fetch,           \
       const void *center, const void *weight, double *sum_dy, double *sum_dy_xc))                 \
    X(col_grad_apply,                                                                              \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t ld, int64_t cols,            \
       const void *center, const void *a, const void *b, const void *e, int stream))               \
    X(col_grad_apply_elem,                                                                         \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t ld, int64_t cols,            \
       const void *center, const void *scale, const void *shift, const void *b, const void *e,     \
       const void *weight, double *dweight, double *dbias))                                        \
    X(block_moments, (const void *x, fn_run run, int64_t block, double *mean, double *m2))         \
    X(block_apply, (const void *x, void *y, int64_t runs, fn_run run, int64_t block,               \
                    const void *center, const void *scale, const void *shift, fn_hints hints))     \
    X(block_grad_moments, (const void *x, const void *dy, fn_run run, int64_t block,               \
                           const void *center, double *sum_dy, double *sum_dy_xc))                 \
    X(block_grad_apply,                                                                            \
      (const void *x, const void *dy, void *dx, int64_t runs, fn_run run, int64_t block,           \
       const void *center, const void *a, const void *b, const void *e, fn_hints hints))           \
    X(tile_moments, (const void *x, fn_tile tile, int fetch, double *mean, double *m2))            \
    X(tile_grad_moments, (const void *x, const void *dy, fn_tile tile, int fetch,                  \
                          const void *center, double *sum_dy, double *sum_dy_xc))                  \
    X(limit, (const void *x, const void *dy, void *y, int64_t len, int stream))

#define FN_KERNEL_FIELD(name, args) void(*name) args;
typedef struct {
    FN_KERNELS(FN_KERNEL_FIELD)
} fn_kernels;

/* name of the instruction set, width in bytes; the base set has 16 everywhere */
extern const fn_kernels fn_kernels_base[FN_DTYPE_COUNT];
#if defined(__x86_64__)
extern const fn_kernels fn_kernels_avx2[FN_DTYPE_COUNT];
extern const fn_kernels fn_kernels_avx512[FN_DTYPE_COUNT];
#endif

const fn_kernels *fn_active_kernels(fn_dtype dtype);
/* calls whose arrays have at least as many bytes write past the cache */
int64_t fn_stream_bytes(void);
/* whether so many bytes are read from memory rather than from the caches: more than a quarter of
 * the L3, of which arrays that are written past the cache fill three */
static inline int fn_from_memory(int64_t bytes) { return bytes > fn_stream_bytes() / 3; }
/* what kernels have to fetch of so many bytes that they read: nothing (0), from a quarter of the L3
 * on some (1), from half of it on all, which is far */
enum { FN_FAR = 2 };
static inline int fn_fetch(int64_t bytes) {
    return fn_from_memory(bytes / 2) ? FN_FAR : fn_from_memory(bytes);
}

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

typedef struct {
    fn_problem p;
    const fn_kernels *k;
    size_t esize;    /* bytes of an element of x */
    size_t asize;    /* bytes of an element of the coefficients */
    int col;         /* column form: matrices of s rows and cols columns */
    int64_t block;   /* block form: x[n][c / block][s][block], 0 in the others; else row form */
    int elem;        /* weight and bias belong to the elements of s (layer and RMS norm) */
    int64_t n, c, s; /* as walked: batch norm channels last has n = 1, s = n*s; c is a multiple of
                        the block, and those from p.c on are padding */
    int64_t cols;    /* planes side by side: c in column form, the block, 1 in row form */

    int64_t count;            /* elements of a domain */
    int64_t domains;          /* number of domains */
    int64_t sample_domains;   /* domains among the c planes of a sample */
    int64_t planes;           /* number of planes = coefficient triples */
    int64_t per_domain;       /* planes of a domain */
    int64_t nseg, seg_stride; /* segments of a plane */
    int tile;                 /* many short segments: moments by the tile kernels */

    fn_chunks mchunks, gchunks; /* of what moments and gradient moments reduce */
    int64_t units, unit_domains;
    /* the next unit is fetched while this one is written: two fit the L2, all come from memory; and
     * the lines that it writes, where these fit as well */
    int prefetch, prefetch_out;
} fn_plan;

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

fn_status fn_plan_make(fn_plan *plan, const fn_problem *problem, const fn_params *params,
                       int backward);

/* ---- moments -------------------------------------------------------------------------------*/
typedef struct {
    double n, mean, m2; /* count, mean, sum of squared deviations */
} fn_moments;

/* Chan, Golub & LeVeque (1979): the moments of the union. */
static inline void fn_merge(fn_moments *a, double n, double mean, double m2) {
    double total = a->n + n;
    if (n == 0)
        return;
    if (a->n == 0) {
        *a = (fn_moments){n, mean, m2};
        return;
    }
    double delta = mean - a->mean, part = n / total;
    a->mean += delta * part;
    a->m2 += m2 + delta * delta * a->n * part;
    a->n = total;
}

/* ---- coefficients: here, and only here, normalizers differ ---------------------------------*/
typedef struct {
    const fn_plan *plan;
    const fn_params *params;
    double count;                 /* elements of a domain, in all arrays that share it */
    double *mean, *var;           /* statistics of each domain (switchable: of each plane) */
    double *r, *d;                /* renorm: corrections of each domain; else NULL */
    double *lmean, *lvar;         /* switchable: layer statistics of each sample */
    double *bmean, *bvar;         /* switchable: batch statistics of each channel */
    void *center, *scale, *shift; /* y = (x - center) * scale + shift, for each plane */
    void *a, *b, *e;              /* dx = a*dy + b*(x - center) + e, for each plane */
    double *sum_dy, *sum_dy_xc;   /* sums over each plane of dy and dy*(x - center) */
    double *dmu, *dv;             /* switchable: gradients of each plane's mean and variance, */
    double *dlmean, *dlvar;       /* their sums over each sample, */
    double *dbmean, *dbvar;       /* over each channel, */
    double *dlogits;              /* and of each sample, what goes to the six logits */
} fn_coefs;

/* whether x has to be read for its moments (else the running statistics serve) */
int fn_needs_moments(const fn_plan *plan);
/* domains [d0, d1): `var` holds m2 and becomes the variance, and what else the norm makes of it */
void fn_statistics(fn_coefs *cf, int64_t d0, int64_t d1);
/* switchable: what follows from the statistics, and from the gradient sums, of all planes; for a
 * sample, or for channels [c0, c1) */
void fn_layer_statistics(fn_coefs *cf, int64_t n);
void fn_batch_statistics(fn_coefs *cf, int64_t c0, int64_t c1);
void fn_layer_grad_sums(fn_coefs *cf, int64_t n);
void fn_batch_grad_sums(fn_coefs *cf, int64_t c0, int64_t c1);
/* statistics of domains [d0, d1) to center, scale and shift; for backward, which takes the center
 * alone but in layer and RMS norm, at least to that */
void fn_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
void fn_centers(fn_coefs *cf, int64_t d0, int64_t d1);
/* sum dy * (x - center) of plane p, where each domain is one plane, to sum dy * (x - mean), or back
 */
void fn_center_sums(fn_coefs *cf, int back);
/* sums of the planes of domains [d0, d1) to a, b, e; sum_dy_xc becomes sum dy * xhat */
void fn_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
/* dweight and dbias of channel normalizers, for channels [c0, c1), at most FN_CHANNELS of them */
#define FN_CHANNELS 64
void fn_param_grads(const fn_coefs *cf, const fn_grads *grads, int64_t c0, int64_t c1);
/* switchable: gradients of the logits */
void fn_logit_grads(const fn_coefs *cf, const fn_grads *grads);
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
static inline int64_t fn_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t fn_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t fn_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
