/* Normalizers with a mean and a sigma for each domain: all but switchable and global response norm.
 * All in double; arrays of N*C numbers, never of N*C*S. */
#include "norms/formulas.h"

/* ---- forward -------------------------------------------------------------------------------*/

/* What a domain's elements are divided by.  A vector of zeros has no direction, and stays 0. */
static double sigma_of(const fn_coefs *cf, int64_t d) {
    const double sigma = fn_sigma(cf->std[d], cf->plan->p.eps), least = cf->plan->p.sigma_min;
    if (sigma == 0 && least == 0 && fn_is_length(cf->plan))
        return INFINITY;
    return sigma < least ? least : sigma;
}
/* 1 / sigma of the domains of a bundle, each by itself: at the ends of the range sigma_of may round
 * otherwise.  Of its planes r / sigma, and what renorm adds to it. */
static void scales_of(const fn_coefs *cf, bundle at, double *rstd, double *scale, double *shift) {
    const double eps = cf->plan->p.eps, *std = cf->std + at.d;
    const double low = 0x1p-480, high = 0x1p480, clamps = cf->plan->p.sigma_min > 0;
    double scales[BUNDLE];
    double outside = clamps;
    for (int64_t k = 0; k < at.domains; k++) {
        rstd[k] = 1 / sqrt(std[k] * fabs(std[k]) + eps);
        outside += fn_outside(rstd[k], low, high);
    }
    for (int64_t k = 0; k < at.domains && outside > 0; k++)
        if (clamps + fn_outside(rstd[k], low, high) > 0)
            rstd[k] = 1 / sigma_of(cf, at.d + k);
    for (int64_t k = 0; k < at.domains; k++)
        scales[k] = cf->r ? cf->r[at.d + k] * rstd[k] : rstd[k];
    fn_spread(at, scales, scale);
    if (cf->d)
        fn_spread(at, cf->d + at.d, shift);
    else
        memset(shift, 0, (size_t)at.n * sizeof *shift);
}

/* Whether xhat of a domain is so small that floats lose its digits before they meet the weight of
 * the element. */
static int is_lost(const fn_coefs *cf, int64_t d, double rstd) {
    return cf->std[d] > 0 && cf->std[d] * rstd < fn_range_of(cf->plan->asize).low;
}

void fn_plain_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    double mean[BUNDLE], rstd[BUNDLE], scale[BUNDLE], shift[BUNDLE];
    bundle at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        int64_t i = 0;
        do {
            at = fn_bundle_at(cf->plan, d, d1, i);
            scales_of(cf, at, rstd, scale, shift);
            fn_spread(at, cf->mean + at.d, mean);
            fn_put_planes(cf, at, mean, scale, shift);
            for (int64_t k = 0; k < at.domains && cf->plan->elem; k++)
                if (is_lost(cf, at.d + k, rstd[k]))
                    cf->marks[at.plane + k] |= FN_CAREFUL;
            i += at.n;
        } while (i < cf->plan->per_domain);
    }
}

/* the domain of a plane */
static int64_t domain_of(const fn_plan *plan, int64_t plane) {
    if (plan->c == plan->p.c)
        return plane / plan->per_domain;
    return plane / plan->c * plan->sample_domains + plane % plan->c / plan->per_domain;
}

static fn_careful plain_forward(const fn_coefs *cf, int64_t plane) {
    const int64_t d = domain_of(cf->plan, plane), c = cf->plan->elem ? 0 : plane % cf->plan->c;
    double weight, bias;
    fn_params_of(cf, cf->params->weight, 1, c, 1, &weight);
    fn_params_of(cf, cf->params->bias, 0, c, 1, &bias);
    return (fn_careful){.mean = cf->mean[d],
                        .sigma = sigma_of(cf, d),
                        .scale = (cf->r ? cf->r[d] : 1) * weight,
                        .shift = (cf->d ? cf->d[d] : 0) * weight + bias};
}

/* ---- backward ------------------------------------------------------------------------------
 * With g = dy * weight, S1 = sum g and S2 = sum g * (x - mean) over the domain of m elements:
 *     dx = g * r/sigma - r/sigma^3 * S2/m * (x - mean) - r/sigma * S1/m
 * (r = 1 but in renorm, where it is a constant of the backward pass; RMS norm has no S1 term, nor
 * have weight and L2 norm, whose sigma is the length: m = 1).
 *
 * Where x and g are constant over the domain, as over one of one element, dx is 0 where the mean is
 * subtracted, and else
 *     dx = g * eps/sigma^3.
 * Both are said here, as the terms above would leave the rounding of their sum. */

/* what backward makes its coefficients of: of the planes of a bundle, x - mean = (x - center) -
 * low, and of its domains */
typedef struct {
    double weight[BUNDLE], scale[BUNDLE], shift[BUNDLE], mean[BUNDLE], low[BUNDLE];
    double s1[BUNDLE], s2[BUNDLE], a[BUNDLE], b[BUNDLE], e[BUNDLE];
    double rstd[BUNDLE], sum1[BUNDLE], sum2[BUNDLE];
} grad_bundle;

FN_INLINE void take_typed(size_t asize, int64_t n, const double *restrict mean,
                          const void *restrict center, const double *restrict weight,
                          const double *restrict sum_dy, const double *restrict sum_dy_xc,
                          double *restrict low, double *restrict s1, double *restrict s2) {
    for (int64_t i = 0; i < n; i++) {
        low[i] = mean[i] - fn_get_as(asize, center, i);
        s1[i] = weight[i] * sum_dy[i];
        s2[i] = weight[i] * (sum_dy_xc[i] - low[i] * sum_dy[i]);
    }
}
static void take_grad_bundle(const fn_coefs *cf, bundle at, grad_bundle *g) {
    scales_of(cf, at, g->rstd, g->scale, g->shift);
    fn_spread(at, cf->mean + at.d, g->mean);
    fn_params_of(cf, fn_weight_of_sums(cf), 1, at.c, at.n, g->weight); /* elem: it is in the sums */
    FN_BY_TYPE(cf, take_typed, at.n, g->mean, fn_element(cf->plan, cf->center, at.plane), g->weight,
               cf->sum_dy + at.plane, cf->sum_dy_xc + at.plane, g->low, g->s1, g->s2);
    if (cf->weighted)
        fn_params_of(cf, cf->params->weight, 1, at.c, at.n, g->weight);
}

/* the sums of the planes of each domain */
static void sum_domains(bundle at, const double *v, double *sum) {
    const int64_t each = at.n / at.domains;
    for (int64_t k = 0; k < at.domains; k++) {
        sum[k] = v[k * each];
        for (int64_t i = 1; i < each; i++)
            sum[k] += v[k * each + i];
    }
}

FN_INLINE void put_grad_typed(size_t asize, int64_t n, const double *restrict scale,
                              const double *restrict shift, const double *restrict a,
                              const double *restrict low, const double *restrict b,
                              const double *restrict e, const double *restrict sum_dy,
                              double *restrict sum_dy_xc, void *restrict a_to, void *restrict b_to,
                              void *restrict e_to) {
    for (int64_t i = 0; i < n; i++) {
        const double centered = sum_dy_xc[i] - low[i] * sum_dy[i];
        sum_dy_xc[i] = scale[i] * centered + shift[i] * sum_dy[i];
        fn_put_as(asize, a_to, i, a[i]);
        fn_put_as(asize, b_to, i, b[i]);
        fn_put_as(asize, e_to, i, e[i] - low[i] * b[i]);
    }
}

/* What dx takes of the sums of domain d, with xhat = (x - mean) / sigma:
 *     dx = g * r/sigma * keep + xhat * b + e */
typedef struct {
    double keep, b, e;
} domain_grad;

/* scale: r/sigma; sum1 = S1, sum2 = sum g * xhat */
FN_INLINE domain_grad grad_of(const fn_coefs *cf, int64_t d, double scale, double rstd, double sum1,
                              double sum2) {
    const fn_plan *plan = cf->plan;
    const int clamped = cf->std[d] < plan->p.sigma_min;
    if (!fn_needs_moments(plan))
        return (domain_grad){1, 0, 0};
    const int flat = cf->count == 1 || (cf->marks[fn_first_plane(plan, d)] & FN_FLAT);
    if (flat && !fn_uncentered(plan))
        return (domain_grad){0, 0, 0};
    if (flat && !clamped)
        return (domain_grad){plan->p.eps * rstd * rstd, 0, 0};
    return (domain_grad){1, clamped ? 0 : -scale * sum2 * (1 / fn_divisor(cf)),
                         fn_uncentered(plan) ? 0 : -scale * sum1 * (1 / cf->count)};
}

/* above 0 where the coefficients of plane i of a bundle, or its mean, leave the kernels' range */
FN_INLINE double grad_outside(fn_range range, const grad_bundle *g, int64_t i) {
    return fn_grad_outside(range, g->scale[i], g->a[i], g->a[i], g->b[i], g->e[i]) +
           fn_outside(g->mean[i], -range.high, range.high);
}

/* a, b, e of a bundle, from the sums of its domains, and sum dy * xhat */
static void put_grad_bundle(fn_coefs *cf, bundle at, grad_bundle *g) {
    const fn_plan *plan = cf->plan;
    const int64_t each = at.n / at.domains;
    unsigned char *marks = cf->marks + at.plane;
    const fn_range range = fn_range_of(plan->asize);
    double outside = 0, keep[BUNDLE], domain_b[BUNDLE], domain_e[BUNDLE], sums[BUNDLE];
    for (int64_t k = 0; k < at.domains; k++) {
        const double rstd = g->rstd[k];
        const domain_grad grad =
            grad_of(cf, at.d + k, g->scale[k * each], rstd, g->sum1[k], rstd * g->sum2[k]);
        keep[k] = grad.keep;
        domain_b[k] = grad.b * rstd;
        domain_e[k] = grad.e;
        /* where the elements have weights, kernels take the scale of y for that of dx */
        outside += plan->elem && (keep[k] != 1 || is_lost(cf, at.d + k, rstd));
    }
    fn_spread(at, keep, g->a);
    fn_spread(at, domain_b, g->b);
    fn_spread(at, domain_e, g->e);
    for (int64_t i = 0; i < at.n; i++) {
        g->a[i] *= g->weight[i] * g->scale[i];
        outside += grad_outside(range, g, i);
    }
    for (int64_t i = 0; i < at.n && plan->asize == sizeof(double); i++) {
        outside += marks[i] & FN_SCALED;
        sums[i] = cf->sum_dy_xc[at.plane + i];
    }
    FN_BY_TYPE(cf, put_grad_typed, at.n, g->scale, g->shift, g->a, g->low, g->b, g->e,
               cf->sum_dy + at.plane, cf->sum_dy_xc + at.plane,
               fn_element(cf->plan, cf->a, at.plane), fn_element(cf->plan, cf->b, at.plane),
               fn_element(cf->plan, cf->e, at.plane));
    for (int64_t i = 0; i < at.n && outside > 0; i++) {
        const int64_t k = i / each;
        if (((plan->elem && (keep[k] != 1 || is_lost(cf, at.d + k, g->rstd[k]))) ||
             grad_outside(range, g, i) > 0) &&
            !isnan(g->a[i] + g->b[i] + g->e[i])) /* which is NaN in the kernels too */
            marks[i] |= FN_CAREFUL;
        if (marks[i] & FN_SCALED)
            cf->sum_dy_xc[at.plane + i] = sums[i] * (fn_size_of(cf->std[at.d + k]) * g->scale[i]) +
                                          g->shift[i] * cf->sum_dy[at.plane + i];
    }
}

static void short_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    grad_bundle g;
    bundle at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        at = fn_bundle_at(cf->plan, d, d1, 0);
        take_grad_bundle(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        put_grad_bundle(cf, at, &g);
    }
}

/* a domain of several bundles */
static void long_grad_coefficients(fn_coefs *cf, int64_t d) {
    const int64_t per = cf->plan->per_domain;
    double s1 = 0, s2 = 0;
    grad_bundle g;
    for (int64_t i = 0; i < per; i += BUNDLE) {
        const bundle at = fn_bundle_at(cf->plan, d, d + 1, i);
        take_grad_bundle(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        s1 += g.sum1[0];
        s2 += g.sum2[0];
    }
    for (int64_t i = 0; i < per; i += BUNDLE) {
        const bundle at = fn_bundle_at(cf->plan, d, d + 1, i);
        take_grad_bundle(cf, at, &g);
        g.sum1[0] = s1;
        g.sum2[0] = s2;
        put_grad_bundle(cf, at, &g);
    }
}

void fn_plain_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    if (cf->plan->per_domain <= BUNDLE)
        short_grad_coefficients(cf, d0, d1);
    else
        for (int64_t d = d0; d < d1; d++)
            long_grad_coefficients(cf, d);
}

static fn_careful plain_backward(const fn_coefs *cf, int64_t plane) {
    const fn_plan *plan = cf->plan;
    const int64_t d = domain_of(plan, plane), first = fn_first_plane(plan, d);
    const double r = cf->r ? cf->r[d] : 1, shift = cf->d ? cf->d[d] : 0;
    fn_careful w = plain_forward(cf, plane);
    double s1 = 0, s2 = 0;
    for (int64_t p = first; p < first + plan->per_domain; p++) {
        double weight;
        fn_params_of(cf, fn_weight_of_sums(cf), 1, plan->elem ? 0 : p % plan->c, 1, &weight);
        s1 += weight * cf->sum_dy[p];
        s2 += r == 0 ? 0 : weight * (cf->sum_dy_xc[p] - shift * cf->sum_dy[p]) / r;
    }
    const domain_grad grad = grad_of(cf, d, r / w.sigma, 1 / w.sigma, s1, s2);
    w.scale *= grad.keep;
    w.over = w.sigma;
    w.b = grad.b;
    w.e = grad.e;
    return w;
}

fn_careful fn_plain_careful(const fn_coefs *cf, int64_t plane, int backward) {
    return backward ? plain_backward(cf, plane) : plain_forward(cf, plane);
}
