/* Statistics to coefficients, and gradient sums to those of dx: what all normalizers share of it.
 *
 * x is centered in its own precision, x - center, with center the mean rounded to that precision;
 * what rounding left of the mean, `low`, goes into the shift.  So y is as exact at a mean of 1e6
 * standard deviations as at 0.
 *
 * A coefficient may leave the range of the kernels' arithmetic: 1 / sigma of float elements of
 * 1e-40 is no float.  Such planes get the mark FN_CAREFUL, and careful.c computes them. */
#include "norms/common.h"

void fn_params_of(const fn_coefs *cf, const void *param, double none, int64_t c, int64_t n,
                  double *v) {
    if (!param || cf->plan->elem) {
        for (int64_t i = 0; i < n; i++)
            v[i] = none;
        return;
    }
    const int64_t real = fn_max(0, fn_min(n, cf->plan->p.c - c));
    fn_get_all(cf->plan, param, c, v, real);
    for (int64_t i = real; i < n; i++)
        v[i] = 0;
}

bundle fn_bundle_at(const fn_plan *plan, int64_t d, int64_t d1, int64_t i) {
    const int64_t per = plan->per_domain, plane = fn_first_plane(plan, d) + i;
    if (plan->elem) /* rows have no channel */
        return (bundle){plane, 0, fn_min(BUNDLE, d1 - d), d, fn_min(BUNDLE, d1 - d)};
    if (per > BUNDLE)
        return (bundle){plane, plane % plan->c, fn_min(BUNDLE, per - i), d, 1};
    const int64_t in_sample = plan->sample_domains - d % plan->sample_domains;
    const int64_t domains = fn_min(fn_min(d1 - d, in_sample), BUNDLE / per);
    return (bundle){plane, plane % plan->c, domains * per, d, domains};
}

/* ---- coefficients --------------------------------------------------------------------------*/

/* what fn_outside says of a plane */
FN_INLINE double plane_outside(double mean, double scale, double shift, double weight, double bias,
                               fn_range range) {
    return fn_product_outside(scale * weight, weight, range) +
           fn_outside(mean, -range.high, range.high) +
           fn_outside(shift * weight, -range.high, range.high) +
           fn_outside(bias, -range.high, range.high);
}

/* y = ((x - mean) * scale + shift) * weight + bias as (x - center) * scale + shift.  Returns
 * whether all are in range. */
FN_INLINE double put_typed(size_t asize, int64_t n, const double *restrict mean,
                           const double *restrict scale, const double *restrict shift,
                           const double *restrict weight, const double *restrict bias,
                           void *restrict center_to, void *restrict scale_to,
                           void *restrict shift_to) {
    const fn_range range = fn_range_of(asize);
    double outside = 0;
    for (int64_t i = 0; i < n; i++) {
        const double center = asize == 4 ? (double)(float)mean[i] : mean[i], low = mean[i] - center;
        const double a = scale[i] * weight[i];
        fn_put_as(asize, center_to, i, center);
        fn_put_as(asize, scale_to, i, a);
        fn_put_as(asize, shift_to, i, shift[i] * weight[i] + bias[i] - low * a);
    }
    for (int64_t i = 0; i < n;
         i++) /* apart: gcc makes vectors of the two, but not of both in one */
        outside += plane_outside(mean[i], scale[i], shift[i], weight[i], bias[i], range);
    return outside;
}

void fn_put_planes(fn_coefs *cf, bundle at, const double *mean, const double *scale,
                   const double *shift) {
    const fn_range range = fn_range_of(cf->plan->asize);
    unsigned char *marks = cf->marks + at.plane;
    double weight[BUNDLE], bias[BUNDLE];
    fn_params_of(cf, cf->params->weight, 1, at.c, at.n, weight);
    fn_params_of(cf, cf->params->bias, 0, at.c, at.n, bias);
    const double outside = FN_BY_TYPE(cf, put_typed, at.n, mean, scale, shift, weight, bias,
                                      fn_element(cf->plan, cf->center, at.plane),
                                      fn_element(cf->plan, cf->scale, at.plane),
                                      fn_element(cf->plan, cf->shift, at.plane));
    for (int64_t i = 0; i < at.n; i++)
        marks[i] = 0;
    for (int64_t i = 0; i < at.n && outside > 0; i++) /* NaN is NaN in the kernels too */
        if (plane_outside(mean[i], scale[i], shift[i], weight[i], bias[i], range) > 0 &&
            !isnan(mean[i] + scale[i]))
            marks[i] = FN_CAREFUL;
}

/* Planes without a channel, and those that belong to no domain, become 0. */
static void zero_padding(const fn_coefs *cf, int64_t d0, int64_t d1, void *const arrays[3]) {
    const fn_plan *plan = cf->plan;
    if (plan->c == plan->p.c)
        return;
    const int64_t p1 = fn_first_plane(plan, d1);
    for (int64_t p = fn_first_plane(plan, d0); p < p1; p++) {
        for (int i = 0; i < 3 && fn_is_padding(cf, p % plan->c); i++)
            fn_put(plan, arrays[i], p, 0);
        if (fn_is_padding(cf, p % plan->c))
            cf->marks[p] = 0;
    }
}

/* tau of each plane; a NaN becomes one of y */
static void put_floor(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    for (int64_t p = fn_first_plane(plan, d0); p < fn_first_plane(plan, d1); p++) {
        const int64_t c = p % plan->c;
        const double tau = fn_is_padding(cf, c) ? -INFINITY : fn_get(plan, cf->params->tau, c);
        fn_put(plan, cf->floor, p, tau);
        if (isnan(tau))
            fn_put(plan, cf->shift, p, tau);
    }
}

void fn_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    void *const arrays[] = {cf->center, cf->scale, cf->shift};
    cf->plan->row->coefficients(cf, d0, d1);
    if (cf->floor)
        put_floor(cf, d0, d1);
    zero_padding(cf, d0, d1, arrays);
}

void fn_centers(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    memset(cf->marks + fn_first_plane(plan, d0), 0,
           (size_t)(fn_first_plane(plan, d1) - fn_first_plane(plan, d0)));
    if (plan->elem || cf->floor || (plan->c != plan->p.c && !plan->row->sample_statistics)) {
        fn_coefficients(cf, d0, d1);
        return;
    }
    /* switchable: x lies around the mean of its plane, however far the mixed mean is from that */
    if (plan->per_domain == 1) {
        fn_put_all(plan, cf->center, d0, cf->mean + d0, d1 - d0);
        return;
    }
    for (int64_t d = d0; d < d1; d++)
        for (int64_t i = 0; i < plan->per_domain; i++)
            fn_put(plan, cf->center, d * plan->per_domain + i, cf->mean[d]);
}

void fn_center_sums(fn_coefs *cf, int back) {
    for (int64_t p = 0; p < cf->plan->planes; p++) {
        const double low = cf->mean[p] - fn_get(cf->plan, cf->center, p);
        cf->sum_dy_xc[p] *= cf->marks[p] & FN_SCALED ? fn_size_of(cf->std[p]) : 1;
        cf->sum_dy_xc[p] += (back ? low : -low) * cf->sum_dy[p];
    }
}

void fn_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    void *const arrays[] = {cf->a, cf->b, cf->e};
    cf->plan->row->grad_coefficients(cf, d0, d1);
    zero_padding(cf, d0, d1, arrays);
}
