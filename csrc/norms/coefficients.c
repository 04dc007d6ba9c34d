/* Statistics to scale and shift, and gradient sums to the coefficients of dx: here, and in
 * switchable.c, normalizers differ.  All in double; arrays of N*C numbers, never of N*C*S.
 *
 * x is centered in its own precision, x - center, with center the mean rounded to that precision;
 * what rounding left of the mean, `low`, goes into the shift.  So y is as exact at a mean of 1e6
 * standard deviations as at 0.
 *
 * A coefficient may leave the range of the kernels' arithmetic: 1 / sigma of float elements of
 * 1e-40 is no float.  Such planes get the mark FN_CAREFUL, and careful.c computes them. */
#include "norms/formulas.h"

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

/* ---- forward -------------------------------------------------------------------------------*/

piece fn_piece_at(const fn_plan *plan, int64_t d, int64_t d1, int64_t i) {
    const int64_t per = plan->per_domain, plane = fn_first_plane(plan, d) + i;
    if (plan->elem) /* rows have no channel */
        return (piece){plane, 0, fn_min(BLOCK, d1 - d), d, fn_min(BLOCK, d1 - d)};
    if (per > BLOCK)
        return (piece){plane, plane % plan->c, fn_min(BLOCK, per - i), d, 1};
    const int64_t in_sample = plan->sample_domains - d % plan->sample_domains;
    const int64_t domains = fn_min(fn_min(d1 - d, in_sample), BLOCK / per);
    return (piece){plane, plane % plan->c, domains * per, d, domains};
}

/* v[i] for the planes of a piece, from[k] of its domains */
static void spread(piece at, const double *from, double *v) {
    const int64_t each = at.n / at.domains;
    if (each == 1)
        memcpy(v, from, (size_t)at.n * sizeof *v);
    else
        for (int64_t k = 0; k < at.domains; k++)
            for (int64_t i = 0; i < each; i++)
                v[k * each + i] = from[k];
}

/* What a domain's elements are divided by.  A vector of zeros has no direction, and stays 0. */
static double sigma_of(const fn_coefs *cf, int64_t d) {
    const double sigma = fn_sigma(cf->std[d], cf->plan->p.eps), least = cf->plan->p.sigma_min;
    if (sigma == 0 && least == 0 && fn_is_length(cf->plan))
        return INFINITY;
    return sigma < least ? least : sigma;
}
/* 1 / sigma of the domains of a piece; of its planes r / sigma, and what renorm adds to it */
static void scales_of(const fn_coefs *cf, piece at, double *rstd, double *scale, double *shift) {
    const double eps = cf->plan->p.eps, *std = cf->std + at.d;
    double scales[BLOCK];
    double outside = cf->plan->p.sigma_min > 0;
    for (int64_t k = 0; k < at.domains; k++) {
        rstd[k] = 1 / sqrt(std[k] * fabs(std[k]) + eps);
        outside += fn_outside(rstd[k], 0x1p-480, 0x1p480);
    }
    for (int64_t k = 0; k < at.domains && outside > 0; k++)
        rstd[k] = 1 / sigma_of(cf, at.d + k);
    for (int64_t k = 0; k < at.domains; k++)
        scales[k] = cf->r ? cf->r[at.d + k] * rstd[k] : rstd[k];
    spread(at, scales, scale);
    if (cf->d)
        spread(at, cf->d + at.d, shift);
    else
        memset(shift, 0, (size_t)at.n * sizeof *shift);
}

/* Call function(asize, ...), on coefficients of a piece from element 0 on: with a constant, as only
 * then compilers make vectors of it. */
#define FN_BY_TYPE(cf, function, ...)                                                              \
    ((cf)->plan->asize == 4 ? function(4, __VA_ARGS__) : function(8, __VA_ARGS__))

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
        outside += plane_outside(mean[i], scale[i], shift[i], weight[i], bias[i], range);
    }
    return outside;
}

void fn_put_planes(fn_coefs *cf, piece at, const double *mean, const double *scale,
                   const double *shift) {
    const fn_range range = fn_range_of(cf->plan->asize);
    unsigned char *marks = cf->marks + at.plane;
    double weight[BLOCK], bias[BLOCK];
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

/* Whether xhat of a domain is so small that floats lose its digits before they meet the weight of
 * the element. */
static int is_lost(const fn_coefs *cf, int64_t d, double rstd) {
    return cf->std[d] > 0 && cf->std[d] * rstd < fn_range_of(cf->plan->asize).low;
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

void fn_plain_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    double mean[BLOCK], rstd[BLOCK], scale[BLOCK], shift[BLOCK];
    piece at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        int64_t i = 0;
        do {
            at = fn_piece_at(cf->plan, d, d1, i);
            scales_of(cf, at, rstd, scale, shift);
            spread(at, cf->mean + at.d, mean);
            fn_put_planes(cf, at, mean, scale, shift);
            for (int64_t k = 0; k < at.domains && cf->plan->elem; k++)
                if (is_lost(cf, at.d + k, rstd[k]))
                    cf->marks[at.plane + k] |= FN_CAREFUL;
            i += at.n;
        } while (i < cf->plan->per_domain);
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

/* the domain of a plane, and its channel where it has one */
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

/* what backward makes its coefficients of: of the planes of a piece, x - mean = (x - center) - low,
 * and of its domains */
typedef struct {
    double weight[BLOCK], scale[BLOCK], shift[BLOCK], mean[BLOCK], low[BLOCK];
    double s1[BLOCK], s2[BLOCK], a[BLOCK], b[BLOCK], e[BLOCK];
    double rstd[BLOCK], sum1[BLOCK], sum2[BLOCK];
} grad_piece;

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
static void take_grad_piece(const fn_coefs *cf, piece at, grad_piece *g) {
    scales_of(cf, at, g->rstd, g->scale, g->shift);
    spread(at, cf->mean + at.d, g->mean);
    fn_params_of(cf, cf->params->weight, 1, at.c, at.n, g->weight); /* elem: it is in the sums */
    FN_BY_TYPE(cf, take_typed, at.n, g->mean, fn_element(cf->plan, cf->center, at.plane), g->weight,
               cf->sum_dy + at.plane, cf->sum_dy_xc + at.plane, g->low, g->s1, g->s2);
}

/* the sums of the planes of each domain */
static void sum_domains(piece at, const double *v, double *sum) {
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

/* above 0 where the coefficients of plane i of a piece, or its mean, leave the kernels' range */
FN_INLINE double grad_outside(fn_range range, const grad_piece *g, int64_t i) {
    return fn_grad_outside(range, g->scale[i], g->a[i], g->a[i], g->b[i], g->e[i]) +
           fn_outside(g->mean[i], -range.high, range.high);
}

/* a, b, e of a piece, from the sums of its domains, and sum dy * xhat */
static void put_grad_piece(fn_coefs *cf, piece at, grad_piece *g) {
    const fn_plan *plan = cf->plan;
    const int64_t each = at.n / at.domains;
    unsigned char *marks = cf->marks + at.plane;
    const fn_range range = fn_range_of(plan->asize);
    double outside = 0, keep[BLOCK], domain_b[BLOCK], domain_e[BLOCK], sums[BLOCK];
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
    spread(at, keep, g->a);
    spread(at, domain_b, g->b);
    spread(at, domain_e, g->e);
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
    grad_piece g;
    piece at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        at = fn_piece_at(cf->plan, d, d1, 0);
        take_grad_piece(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        put_grad_piece(cf, at, &g);
    }
}

/* a domain of several pieces */
static void long_grad_coefficients(fn_coefs *cf, int64_t d) {
    const int64_t per = cf->plan->per_domain;
    double s1 = 0, s2 = 0;
    grad_piece g;
    for (int64_t i = 0; i < per; i += BLOCK) {
        const piece at = fn_piece_at(cf->plan, d, d + 1, i);
        take_grad_piece(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        s1 += g.sum1[0];
        s2 += g.sum2[0];
    }
    for (int64_t i = 0; i < per; i += BLOCK) {
        const piece at = fn_piece_at(cf->plan, d, d + 1, i);
        take_grad_piece(cf, at, &g);
        g.sum1[0] = s1;
        g.sum2[0] = s2;
        put_grad_piece(cf, at, &g);
    }
}

void fn_plain_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    if (cf->plan->per_domain <= BLOCK)
        short_grad_coefficients(cf, d0, d1);
    else
        for (int64_t d = d0; d < d1; d++)
            long_grad_coefficients(cf, d);
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

static fn_careful plain_backward(const fn_coefs *cf, int64_t plane) {
    const fn_plan *plan = cf->plan;
    const int64_t d = domain_of(plan, plane), first = fn_first_plane(plan, d);
    const double r = cf->r ? cf->r[d] : 1, shift = cf->d ? cf->d[d] : 0;
    fn_careful w = plain_forward(cf, plane);
    double s1 = 0, s2 = 0;
    for (int64_t p = first; p < first + plan->per_domain; p++) {
        double weight;
        fn_params_of(cf, cf->params->weight, 1, plan->elem ? 0 : p % plan->c, 1, &weight);
        s1 += weight * cf->sum_dy[p];
        s2 += r == 0 ? 0 : weight * (cf->sum_dy_xc[p] - shift * cf->sum_dy[p]) / r;
    }
    const domain_grad grad = grad_of(cf, d, r / w.sigma, 1 / w.sigma, s1, s2);
    w.scale *= grad.keep;
    w.b = grad.b;
    w.e = grad.e;
    return w;
}

fn_careful fn_plain_careful(const fn_coefs *cf, int64_t plane, int backward) {
    return backward ? plain_backward(cf, plane) : plain_forward(cf, plane);
}
