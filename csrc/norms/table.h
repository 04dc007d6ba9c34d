/* The normalizers: one row each, with everything that the rest of the library asks about one.  A
 * new normalizer is a row of table.c and its formulas in this folder. */
#ifndef FN_TABLE_H
#define FN_TABLE_H

#include "fastnorm.h"

/* Facts.  Without any, a domain is a plane: the elements of one channel of one sample. */
enum {
    FN_OVER_SAMPLES = 1 << 0,   /* a domain is a channel, over all samples */
    FN_OVER_CHANNELS = 1 << 1,  /* a domain is a group of channels of a sample */
    FN_OF_ELEMENTS = 1 << 2,    /* weight and bias belong to the elements of a domain */
    FN_SQUARES = 1 << 3,        /* the sum of squares is reduced, not moments */
    FN_UNCENTERED = 1 << 4,     /* the mean is not subtracted */
    FN_LENGTH = 1 << 5,         /* sigma is the root of a sum of squares, not of a mean */
    FN_NO_BLOCKS = 1 << 6,      /* not in the blocked layout */
    FN_RUNNING = 1 << 7,        /* has running statistics, which training updates; */
    FN_RUNNING_SERVES = 1 << 8, /* without training they serve instead of the input's; */
    FN_RUNNING_MEANS = 1 << 9,  /* they take means over the samples, as torch's instance norm */
    FN_STEPS = 1 << 10,         /* has the steps fn_measure, fn_apply... */
    FN_CORRECTED = 1 << 11,     /* r and d of each domain are saved beside mean and std */
    FN_FLOOR = 1 << 12          /* y is at least tau, where that is given */
};

typedef struct fn_plan fn_plan;
typedef struct fn_coefs fn_coefs;
typedef struct fn_careful fn_careful;

typedef struct {
    unsigned facts;
    /* What else is checked of a problem; NULL: nothing.  running: whether there are running
     * statistics. */
    int (*valid)(const fn_problem *p, const fn_params *q, int running);

    /* doubles that are saved beyond those of each domain, at cf->more */
    int64_t (*saved_more)(const fn_plan *plan);
    /* doubles of its own, at cf->own, that a call needs besides */
    int64_t (*own_doubles)(const fn_plan *plan, int backward);

    /* Statistics of domains [d0, d1) once they are measured, and of what spans domains: a sample,
     * or channels [c0, c1) of all samples.  NULL: nothing to do. */
    void (*statistics)(fn_coefs *cf, int64_t d0, int64_t d1);
    void (*sample_statistics)(fn_coefs *cf, int64_t n);
    void (*channel_statistics)(fn_coefs *cf, int64_t c0, int64_t c1);
    /* likewise of the gradient sums */
    void (*sample_grads)(fn_coefs *cf, int64_t n);
    void (*channel_grads)(fn_coefs *cf, int64_t c0, int64_t c1);

    /* statistics to center, scale and shift; gradient sums to a, b and e; and both of one plane, in
     * double */
    void (*coefficients)(fn_coefs *cf, int64_t d0, int64_t d1);
    void (*grad_coefficients)(fn_coefs *cf, int64_t d0, int64_t d1);
    fn_careful (*careful)(const fn_coefs *cf, int64_t plane, int backward);
    /* gradients of parameters that are not weight or bias */
    void (*other_grads)(const fn_coefs *cf, const fn_grads *grads);
} fn_row;

/* NULL: there is no such normalizer */
const fn_row *fn_row_of(fn_norm norm);

#endif
