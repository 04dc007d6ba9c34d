/* What a call has of each domain and plane, and what normalizers make of it: arrays of N*C numbers,
 * never of N*C*S. */
#ifndef FN_COEFS_H
#define FN_COEFS_H

#include "core/plan.h"

struct fn_coefs {
    const fn_plan *plan;
    const fn_params *params;
    double count;                 /* elements of a domain, in all arrays that share it */
    double *mean, *std;           /* statistics of each domain */
    double *r, *d;                /* renorm: corrections of each domain; else NULL */
    void *center, *scale, *shift; /* y = (x - center) * scale + shift, for each plane */
    void *a, *b, *e;              /* dx = a*dy + b*(x - center) + e, for each plane */
    double *sum_dy, *sum_dy_xc;   /* sums over each plane of dy and dy*(x - center) */
    int weighted;                 /* whether these are of dy * weight: see fn_apply_grad */
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
 *     dx = dy * scale / over + (x - mean) / sigma * b + e
 * (where the elements have weights, scale is without them, and dy is dy * weight; over is sigma, or
 * 1 where y grows with x) */
struct fn_careful {
    double mean, sigma, scale, shift, over, b, e;
};

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

#endif
