/* Batch Renorm (Ioffe 2017), also for instance statistics: with sigma_B and mean_B of the domain
 * and sigma and mean of the running statistics, r = clip(sigma_B / sigma), d = clip((mean_B - mean)
 * / sigma). */
#include "norms/formulas.h"

static double clip(double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Batch Renorm divides the mean's distance from the running one by the running sigma.  Where that
 * is much smaller than the batch's, and the distance may be one that is not clipped, the result
 * shows what rounding took from the mean: `rounding` of the batch's sigma. */
int fn_renorm_mean_decides(const fn_coefs *cf, int64_t d) {
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
