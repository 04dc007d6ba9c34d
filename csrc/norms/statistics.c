/* Moments to the statistics of a domain, in double: its mean and std, and what renorm makes of them
 * and of the running ones.  Which of them coefficients.c can trust. */
#include "norms/formulas.h"

static double clip(double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Batch Renorm divides the mean's distance from the running one by the running sigma.  Where that
 * is much smaller than the batch's, and the distance may be one that is not clipped, the result
 * shows what rounding took from the mean: `rounding` of the batch's sigma. */
static int mean_decides(const fn_coefs *cf, int64_t d) {
    const fn_plan *plan = cf->plan;
    const int64_t c = d % plan->c;
    const double much_smaller = plan->asize == 4 ? 8 : 1024;
    const double rounding = plan->asize == 4 ? 0x1p-20 : 0x1p-48;
    if (!fn_needs_moments(plan) || fn_is_padding(cf, c))
        return 0;
    const double sigma = sqrt(fn_get(plan, cf->params->running_var, c) + plan->p.eps);
    const double far = fabs(cf->mean[d] - fn_get(plan, cf->params->running_mean, c));
    return cf->std[d] > much_smaller * plan->p.r_max * sigma &&
           far < 1.01 * plan->p.d_max * sigma + rounding * cf->std[d];
}

int fn_out_of_range(const fn_coefs *cf, int64_t d) {
    const fn_range range = fn_range_of(cf->plan->asize);
    const double std = cf->std[d];
    if (cf->r && mean_decides(cf, d))
        return 1;
    if (cf->plan->p.dtype == FN_F16) /* squares of its differences are floats */
        return 0;
    if (std == 0)
        return !(fabs(cf->mean[d]) >= range.zero);
    return !(range.std_low <= std && std <= range.std_high);
}

int fn_deviations(fn_coefs *cf, int64_t d0, int64_t d1) {
    const double part = 1 / fn_divisor(cf), count = (double)cf->plan->count;
    const fn_range range = fn_range_of(cf->plan->asize);
    double outside = 0;
    for (int64_t d = d0; d < d1 && fn_uncentered(cf->plan) && !cf->plan->squares; d++) {
        cf->std[d] += cf->mean[d] * cf->mean[d] * count; /* both terms positive: exact */
        cf->mean[d] = 0;
    }
    for (int64_t d = d0; d < d1; d++) {
        const double std = sqrt(cf->std[d] * part);
        cf->std[d] = std;
        outside += fn_outside(std, range.std_low, range.std_high);
    }
    return outside > 0 || cf->r;
}

void fn_put_moments(fn_coefs *cf, int64_t d, double mean, double m2, int exponent) {
    if (fn_uncentered(cf->plan) && mean != 0) { /* in the unit of the larger of the two */
        int size;
        frexp(mean, &size);
        size = m2 > 0 && exponent > size ? exponent : size;
        mean = ldexp(mean, -size);
        m2 = ldexp(m2, 2 * (exponent - size)) + mean * mean * (double)cf->plan->count;
        exponent = size;
        mean = 0;
    }
    cf->mean[d] = mean;
    cf->std[d] = ldexp(sqrt(m2 / fn_divisor(cf)), exponent);
}

/* Batch Renorm (Ioffe 2017), also for instance statistics: r = clip(sigma_B / sigma),
 * d = clip((mean_B - mean) / sigma) against the running statistics. */
static void renorm_corrections(fn_coefs *cf, int64_t d) {
    const fn_plan *plan = cf->plan;
    const fn_problem *p = &plan->p;
    const int64_t c = d % plan->c;
    if (!fn_needs_moments(plan) || fn_is_padding(cf, c)) {
        cf->r[d] = 1;
        cf->d[d] = 0;
        return;
    }
    const double sigma = sqrt(fn_get(plan, cf->params->running_var, c) + p->eps);
    const double blend = plan->row->facts & FN_OVER_SAMPLES ? 1 : p->blend;
    double r = clip(fn_sigma(cf->std[d], p->eps) / sigma, 1 / p->r_max, p->r_max);
    double shift = (cf->mean[d] - fn_get(plan, cf->params->running_mean, c)) / sigma;
    cf->r[d] = 1 + blend * (r - 1);
    cf->d[d] = blend * clip(shift, -p->d_max, p->d_max);
}

void fn_renorm_statistics(fn_coefs *cf, int64_t d0, int64_t d1) {
    for (int64_t d = d0; d < d1; d++)
        renorm_corrections(cf, d);
}

void fn_statistics(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    for (int64_t d = d0; d < d1 && !fn_needs_moments(plan); d++) {
        const int64_t c = d % plan->c;
        const int padding = fn_is_padding(cf, c);
        const double var = padding ? 0 : fn_get(plan, cf->params->running_var, c);
        cf->mean[d] = padding ? 0 : fn_get(plan, cf->params->running_mean, c);
        cf->std[d] = copysign(sqrt(fabs(var)), var);
    }
    if (plan->row->statistics)
        plan->row->statistics(cf, d0, d1);
}
