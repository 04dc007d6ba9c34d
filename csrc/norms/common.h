/* What the formulas share. */
#ifndef FN_COMMON_H
#define FN_COMMON_H

#include "norms/coefs.h"

#include <math.h>

/* At most BUNDLE planes of neighbouring channels that are taken together: planes [plane, plane + n)
 * with channels from c on, which are domains [d, d + domains), or a part of a single one. */
#define BUNDLE 64
typedef struct {
    int64_t plane, c, n, d, domains;
} bundle;

/* the bundle that begins with plane i of domain d, of domains up to d1 */
bundle fn_bundle_at(const fn_plan *plan, int64_t d, int64_t d1, int64_t i);

/* what m2 is divided by */
static inline double fn_divisor(const fn_coefs *cf) {
    return fn_is_length(cf->plan) ? 1 : cf->count;
}

/* v[i] for the planes of a bundle, from[k] of its domains */
static inline void fn_spread(bundle at, const double *from, double *v) {
    const int64_t each = at.n / at.domains;
    if (each == 1)
        memcpy(v, from, (size_t)at.n * sizeof *v);
    else
        for (int64_t k = 0; k < at.domains; k++)
            for (int64_t i = 0; i < each; i++)
                v[k * each + i] = from[k];
}

/* Call function(asize, ...), on coefficients of a bundle from element 0 on: with a constant, as
 * only then compilers make vectors of it. */
#define FN_BY_TYPE(cf, function, ...)                                                              \
    ((cf)->plan->asize == 4 ? function(4, __VA_ARGS__) : function(8, __VA_ARGS__))

/* the channels of a blocked layout that fill up the last block, and have no parameters */
static inline int fn_is_padding(const fn_coefs *cf, int64_t channel) {
    return channel >= cf->plan->p.c;
}
/* weight or bias of channels [c, c + n), for padding only not beyond the array; `none` where there
 * is no such parameter, or it belongs to the elements and not to the channels */
/* by what sums of dy are still to be multiplied; NULL: by nothing */
static inline const void *fn_weight_of_sums(const fn_coefs *cf) {
    return cf->weighted ? NULL : cf->params->weight;
}
void fn_params_of(const fn_coefs *cf, const void *param, double none, int64_t c, int64_t n,
                  double *v);

/* y = ((x - mean) * scale + shift) * weight + bias of the planes of a bundle, to center, scale and
 * shift */
void fn_put_planes(fn_coefs *cf, bundle at, const double *mean, const double *scale,
                   const double *shift);

/* sqrt(std^2 + eps), where std^2 may be no double.  A running variance below 0, as others' rounding
 * may leave it, has a std below 0. */
static inline double fn_sigma(double std, double eps) {
    const double var = std * fabs(std) + eps;
    if ((0x1p-960 < var && var < 0x1p960) || !(std >= 0))
        return sqrt(var);
    const double root = sqrt(eps), most = std > root ? std : root, least = std > root ? root : std;
    return most == 0 ? 0 : most * sqrt(1 + (least / most) * (least / most));
}

/* Not 0 where v is outside of [low, high]: 1, for NaN 2.  Loops add these: a count in double, of
 * one comparison each, is what compilers make vectors of, together with the numbers that are looked
 * at.
 */
FN_INLINE double fn_outside(double v, double low, double high) {
    return (low <= v ? 0 : 1.0) + (v <= high ? 0 : 1.0);
}
/* likewise of a product in magnitude, which may be 0 where a factor is */
FN_INLINE double fn_product_outside(double v, double factor, fn_range range) {
    const double one = factor == 0 ? 1 : 0;
    return fn_outside(fabs(v) + one, range.low, range.high);
}

/* of the coefficients of dx of a plane: 1 / sigma, a of this weight, b and e.  b is that of x, not
 * of xhat; small ones lose nothing that is not lost in dx too. */
FN_INLINE double fn_grad_outside(fn_range range, double scale, double a, double weight, double b,
                                 double e) {
    fn_range lower = range;
    lower.low *= 0x1p-20;
    return fn_product_outside(scale, 1, range) + fn_product_outside(a, weight, range) +
           fn_product_outside(b, b, lower) + fn_outside(e, -range.high, range.high);
}

/* The power of two next above a positive number, 1 for others.  Its inverse is a double too. */
static inline double fn_size_of(double number) {
    int exponent = 0;
    if (number > 0 && number < INFINITY)
        frexp(number, &exponent);
    return ldexp(1, exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent);
}
/* What numbers up to `most` are divided by so that their squares can be summed: 1 where they can be
 * as they are. */
static inline double fn_unit_of(double most) {
    return 0x1p-480 < most && most < 0x1p480 ? 1 : fn_size_of(most);
}

#endif
