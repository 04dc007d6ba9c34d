/* Global Response Norm (Woo et al. 2023, ConvNeXt V2).  With G the Euclidean norm of a plane, M the
 * mean of G over the channels of a sample, and N = G / (M + eps):
 *     y = weight * (x * N) + bias + x = x * (1 + weight * N) + bias
 * Backward, with S = sum dy * x of a plane, dN = weight * S, and T the sum of dN * N over the
 * channels: dG = (dN - T / C) / (M + eps) dx = dy * (1 + weight * N) + x * dG / G,  dweight = N * S
 * A plane of zeros has no direction: x * dG / G is 0 there. */
#include "norms/formulas.h"

/* M + eps and T of each sample */
static double *divisors(const fn_coefs *cf) { return cf->own; }
static double *sums(const fn_coefs *cf) { return cf->own + cf->plan->n; }
int64_t fn_global_own(const fn_plan *plan, int backward) {
    (void)backward;
    return 2 * plan->n;
}

static double weight_of(const fn_coefs *cf, int64_t plane) {
    double weight;
    fn_params_of(cf, cf->params->weight, 1, plane % cf->plan->c, 1, &weight);
    return weight;
}
static double response(const fn_coefs *cf, int64_t plane) { /* N */
    const double divisor = divisors(cf)[plane / cf->plan->c], length = cf->std[plane];
    return length == 0 ? 0 : length / divisor;
}

void fn_global_sample(fn_coefs *cf, int64_t n) {
    const int64_t C = cf->plan->p.c, first = n * cf->plan->c;
    double mean = 0;
    for (int64_t c = 0; c < C; c++)
        mean += cf->std[first + c] / (double)C;
    divisors(cf)[n] = mean + cf->plan->p.eps;
}

void fn_global_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_range range = fn_range_of(cf->plan->asize);
    for (int64_t p = p0; p < p1; p++) {
        const fn_careful w = fn_global_careful(cf, p, 0);
        fn_put(cf->plan, cf->center, p, 0);
        fn_put(cf->plan, cf->scale, p, w.scale);
        fn_put(cf->plan, cf->shift, p, w.shift);
        cf->marks[p] = fabs(w.scale) > range.high || fabs(w.shift) > range.high ? FN_CAREFUL : 0;
    }
}

/* sum dy * x of each plane becomes dN / weight = S in its unit, and T is made of it */
void fn_global_sample_grads(fn_coefs *cf, int64_t n) {
    const int64_t first = n * cf->plan->c;
    fn_global_sample(cf, n);
    sums(cf)[n] = 0;
    for (int64_t p = first; p < first + cf->plan->p.c; p++) {
        if (cf->marks[p] & FN_SCALED)
            cf->sum_dy_xc[p] *= fn_size_of(cf->std[p]);
        sums(cf)[n] += weight_of(cf, p) * cf->sum_dy_xc[p] * response(cf, p);
    }
}

void fn_global_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_range range = fn_range_of(cf->plan->asize);
    for (int64_t p = p0; p < p1; p++) {
        cf->sum_dy_xc[p] *= response(cf, p); /* what dweight takes */
        const fn_careful w = fn_global_careful(cf, p, 1);
        const double a = w.scale / w.sigma, b = w.b / w.sigma;
        fn_put(cf->plan, cf->a, p, a);
        fn_put(cf->plan, cf->b, p, b);
        fn_put(cf->plan, cf->e, p, 0);
        if (fn_outside(a, -range.high, range.high) + fn_product_outside(b, b, range) > 0 &&
            !isnan(a + b))
            cf->marks[p] |= FN_CAREFUL;
    }
}

/* backward: once sum_dy_xc is N * S */
fn_careful fn_global_careful(const fn_coefs *cf, int64_t plane, int backward) {
    const int64_t n = plane / cf->plan->c;
    const double weight = weight_of(cf, plane), N = response(cf, plane), scale = 1 + weight * N;
    double bias;
    fn_params_of(cf, cf->params->bias, 0, plane % cf->plan->c, 1, &bias);
    if (!backward)
        return (fn_careful){.sigma = 1, .scale = scale, .shift = bias};
    const double sigma = N == 0 ? 1 : cf->std[plane];
    const double dN = N == 0 ? 0 : weight * cf->sum_dy_xc[plane] / N;
    const double dG = (dN - sums(cf)[n] / (double)cf->plan->p.c) / divisors(cf)[n];
    return (fn_careful){.sigma = sigma, .scale = scale * sigma, .b = N == 0 ? 0 : dG};
}
