/* Moments to the statistics of a domain, in double: its mean and std, or the running ones.  Which
 * of them the kernels can be trusted with. */
#include "norms/formulas.h"

int fn_out_of_range(const fn_coefs *cf, int64_t d) {
    const fn_range range = fn_range_of(cf->plan->asize);
    const double std = cf->std[d];
    if (cf->r && fn_renorm_mean_decides(cf, d))
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
